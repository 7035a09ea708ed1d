"""Several processes are one run: the same bytes however many there are, and one end for all of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from astrolabe.cli import main
from astrolabe.evaluation.paired import evaluate
from astrolabe.experiment import RewardSettings, ShapesSettings, TrainConfig
from astrolabe.recipes.shapes import shapes_grpo, shapes_tiny
from astrolabe.rl.settings import GuardSettings, RegularisationSettings, WatchSettings
from astrolabe.rollout.settings import RolloutSettings, WindowSettings
from astrolabe.rollout.window import Windows
from astrolabe.runs.folder import RunFolder
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.interrupts import Interrupted
from astrolabe.runtime.tracking import read_metrics
from astrolabe.trainer import Trainer
from astrolabe.training import train
from tests.e2e.test_commands import fails

PROMPTS = """a red circle moving left
a blue square bouncing | a blue square moving up
a green cross pulsing || a red cross pulsing || a green circle still | a red circle still
"""


class Impatient:
    """Asks to stop, once in every session: ``at(object, "method")`` when that has been called."""

    requested = False

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        Impatient.requested = False

    @staticmethod
    def at(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        usual = getattr(owner, name)

        def call(*args: Any, **more: Any) -> Any:
            found = usual(*args, **more)
            Impatient.requested = True
            return found

        monkeypatch.setattr("astrolabe.training.graceful_interrupt", Impatient)
        monkeypatch.setattr(owner, name, call)


def streaming(prompts: Path) -> TrainConfig:
    """Along streams of scripts, with history, guards, a judge, and samples that are held near a moving reference."""
    base = shapes_tiny()
    return replace(
        base,
        steps=3,
        prompts=str(prompts),
        model=ShapesSettings(dtype="float32"),
        rollout=RolloutSettings(prompts=3, group_size=2, micro_batch=1, side_by_side=1),
        window=WindowSettings(
            frames=6, start="choices", choices=(6,), video_frames=18, per_stream=2, credit=0.3, continue_with="best"
        ),
        rewards=(
            RewardSettings(name="joint", role="primary"),
            RewardSettings(name="shape_fit", weight=0.4),
            RewardSettings(name="steadiness", role="judge"),
        ),
        regularisation=RegularisationSettings(samples="selective", strength=0.04),
        watch=WatchSettings(guards=(GuardSettings(watch="motion_energy", below=9.0, steps=2),), memory=0.0),
        optimizer=replace(base.optimizer, minibatches=2, micro_batch=2, share=1.0),
        sample_every=1,
    )


def told(folder: Path) -> list[dict[str, Any]]:
    """What a run logged, but for the time it took."""
    lines = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith("seconds/")} for line in lines]


def made(folder: Path) -> dict[str, bytes]:
    """Every file of tensors that is no checkpoint."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("**/*.safetensors")
            if "checkpoints" not in path.parts}  # fmt: skip


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def begun(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A long run of two processes that has saved its first step."""
    command = [sys.executable, "-m", "astrolabe", "train", "shapes_tiny", "--steps", "999", "--processes", "2", *words]
    process = subprocess.Popen(
        [*command, "--out", str(folder)], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 240
    while not (folder / "checkpoints" / "step_000001").exists() and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


def test_one_process_and_others_that_take_turns_in_the_middle_of_streams_leave_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    cfg, alone, shared = streaming(tmp_path / "prompts.txt"), tmp_path / "alone", tmp_path / "shared"
    train(replace(cfg, processes=1), alone)
    Impatient.at(monkeypatch, Trainer, "perform")
    for count in (3, 2, 1):
        monkeypatch.setattr("astrolabe.training.process_count", lambda cfg, count=count: count)
        with pytest.raises(Interrupted):
            train(cfg, shared)
    train(cfg, shared)
    assert told(shared) == told(alone) and len(told(alone)) == 3
    assert made(shared) == made(alone) and len(made(alone)) >= 4
    assert any("alarm/motion_energy/warn" in line for line in told(alone)) and "judgement" in told(alone)[0]


def test_a_step_that_is_given_up_among_its_candidates_is_done_again_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    cfg, whole, halting = streaming(tmp_path / "prompts.txt"), tmp_path / "whole", tmp_path / "halting"
    train(replace(cfg, processes=1), whole)
    for step, count in enumerate((1, 2), 1):  # the second window of a stream is the second step's
        monkeypatch.setattr("astrolabe.training.process_count", lambda cfg, count=count: count)
        for owner, name, said in ((Windows, "_made", "stopped in"), (Trainer, "perform", "stopped after")):
            with monkeypatch.context() as patched, pytest.raises(Interrupted, match=f"{said} step {step} of 3"):
                Impatient.at(patched, owner, name)
                train(cfg, halting)
            assert RunFolder(halting).done == step - (owner is Windows)
    train(cfg, halting)
    assert told(halting) == told(whole) and made(halting) == made(whole)


def test_two_processes_learn_along_the_samplers_way_what_one_does(tmp_path: Path) -> None:
    base = shapes_tiny()
    rollout = RolloutSettings(prompts=2, group_size=4, micro_batch=2)  # two batches of both prompts
    cfg = replace(base, algorithm=shapes_grpo().algorithm, rollout=rollout, model=ShapesSettings(dtype="bfloat16"))
    for count in (1, 2):
        train(replace(cfg, processes=count), tmp_path / str(count))
    assert told(tmp_path / "1") == told(tmp_path / "2") and made(tmp_path / "1") == made(tmp_path / "2")


def test_a_process_that_is_killed_ends_the_run_in_one_line(tmp_path: Path) -> None:
    process = begun(tmp_path / "run")
    (child,) = children(process.pid)
    os.kill(child, signal.SIGKILL)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 2 and error.count("\n") == 1 and "process 2 of 2 was killed by SIGKILL" in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_of_several_processes_stops_soon_and_leaves_nobody_behind(number: signal.Signals, tmp_path: Path) -> None:
    process = begun(tmp_path / "run")
    (child,) = children(process.pid)
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 130 and "the same command" in error and "Traceback" not in error
    assert not Path(f"/proc/{child}").exists()
    steps = [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    newest = max(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert newest == f"step_{len(steps):06d}" and steps == list(range(len(steps)))


def test_videos_are_measured_alike_by_any_number_of_processes(tmp_path: Path) -> None:
    folder = RunFolder(train(replace(shapes_tiny(), steps=1), tmp_path / "run"))
    found = []
    for count in (1, 3):
        result = evaluate(folder, "validation", (1, 2), batch=20, processes=count, long=False)
        found.append((result | {"seconds": 0}, (folder.path / "evaluation-validation.safetensors").read_bytes()))
    assert found[0] == found[1]


def test_videos_are_made_alike_by_any_number_of_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text(PROMPTS + "a red square moving up\na blue circle moving down\n")
    words = ["generate", "--prompts", str(tmp_path / "prompts.txt"), "--seconds", "3.5", "--latents", "--processes"]
    for count in ("1", "2"):
        main([*words, count, "--out", str(tmp_path / count)])
    one, two = (sorted((tmp_path / count).iterdir()) for count in ("1", "2"))
    assert [path.name for path in one] == [path.name for path in two] and len(one) == 11
    for mine, theirs in zip(one, two, strict=True):
        assert mine.suffix == ".jsonl" or mine.suffix == ".safetensors" or mine.read_bytes() == theirs.read_bytes()
        if mine.suffix == ".safetensors":
            assert torch.equal(load_file(mine)["latents"], load_file(theirs)["latents"])
    orders = [[json.loads(line)["video"] for line in (tmp_path / count / "videos.jsonl").read_text().splitlines()]
              for count in ("1", "2")]  # fmt: skip
    assert orders[0] == orders[1] and sorted(orders[0]) == [0, 1, 2, 3, 4]
    said = capsys.readouterr().out.splitlines()
    assert [Path(line).name for line in said] == [f"{number:04d}.mp4" for number in orders[0] * 2]


@pytest.mark.parametrize("command", [["evaluate", "OUT"], ["demo", "--out", "OUT"]])
def test_what_torchrun_starts_several_times_over_is_refused_by_all_and_said_by_one(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(tmp_path / "run") if word == "OUT" else word for word in command]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "torchrun has started 2 processes" in fails(words, capsys)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2 and capsys.readouterr() == ("", "") and not (tmp_path / "run").exists()
    monkeypatch.setenv("RANK", "one")
    assert "RANK=one, WORLD_SIZE=2" in fails(words, capsys)


def test_where_nobody_says_there_is_a_process_for_every_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def started(size: int, *_: object) -> None:
        sizes.append(size)
        raise UserError("enough is known")

    monkeypatch.setattr("astrolabe.training.processes", started)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with pytest.raises(UserError, match="enough is known"):
                train(shapes_tiny(), tmp_path / "run")
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert sizes == [1, 2]


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5", ""])
def test_a_number_of_processes_is_auto_or_one_or_more(
    number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["evaluate", str(tmp_path)], ["generate", "--prompt", "a", "--out", str(tmp_path / "out")]):
        assert "expected auto, or at least 1" in fails([*words, f"--processes={number}"], capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--processes", "0"], "expected auto, or at least 1"),
        (["--processes", "many"], "auto"),
        (["--processes", "100000"], "each process holds the model; choose at most"),
        (["--processes", "2", "--pool.backend", "ray"], "the pool has the processes"),
        (["--processes", "2", "--model.device", "cuda"], "one process drives cuda"),
    ],
)
def test_processes_that_make_no_sense_are_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in fails(["train", "shapes_tiny", *words, "--out", str(tmp_path / "run")], capsys)
