"""Video files are found, seen at one rate, and scored without being held whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from astrolabe.judging import correlate, files_and_prompts, score_files, videos_in
from astrolabe.rewards import files, pixels
from astrolabe.rewards.base import Member
from astrolabe.rewards.cache import ScoreCache
from astrolabe.rewards.files import VideoFile, fingerprint
from astrolabe.runtime.errors import UserError, remark
from astrolabe.runtime.video import frames_at, read_frames, write_mp4
from astrolabe.types import Video


def scene(rate: int, seconds: int = 3) -> torch.Tensor:
    """A square that moves by 32 pixels a second and jumps back each second."""
    video = torch.zeros(seconds * rate, 3, 64, 96)
    for number, frame in enumerate(video):
        place = round(32 * (number % rate) / rate)
        frame[:, 20:40, place : place + 20] = 1
    return video


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One scene at 16 and at 60 frames a second."""
    folder = tmp_path_factory.mktemp("rates")
    for rate in (16, 60):
        write_mp4(folder / f"{rate}.mp4", scene(rate), rate)
    return folder


@pytest.mark.parametrize("name", ["pixel_motion", "flow_degree"])
def test_one_scene_moves_alike_at_any_rate(name: str, rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remark.cache_clear()
    slow, fast = (one.score for one in score_files(name, [rates / "16.mp4", rates / "60.mp4"], ["", ""], None))
    assert fast == pytest.approx(slow, rel=0.15)
    said = capsys.readouterr().err
    assert "60.mp4 comes at 60 frames a second: seen at 16" in said and "16.mp4 comes" not in said


def test_files_are_seen_at_the_rate_that_is_asked_for(rates: Path) -> None:
    (own,) = score_files("pixel_motion", [rates / "60.mp4"], [""], None, fps=60.0)
    expected = read_frames(rates / "60.mp4").diff(dim=0).abs().mean().item()
    assert own.score == pytest.approx(expected, rel=1e-5)
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"--fps .*above zero"):
            list(score_files("pixel_motion", [rates / "60.mp4"], [""], None, fps=rate))


def test_a_score_that_is_kept_is_found_again_by_its_frames(rates: Path, tmp_path: Path) -> None:
    paths = [rates / "16.mp4"]
    (first,) = score_files("pixel_motion", paths, [""], tmp_path / "scores")
    video = read_frames(paths[0])[None]
    assert fingerprint(frames_at(paths[0])) == fingerprint((video[0] * 255).round().byte().permute(0, 2, 3, 1).numpy())
    keys = {ScoreCache.key("a", seen, "") for seen in (fingerprint(frames_at(paths[0])), video)}
    assert len(keys) == 1
    (again,) = score_files("pixel_motion", paths, [""], tmp_path / "scores")
    (other,) = score_files("pixel_motion", [rates / "60.mp4"], [""], tmp_path / "scores")
    assert again.score == first.score != other.score


def test_a_reward_sees_only_the_frames_that_it_asks_for(rates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen:
        name = "seen"
        shape: tuple[int, ...] = ()

        def __call__(self, video: Video, prompts: Sequence[str]) -> torch.Tensor:
            self.shape = tuple(video.shape)
            return video.mean((1, 2, 3, 4))

    reward, whole = Seen(), read_frames(rates / "60.mp4", 16.0)[None]
    monkeypatch.setattr(files, "NUMBERS_HELD", 8 * 3 * 64 * 96)
    score, _, _ = VideoFile(rates / "60.mp4", 16.0).score(Member(reward, frames=4), "")
    chosen = torch.linspace(0, 47, 4).round().long()
    assert reward.shape == (1, 4, 3, 64, 96) and score.item() == pytest.approx(whole[:, chosen].mean().item(), rel=1e-5)
    with pytest.raises(UserError, match=r"more than 8 frames of 96 x 64 pixels are too many.*seen,frames=32"):
        VideoFile(rates / "60.mp4", 16.0).score(Member(reward), "")


def test_videos_of_any_suffix_and_case_are_found_and_the_rest_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ["A.MP4", "b.MOV", "c.m4v", "d.mpg", "e.gif", "f.WebM"]
    for name in [*found, "notes.txt", "0001.part.mp4", ".hidden.mp4"]:
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    paths, prompts = videos_in(tmp_path, "a cat")
    assert [path.name for path in paths] == found and prompts == ["a cat"] * 6
    said = capsys.readouterr().err
    assert "3 left out (no whole videos by their names): 0001.part.mp4, more, notes.txt" in said
    with pytest.raises(UserError, match="give --prompt"):
        videos_in(tmp_path, None)


def test_what_several_processes_made_is_read_from_all_their_lists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in range(2):
        lines = [
            json.dumps({"file": f"000{n}.mp4", "prompt": f"a\u2028{n}"}, ensure_ascii=False) for n in (rank, rank + 2)
        ]
        (tmp_path / f"videos.rank{rank}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in ("0000.mp4", "0001.mp4", "other.MP4"):
        (tmp_path / name).touch()
    paths, prompts = videos_in(tmp_path, None)
    assert [path.name for path in paths] == [f"000{n}.mp4" for n in range(4)]
    assert prompts == [f"a\u2028{n}" for n in range(4)]
    assert "1 left out (videos.jsonl does not list them): other.MP4" in capsys.readouterr().err
    assert files_and_prompts([tmp_path / "0002.mp4", tmp_path / "other.MP4"], None)[1] == ["a\u20282", ""]
    (tmp_path / "videos.rank2.jsonl").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match=r"rank2.jsonl: not what `astrolabe generate` writes"):
        videos_in(tmp_path, None)


def test_rewards_are_compared_at_one_rate(rates: Path, tmp_path: Path) -> None:
    for number, rate in enumerate((8, 16, 24)):
        write_mp4(tmp_path / f"{number}.mp4", scene(rate) * (number + 1) / 3, rate)
    assert correlate("pixel_motion", "pixel_saturation,frames=3", tmp_path, "x", None).scores.shape == (2, 3)


def test_a_long_file_is_scored_without_holding_it(rates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "NUMBERS_AT_ONCE", 2 * 3 * 64 * 96)
    held: list[int] = []
    make = pixels.to_video

    def watched(frames: torch.Tensor) -> Video:
        held.append(frames.shape[1])
        return make(frames)

    monkeypatch.setattr(pixels, "to_video", watched)
    (score,) = score_files("pixel_motion", [rates / "60.mp4"], [""], None)
    expected = read_frames(rates / "60.mp4", 16.0).diff(dim=0).abs().mean().item()
    assert score.score == pytest.approx(expected, rel=1e-5) and max(held) == 3 and len(held) > 20
