"""What may change when a run goes on, and what becomes of its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from astrolabe.experiment import TrainConfig, files_of
from astrolabe.recipes.shapes import shapes_tiny
from astrolabe.runs.folder import ADAPTER, RunFolder
from astrolabe.runs.history import HISTORY, Origin, events, found_again, located
from astrolabe.runs.session import chronicled
from astrolabe.runtime.checkpoint import save_tensors
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.tracking import MetricsLog

CFG = replace(shapes_tiny(), steps=4, prompts="prompts.txt")


def begun(
    folder: Path, cfg: TrainConfig = CFG, done: int = 0, finished: bool = False, guard: bool = False
) -> RunFolder:
    """A run as it lies on the disk after ``done`` steps, without training one."""
    run = RunFolder(folder)
    run.begin(cfg, Origin("tiny", "astrolabe train tiny"))
    for step in range(done):
        alarm = {"alarm/flicker/stop": 1.0} if guard and step + 1 == done else {}
        MetricsLog(folder / "metrics.jsonl").write(step, {"reward/joint": 0.1 * step, "seconds/rollout": 1.0} | alarm)
    if done:
        run.checkpoints.save(done, {"learner/w": torch.full((2,), float(done)), "other": torch.zeros(1)}, {"base": "b"})
    if finished:
        save_tensors(folder / ADAPTER, {"w": torch.full((2,), float(done))}, {"base": "b"})
    return run


@pytest.mark.parametrize(
    ("done", "note"), [(0, "the same command begins again"), (3, "the same command goes on after step 3")]
)
def test_an_interrupt_at_once_says_what_is_on_the_disk(done: int, note: str, tmp_path: Path) -> None:
    run = begun(tmp_path / "run", done=done)
    with pytest.raises(KeyboardInterrupt) as stop, chronicled(run):
        raise KeyboardInterrupt
    assert stop.value.__notes__ == [note]
    assert events(run.path)[-1]["what"] == "interrupted"


def with_micro_batch(cfg: TrainConfig, size: int) -> TrainConfig:
    return replace(cfg, rollout=replace(cfg.rollout, micro_batch=size))


def test_the_beginning_is_recorded_with_what_a_person_asks_for_later(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    (event,) = events(tmp_path / "run")
    assert event["recipe"] == "tiny" and event["command"] == "astrolabe train tiny" and event["steps"] == 4
    assert event["where"] == str(Path.cwd()) and event["version"] and event["time"].endswith("+00:00")


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint_every": 3}, {"checkpoints_kept": 5}, {"sample_every": 7}, {"tensorboard": True}, {"offload": True},
        {"rollout": replace(CFG.rollout, micro_batch=1)}, {"optimizer": replace(CFG.optimizer, chunks=1)},
        {"optimizer": replace(CFG.optimizer, gradient_checkpointing=True)},
        {"model": replace(CFG.model, device="cuda")},
    ],
)  # fmt: skip
def test_what_changes_no_result_may_change_and_the_configuration_says_so(change: Any, tmp_path: Path) -> None:
    run, cfg = begun(tmp_path / "run", done=2), replace(CFG, **change)
    found = run.examine(cfg)
    assert len(found) == 1 and not run.holds_another(cfg)
    run.go_on(found, Origin())
    assert run.written() == cfg
    assert events(run.path)[-1]["changes"] == [str(found[0])]


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"prompts": "train"}, {"init": "x"}, {"lora": replace(CFG.lora, rank=5)},
               {"optimizer": replace(CFG.optimizer, lr=1e-9)}, {"model": replace(CFG.model, dtype="bfloat16")}]
)  # fmt: skip
def test_what_changes_results_is_another_run(change: Any, tmp_path: Path) -> None:
    run = begun(tmp_path / "run", done=2)
    with pytest.raises(UserError, match="another configuration"):
        run.examine(replace(CFG, **change))
    with pytest.raises(UserError) as error:
        run.examine(with_micro_batch(replace(CFG, **change), 1))
    assert "micro_batch" not in str(error.value), "only what is in the way is named"


def test_steps_can_be_raised_and_lowered_to_what_is_done(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", done=2)
    for steps in (2, 3, 9):
        assert [change.name for change in run.examine(replace(CFG, steps=steps))] == ["steps"]
    with pytest.raises(UserError, match="has done 2 steps, --steps 1 is fewer; ask for at least 2"):
        run.examine(replace(CFG, steps=1))


def test_a_finished_run_is_done_unless_more_steps_are_asked_for(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", done=4, finished=True)
    assert run.already_done(CFG) and run.already_done(with_micro_batch(CFG, 1))
    assert not run.already_done(replace(CFG, steps=5))


def test_an_extended_run_keeps_adapter_evaluation_and_report_of_its_earlier_end(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", done=4, finished=True)
    (run.path / "evaluation.json").write_text("{}")
    (run.path / "report.html").write_text("the page")
    adapter = (run.path / ADAPTER).read_bytes()
    run.go_on(run.examine(replace(CFG, steps=6)), Origin())
    assert not run.finished and run.written().steps == 6
    assert (run.path / "adapter-step_000004.safetensors").read_bytes() == adapter
    assert (run.path / "evaluation-step_000004.json").exists() and not (run.path / "evaluation.json").exists()
    assert (run.path / "report-step_000004.html").exists() and not (run.path / "report.html").exists()


def test_a_run_that_a_guard_stopped_does_not_go_on(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", done=3, finished=True, guard=True)
    with pytest.raises(UserError, match=r"the guard of flicker stopped this run at step 3 of 4, .*--init"):
        run.examine(replace(CFG, steps=9))
    assert run.already_done(CFG)


def test_a_finished_run_without_checkpoints_cannot_be_extended(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", done=4, finished=True)
    (run.path / "checkpoints").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="its checkpoints are gone"):
        run.examine(replace(CFG, steps=9))
    assert run.done == 4


def test_a_folder_with_anything_else_in_it_is_refused_and_one_of_a_killed_beginning_is_not(tmp_path: Path) -> None:
    for name in (".lock", HISTORY):
        (tmp_path / name).write_text("")
    assert RunFolder(tmp_path).examine(CFG) == []
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="is no run"):
        RunFolder(tmp_path).examine(CFG)


# ------------------------------------------------------------------------------------------------------ relative paths


def test_a_relative_file_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    (home / "prompts.txt").write_text("a red circle still\n")
    monkeypatch.chdir(home)
    run = begun(Path("run"))
    assert run.config().prompts == "prompts.txt"
    monkeypatch.chdir(away)
    run = RunFolder(home / "run")
    assert run.config().prompts == str(home / "prompts.txt") and run.written().prompts == "prompts.txt"
    same = replace(CFG, prompts="../home/prompts.txt")
    assert run.examine(same) == [], "the same file by another name is the same run"
    (away / "prompts.txt").write_text("a blue square still\n")
    with pytest.raises(UserError, match=r"prompts: /.*/home/prompts.txt -> /.*/away/prompts.txt"):
        run.examine(CFG)


def test_a_file_that_has_moved_along_is_found_here_and_one_that_is_nowhere_is_told_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "prompts.txt").write_text("a red circle still\n")
    monkeypatch.chdir(home)
    begun(Path("run"))
    home.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert RunFolder(Path("run")).config().prompts == "prompts.txt"
    assert RunFolder(Path("run")).examine(CFG) == []
    (tmp_path / "moved" / "prompts.txt").unlink()
    assert RunFolder(Path("run")).config().prompts == str(home / "prompts.txt")


def test_names_of_files_may_have_something_behind_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.py", "a:b", "run@40"):
        (tmp_path / name).write_text("")
    (tmp_path / "run").mkdir()
    assert located("mine.py:Mine") == f"{tmp_path}/mine.py:Mine"
    assert located("a:b") == f"{tmp_path}/a:b"
    assert located("run@40") == f"{tmp_path}/run@40" and located("run@best") == f"{tmp_path}/run@best"
    assert located("owner/model") is None and located("package.module:Class") is None
    assert found_again({"x": "owner/model"}, {}) == {}


def test_words_of_the_programs_own_are_no_files_even_where_files_are_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "joint", "none"):
        (tmp_path / name).write_text("")
    assert files_of(replace(CFG, prompts="train")) == {}
    assert files_of(CFG) == {"prompts": "prompts.txt"}
