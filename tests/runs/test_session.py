"""What is said when a run goes on, and when it ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from astrolabe.runs.folder import ADAPTER
from astrolabe.runs.history import Origin, events
from astrolabe.runs.session import announce, chronicled, ending
from astrolabe.runtime.checkpoint import save_tensors
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.interrupts import Interrupted
from tests.runs.test_folder import CFG, begun, with_micro_batch


def test_the_last_line_says_how_a_run_ended(tmp_path: Path) -> None:
    whole = begun(tmp_path / "whole", done=4, finished=True)
    assert ending(whole) == f"finished, 4 steps: {whole.path}"
    assert ending(whole, already=True) == f"already done: {whole.path} (finished, 4 steps)"
    extended = begun(tmp_path / "extended", replace(CFG, steps=2), done=2)
    extended.go_on(extended.examine(replace(CFG, steps=4)), Origin())
    assert ending(extended) == f"finished, 4 steps (extended from 2): {extended.path}"
    guarded = begun(tmp_path / "guarded", done=3, finished=True, guard=True)
    assert ending(guarded) == f"stopped by the guard of flicker at step 3 of 4: {guarded.path}"
    save_tensors(guarded.path / ADAPTER, {"w": torch.zeros(1)}, {"step": "1"})
    assert "at step 3 of 4; its adapter is that of step 1: " in ending(guarded)


def test_what_changes_is_announced_with_what_it_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cosine = replace(CFG, optimizer=replace(CFG.optimizer, lr=5e-4))
    constant = replace(CFG, optimizer=replace(CFG.optimizer, schedule="constant", warmup=0))
    for base, said in ((constant, False), (cosine, True)):
        run = begun(tmp_path / f"run{said}", base, done=2)
        cfg = replace(with_micro_batch(base, 1), steps=8, sample_every=3)
        announce(run, run.examine(cfg), cfg)
        error = capsys.readouterr().err
        assert "sample_every: 10 -> 3 (the same results)\n" in error
        assert "rollout.micro_batch: 2 -> 1 (the same results, to rounding)\n" in error
        assert ("from step 3 on it is that of a run of 8 (0.00025 -> 0.000427)" in error) == said
        assert error.count("\n") == 2 + said


@pytest.mark.parametrize(
    ("error", "what", "why"),
    [
        (Interrupted("stopped"), "interrupted", ""), (KeyboardInterrupt(), "interrupted", ""),
        (UserError("a reward is tired"), "failed", "a reward is tired"),
        (MemoryError("too large"), "failed", "MemoryError: too large"),
    ],
)  # fmt: skip
def test_a_session_that_breaks_off_is_in_the_history(error: BaseException, what: str, why: str, tmp_path: Path) -> None:
    run = begun(tmp_path / "run", done=2)
    with pytest.raises(type(error)), chronicled(run):
        raise error
    assert (events(run.path)[-1]["what"], events(run.path)[-1]["step"], events(run.path)[-1]["why"]) == (what, 2, why)


def test_a_history_that_cannot_be_written_does_not_hide_why_a_session_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("astrolabe.runs.session.record", full)
    with pytest.raises(RuntimeError, match="the reason"), chronicled(begun(tmp_path / "run", done=2)):
        raise RuntimeError("the reason")
