"""Every command from end to end on the embedded model, as a user meets it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from astrolabe.cli import main
from astrolabe.runtime.checkpoint import load_tensors, save_tensors
from astrolabe.runtime.files import claimed
from astrolabe.runtime.tracking import read_metrics
from astrolabe.shapes.captions import split

TINY = ["train", "shapes_tiny", "--model.dtype", "float32"]


def fails(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail as a user's mistake: exit code 2 and one line, which is returned."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("astrolabe: ") and error.count("\n") == 1 and "Traceback" not in error
    return error


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four tiny steps."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    main([*TINY, "--steps", "4", "--out", str(folder)])
    return folder


def test_train_leaves_an_adapter_metrics_and_a_configuration_to_train_from_again(run: Path, tmp_path: Path) -> None:
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [0, 1, 2, 3]
    again = tmp_path / "again"
    main(["train", str(run / "config.yaml"), "--out", str(again)])
    assert (again / "adapter.safetensors").read_bytes() == (run / "adapter.safetensors").read_bytes()


def test_training_moves_the_adapter(run: Path) -> None:
    tensors = load_file(run / "adapter.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)


def test_a_run_killed_and_resumed_ends_with_the_same_adapter_bytes(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "astrolabe", *TINY, "--steps", "4", "--out", str(folder)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": "src"}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    try:
        while not list((folder / "checkpoints").glob("step_*")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    main([*TINY, "--steps", "4", "--out", str(folder)])
    assert (folder / "adapter.safetensors").read_bytes() == (run / "adapter.safetensors").read_bytes()
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == [0, 1, 2, 3]


def test_ctrl_c_checkpoints_exits_130_and_the_run_goes_on_to_the_same_end(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    command = [sys.executable, "-m", "astrolabe", *TINY, "--steps", "4", "--out", str(folder)]
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": "src"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 1/"):
            break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130 and error.count("\n") == 1 and "goes on from there" in error
    assert not (folder / "adapter.safetensors").exists()
    main([*TINY, "--steps", "4", "--out", str(folder)])
    assert (folder / "adapter.safetensors").read_bytes() == (run / "adapter.safetensors").read_bytes()


def test_evaluate_and_report_fill_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astrolabe.evaluation.suites.split", lambda name: split(name)[:4])
    main(["evaluate", str(run), "--no-long"])
    result = json.loads((run / "evaluation.json").read_text())
    assert {"joint", "cleanliness", "flicker"} <= result["measures"].keys()
    assert result["measures"]["joint"].keys() == {"base", "aligned", "difference", "ci95"}
    main(["report", str(run)])
    assert (run / "report.html").read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html")


def test_generate_writes_playable_videos_and_a_line_each(run: Path, tmp_path: Path) -> None:
    import av

    out = tmp_path / "videos"
    main(["generate", "--adapter", str(run), "--prompt", "a red circle moving left", "--prompt", "blue square, up",
          "--frames", "6", "--out", str(out)])  # fmt: skip
    lines = [json.loads(line) for line in (out / "videos.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["a red circle moving left", "blue square, up"]
    for line in lines:
        with av.open(str(out / line["file"])) as video:
            assert sum(1 for _ in video.decode(video=0)) == line["frames"] == 21


def test_help_shows_every_field_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--help"])
    page = capsys.readouterr().out
    for field in ("--seed", "--rollout.group_size", "--algorithm.beta", "--optimizer.lr", "--rewards.N.weight"):
        assert page.count(f"  {field} ") == 1
    assert "learning rate" in page and "latent frames" in page


@pytest.mark.parametrize("recipe", ["shapes", "longlive"])
def test_a_help_page_fits_a_narrow_terminal_and_has_every_field_once(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["train", recipe, "--help"])
    lines = capsys.readouterr().out.splitlines()
    fields = [line.split()[0] for line in lines[lines.index("recipes:") :] if line.startswith("  --")]
    assert max(map(len, lines)) <= 80 and len(set(fields)) == len(fields) > 60
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "shaps"], "did you mean shapes"),
        (["train"], "needs a recipe"),
        (["train", "nowhere.yaml"], "nowhere.yaml"),
        ([*TINY, "--rollout.groupsize", "3"], "rollout.group_size"),
        ([*TINY, "--optimizer.lr", "fast"], "number"),
        ([*TINY, "--optimizer.lr", "-1"], "> 0"),
        ([*TINY, "--window.frames", "7"], "nearest are 6 and 9"),
        ([*TINY, "--rewards.0.name", "beauty"], "shape_fit"),
        ([*TINY, "--algorithm.levels_per_sample", "5"], "at most 4"),
        ([*TINY, "stray"], "stray"),
        ([*TINY, "--model.device", "gpu"], "model.device=gpu"),
        ([*TINY, "--seed", "99999999999999999999"], "seed"),
        ([*TINY, "--optimizer.betas", "1.5,0.9"], "betas"),
        (["train", "--steps", "1", "shapes_tiny"], "before the fields"),
        ([*TINY, "--out", "/proc/nowhere"], "/proc"),
        (["fly"], "fly"),
        (["evaluate", "nowhere"], "is no run"),
        (["report", "nowhere"], "is no run"),
        (["generate", "--prompt", "a red circl moving left", "--out", "unused"], "circle"),
        (
            ["generate", "--prompt", "a red circle moving left", "--frames", "5", "--out", "unused"],
            "nearest are 3 and 6",
        ),
        (["generate", "--prompts", "nowhere.txt", "--out", "unused"], "nowhere.txt"),
        (["generate", "--prompt", "a red circle", "--prompts", "x", "--out", "unused"], "not allowed with"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in fails(argv, capsys)
    assert list(tmp_path.iterdir()) == [], "nothing may be left behind"


def test_a_prompt_file_that_does_not_belong_to_the_world_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content, words in (
        (b"", "no prompts"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"a purple circle moving left", "purple"),
    ):
        file = tmp_path / "prompts.txt"
        file.write_bytes(content)
        assert words in fails([*TINY, "--prompts", str(file), "--out", str(tmp_path / "out")], capsys)
        assert not (tmp_path / "out").exists()


def test_a_run_is_never_overwritten(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = (run / "adapter.safetensors").read_bytes()
    assert "another configuration" in fails([*TINY, "--steps", "4", "--seed", "9", "--out", str(run)], capsys)
    main([*TINY, "--steps", "4", "--out", str(run)])  # the same again: already done
    assert (run / "adapter.safetensors").read_bytes() == before
    (tmp_path / "mine.txt").write_text("precious")
    assert "is no run" in fails([*TINY, "--out", str(tmp_path)], capsys)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_two_processes_cannot_work_in_one_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with claimed(run):
        assert "another process" in fails([*TINY, "--steps", "4", "--out", str(run)], capsys)


def test_a_prompt_file_that_changed_is_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a red circle moving left\na pulsing blue square\n")
    command = [*TINY, "--prompts", str(prompts), "--out", str(out)]
    main(command)
    (out / "adapter.safetensors").unlink()
    prompts.write_text("a red circle moving left\na pulsing green square\n")
    assert "other prompts" in fails(command, capsys)


def test_a_prompt_that_the_encoder_cannot_take_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle moving left\n" + "a " * 14 + "red circle left\n")
    assert "words" in fails([*TINY, "--prompts", str(prompts), "--out", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()


def test_a_truncated_checkpoint_is_refused_and_left_as_it_is(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    (broken / "adapter.safetensors").unlink()
    state = broken / "checkpoints" / "step_000004" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    assert "safetensors" in fails([*TINY, "--steps", "4", "--out", str(broken)], capsys)
    assert state.stat().st_size == 1000


def test_an_adapter_of_another_model_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("alpha: 8.0", "alpha: 800.0"))
    assert "alpha" in fails(["evaluate", str(other)], capsys)
    tensors, metadata = load_tensors(run / "adapter.safetensors")
    save_tensors(other / "adapter.safetensors", tensors, metadata | {"base": "0" * 64})
    assert "another model" in fails(["evaluate", str(other)], capsys)


def test_memory_that_does_not_suffice_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore lines")

    monkeypatch.setattr("astrolabe.training.train", too_much)
    assert "Tried to allocate 9 GiB.; use smaller micro_batch" in fails(TINY, capsys)
