"""Training along streams, as a user meets it: windows, scripts, and a run that is killed in the middle of a video."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from astrolabe.cli import main
from astrolabe.runtime.checkpoint import load_tensors
from astrolabe.runtime.tracking import read_metrics
from astrolabe.shapes.settings import ShapesSettings
from tests.e2e.test_commands import fails

STREAMING = [
    "train", "shapes_tiny", "--model.dtype", "float32", "--steps", "5", "--window.frames", "6",
    "--window.start", "random", "--window.video_frames", "30", "--window.per_stream", "3",
    "--window.continue_with", "best",
]  # fmt: skip


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain prompts, and scripts that switch and cut, one of them inside every window."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text(
        "a red circle moving left\na blue square bouncing | a blue square moving up\n"
        "a green cross pulsing || a red cross pulsing || a green circle still | a red circle still\n"
    )
    return path


@pytest.fixture(scope="module")
def run(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run along streams."""
    folder = tmp_path_factory.mktemp("runs") / "streaming"
    main([*STREAMING, "--prompts", str(prompts), "--window.credit", "0.3", "--out", str(folder)])
    return folder


def test_windows_follow_one_another_along_a_stream_and_then_another_begins(run: Path) -> None:
    places = [line["window"] for line in read_metrics(run / "metrics.jsonl")]
    assert len(places) == 5 and places[1:3] == [places[0] + 6, places[0] + 12] and places[4] == places[3] + 6
    assert all(place % 3 == 0 and 0 <= place <= 24 for place in places)
    main(["report", str(run)])
    assert (run / "report.html").exists()


def test_a_run_killed_in_the_middle_of_a_stream_ends_with_the_same_bytes(
    run: Path, prompts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    words = [*STREAMING, "--prompts", str(prompts), "--window.credit", "0.3", "--out", str(folder)]
    environment = os.environ | {"PYTHONPATH": "src"}
    process = subprocess.Popen([sys.executable, "-m", "astrolabe", *words], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    try:
        while not (folder / "checkpoints" / "step_000002").exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert not (folder / "adapter.safetensors").exists()
    main(words)
    assert (folder / "adapter.safetensors").read_bytes() == (run / "adapter.safetensors").read_bytes()


def test_the_streams_are_in_the_checkpoint_only_while_they_last(run: Path) -> None:
    held = {
        path.name: any(key.startswith("windows/") for key in load_tensors(path / "state.safetensors")[0])
        for path in (run / "checkpoints").glob("step_*")
    }
    assert held and held == {name: int(name.split("_")[1]) % 3 != 0 for name in held}


def test_memory_knobs_change_nothing_but_memory(run: Path, prompts: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "small"
    main([*STREAMING, "--prompts", str(prompts), "--window.credit", "0.3", "--rollout.micro_batch", "1",
          "--optimizer.micro_batch", "1", "--optimizer.chunks", "1", "--optimizer.gradient_checkpointing", "true",
          "--offload", "true", "--out", str(folder)])  # fmt: skip
    one, two = load_file(run / "adapter.safetensors"), load_file(folder / "adapter.safetensors")
    moved = max(tensor.abs().max().item() for name, tensor in one.items() if "lora_B" in name)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=0.02 * moved)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--window.frames", "7"], "nearest are 6 and 9"),
        (["--window.video_frames", "31"], "nearest are 30 and 33"),
        (["--window.start", "choices", "--window.choices", "0,4"], "nearest are 3 and 6"),
        (["--window.start", "choices", "--window.choices", "0,21"], "the latest start is 12"),
        (["--window.start", "choices"], "window.choices"),
        (["--window.video_frames", "15"], "must be at least 18"),
        (["--rollout.group_size", "1"], ">= 2"),
        (["--rollout.micro_batch", "3"], "choose 1 to 2"),
        (["--optimizer.micro_batch", "3"], "optimizer.micro_batch=3: a prompt has 2 candidates"),
        (["--window.continue_with", "worst"], "best"),
        (["--prompts", "SCRIPT:a red circle still[1s] | a red circle moving up[1s]"], "lasts 2 s"),
        (["--prompts", "SCRIPT:a red circle still[0.1s] | a red circle moving up"], "chunk"),
        (["--prompts", "SCRIPT:a red circle still | a red sofa"], "sofa"),
    ],
)
def test_a_window_or_script_that_does_not_fit_is_one_line_before_anything_is_loaded(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShapesSettings, "open", lambda settings: pytest.fail("the model was loaded"))
    if words[-1].startswith("SCRIPT:"):
        file = tmp_path / "prompts.txt"
        file.write_text(words[-1].removeprefix("SCRIPT:") + "\n")
        words = [words[0], str(file)]
    assert said in fails([*STREAMING, *words, "--out", str(tmp_path / "run")], capsys)
    assert not (tmp_path / "run").exists()


def test_a_sink_that_is_larger_than_the_window_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n")
    words = ["train", "self_forcing", "--prompts", str(tmp_path / "prompts.txt"), "--model.sink_frames", "30",
             "--model.window_frames", "21", "--out", str(tmp_path / "run")]  # fmt: skip
    assert "must be at least 33" in fails(words, capsys)
