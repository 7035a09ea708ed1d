"""What the documentation says of speed and memory is what was measured."""

from __future__ import annotations

import json

from benchmarks import generation, loading


def test_loading_takes_hardly_more_memory_than_the_file() -> None:
    runs = json.loads(loading.RESULT.read_text(encoding="utf-8"))["runs"]
    assert {run["format"] for run in runs} == {".pt", ".safetensors"}
    for run in runs:
        assert run["file_bytes"] > 1.9e9 and run["peak_over_file"] <= 1.2


def test_memory_does_not_grow_with_the_video() -> None:
    result = json.loads(generation.RESULT.read_text(encoding="utf-8"))
    peaks = [run["peak_bytes"] for run in result["runs"]]
    assert {run["latent_frames"] for run in result["runs"]} >= {21, 4098}
    assert max(peaks) / min(peaks) < 1.02
    assert len({run["cache_bytes"] for run in result["runs"]}) == 1
