from __future__ import annotations

import builtins
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astrolabe.runtime.errors import UserError
from astrolabe.runtime.tracking import MetricsLog, TensorBoardLog, read_metrics
from astrolabe.runtime.video import gif_bytes, side_by_side


def log_of(path: Path, steps: int) -> MetricsLog:
    log = MetricsLog(path)
    for step in range(steps):
        log.write(step, {"reward": step / 2})
    return log


def test_a_step_is_one_line_that_can_be_read_at_once(tmp_path: Path):
    path = tmp_path / "run" / "metrics.jsonl"
    log_of(path, 2)
    assert path.read_text() == '{"step": 0, "reward": 0.0}\n{"step": 1, "reward": 0.5}\n'
    assert read_metrics(path)[1] == {"step": 1, "reward": 0.5}


def test_numbers_that_are_not_finite_survive_in_strict_json(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).write(0, {"a": math.nan, "b": -math.inf, "c": "text"})
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    (record,) = read_metrics(path)
    assert math.isnan(record["a"]) and record["b"] == -math.inf and record["c"] == "text"


def test_resuming_drops_the_steps_that_the_checkpoint_does_not_cover(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    log = log_of(path, 5)
    log.truncate_after(2)
    log.write(3, {"reward": 9})
    assert [record["step"] for record in read_metrics(path)] == [0, 1, 2, 3]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


@given(cut=st.integers(0, 200))
def test_a_log_cut_anywhere_is_read_up_to_the_cut_and_goes_on(tmp_path_factory: pytest.TempPathFactory, cut: int):
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    log_of(path, 6)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    kept = len(whole[:cut].splitlines()) if whole[:cut].endswith(b"}") else whole[:cut].count(b"\n")
    assert len(read_metrics(path)) == kept
    MetricsLog(path).write(99, {})
    assert [record["step"] for record in read_metrics(path)] == [*range(kept), 99]


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"reward": 1}', '{"step": "x"}'])
def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, line: str):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 0}}\n{line}\n{{"step": 1}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: "):
        read_metrics(path)


def test_a_missing_log_is_the_users_to_know(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_tensorboard_takes_the_numbers(tmp_path: Path):
    pytest.importorskip("tensorboard")
    with TensorBoardLog(tmp_path) as log:
        log.write(0, {"reward": 0.5, "note": "text"})
    assert list(tmp_path.glob("events.*"))


def test_a_missing_tensorboard_is_answered_with_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if "tensorboard" in name:
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'astrolabe-rl\[tensorboard\]'"):
        TensorBoardLog(tmp_path)


def test_tensorboard_shows_videos_side_by_side_and_what_was_asked(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    videos = torch.zeros(3, 5, 3, 8, 10, dtype=torch.uint8)
    videos[1, :, 0] = 255
    with TensorBoardLog(tmp_path) as log:
        log.show(7, "candidates", videos, 16, "a *red* circle")
    events = EventAccumulator(str(tmp_path), {"images": 0, "tensors": 0}).Reload()
    (found,) = events.Images("candidates")
    assert (found.step, found.width, found.height) == (7, 30, 8)
    with Image.open(io.BytesIO(found.encoded_image_string)) as gif:
        assert gif.format == "GIF" and gif.size == (30, 8) and gif.info["loop"] == 0
        frame = gif.convert("RGB")
        assert frame.getpixel((15, 4)) == (255, 0, 0) and frame.getpixel((5, 4)) == frame.getpixel((25, 4)) == (0, 0, 0)
    assert b"a *red* circle" in events.Tensors("candidates/text_summary")[0].tensor_proto.string_val[0]


def test_a_gif_has_every_frame_at_its_time() -> None:
    from PIL import Image, ImageSequence

    video = torch.arange(4, dtype=torch.uint8).mul(60)[:, None, None, None].expand(4, 3, 6, 6).contiguous()
    with Image.open(io.BytesIO(gif_bytes(video, 16))) as gif:
        assert len(ImageSequence.all_frames(gif)) == 4 and gif.info["duration"] == 60


@pytest.mark.parametrize(("count", "columns", "shape"), [(1, 6, (1, 1)), (4, 6, (1, 4)), (7, 3, (3, 3))])
def test_videos_stand_row_by_row(count: int, columns: int, shape: tuple[int, int]) -> None:
    videos = torch.randint(1, 255, (count, 2, 3, 4, 5), dtype=torch.uint8)
    sheet = side_by_side(videos, columns)
    assert sheet.shape == (2, 3, 4 * shape[0], 5 * shape[1])
    for place, video in enumerate(videos):
        row, column = divmod(place, shape[1])
        assert torch.equal(sheet[:, :, 4 * row : 4 * row + 4, 5 * column : 5 * column + 5], video)
