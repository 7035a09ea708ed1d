"""``astrolabe rewards``, and training on a reward of one's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from astrolabe import train as training
from astrolabe.cli import main
from astrolabe.recipes.shapes import shapes_tiny
from astrolabe.rewards.settings import KNOWN, RewardSettings
from astrolabe.rollout.settings import WindowSettings
from astrolabe.runtime.checkpoint import load_tensors
from astrolabe.runtime.config import save_yaml
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.video import write_mp4
from astrolabe.train import train
from tests.e2e.test_commands import fails

PROMPTS = ("a red circle", "a blue square", "a green cross", "a cat")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``astrolabe generate`` leaves it, with a file that is no video."""
    folder = tmp_path_factory.mktemp("videos")
    lines = []
    for number, prompt in enumerate(PROMPTS):
        video = torch.rand(5, 3, 32, 48, generator=torch.Generator().manual_seed(number)) * (number + 1) / 4
        write_mp4(folder / f"{number:04d}.mp4", video, 16)
        lines.append(json.dumps({"file": f"{number:04d}.mp4", "prompt": prompt}))
    (folder / "0004.mp4").write_text("no video", encoding="utf-8")
    lines.append(json.dumps({"file": "0004.mp4", "prompt": "nothing"}))
    (folder / "videos.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_rewards_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    main(["rewards", "list"])
    said = capsys.readouterr().out
    assert all(name in said for name in KNOWN) and "MizzenAI/HPSv3" in said


def test_a_new_reward_passes_its_own_check_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["rewards", "new", "Redness"])
    assert "redness.py:Redness" in capsys.readouterr().out
    main(["rewards", "check", "redness.py:Redness"])
    assert "NO" not in capsys.readouterr().out
    cfg = replace(shapes_tiny(), rewards=(RewardSettings(name="redness.py:Redness"),))
    save_yaml(cfg, tmp_path / "mine.yaml")
    main(["train", "mine.yaml", "--trust-code", "--out", "run"])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 and "reward/redness" in json.loads(lines[0])


def test_code_that_a_config_brings_is_not_run_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("open('ran', 'w')\nclass Bad: ...\n", encoding="utf-8")
    save_yaml(replace(shapes_tiny(), rewards=(RewardSettings(name="bad.py:Bad"),)), tmp_path / "mine.yaml")
    assert "names code to run: bad.py:Bad" in fails(["train", "mine.yaml", "--out", "run"], capsys)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "run").exists()


def test_a_reward_that_breaks_the_rules_is_told_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "odd.py").write_text(
        "import torch\nclass Odd:\n    name = 'odd'\n    def __call__(self, video, prompts):\n"
        "        video.mul_(0.5)\n        return torch.rand(len(video)) + torch.arange(len(video))\n", encoding="utf-8"
    )  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main(["rewards", "check", f"{tmp_path / 'odd.py'}:Odd"])
    out = capsys.readouterr().out
    assert stop.value.code == 1
    for rule in ("leaves its input alone", "repeats itself", "judges each video alone"):
        assert any(line.split()[0] == "NO" for line in out.splitlines() if rule in line), rule


def test_files_are_scored_one_by_one_and_a_bad_one_is_named(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["rewards", "score", "pixel_saturation", str(videos), "--cache", str(tmp_path / "scores")])
    out, err = capsys.readouterr()
    assert stop.value.code == 1 and "1 of 5 could not be judged" in err
    scores = [float(line.split()[0]) for line in out.splitlines()[:4]]
    assert scores == sorted(scores) and "0004.mp4: neither an image nor a video" in out
    main(["rewards", "score", "pixel_saturation", str(videos / "0001.mp4"), "--cache", str(tmp_path / "scores")])
    assert float(capsys.readouterr().out.split()[0]) == scores[1]


def test_two_rewards_are_compared_by_rank(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    main(["rewards", "correlate", "pixel_saturation", "pixel_saturation,frames=2", "--videos", str(videos),
          "--out", str(out)])  # fmt: skip
    said, err = capsys.readouterr()
    assert said.startswith("rank correlation 1.000 [") and "over 4 videos" in said and "left out: 0004.mp4" in err
    assert "pixel_saturation,frames=2" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("check", "hspv3"), "did you mean hpsv3"),
        (("score", "joint,frames", "x.mp4"), "'frames' is no setting; write NAME,frames=8"),
        (("score", "hpsv3,model.best_share=2", "x.mp4"), "best_share"),
        (("correlate", "joint", "shape", "--videos", "nowhere"), "no videos there"),
        (("new", "two words"), "is no name for a class"),
        (("score", "pixel_motion"), "required"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert said in fails(["rewards", *words], capsys)


@pytest.mark.parametrize("streams", [False, True])
def test_a_run_that_a_reward_stopped_goes_on_with_the_same_bytes(
    streams: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flaky.py").write_text(
        "import pathlib\nclass Flaky:\n    name = 'flaky'\n    calls = 0\n"
        "    def __call__(self, video, prompts):\n        Flaky.calls += 1\n"
        f"        broken = pathlib.Path({str(tmp_path / 'broken')!r}).exists()\n"
        "        if Flaky.calls > 2 and broken: raise ValueError('tired')\n"
        "        return video.mean((1, 2, 3, 4))\n", encoding="utf-8"
    )  # fmt: skip
    window = WindowSettings(frames=6, video_frames=18, per_stream=3) if streams else WindowSettings(frames=6)
    rewards = (RewardSettings(name=f"{tmp_path / 'flaky.py'}:Flaky"),)
    cfg = replace(shapes_tiny(), steps=4, checkpoint_every=9, window=window, rewards=rewards)
    whole = train(cfg, tmp_path / "whole")
    (tmp_path / "broken").touch()
    with pytest.raises(UserError, match=r"step 3: 4 of 4 samples got no .*ValueError: tired; .* the same command goes"):
        train(cfg, tmp_path / "parts")
    (tmp_path / "broken").unlink()
    parts = training.train(cfg, tmp_path / "parts")
    one, other = (load_tensors(folder / "adapter.safetensors")[0] for folder in (whole, parts))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
