"""Processes that torchrun started: one that dies or falls silent is named by another, with its last place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.test_torchrun import ended, torchrun

SCRIPT = """
import os, signal, time
from astrolabe.cli import refuse
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.interrupts import graceful_interrupt
from astrolabe.runtime.launched import together

try:
    with together(patience=8.0) as world, graceful_interrupt() as stop:
        world.at("warming up")
        assert world.gather(world.rank) == [0, 1]
        if world.rank == 1:
            {fault}
        while True:
            list(world.shared(range(5), lambda item: item))
except UserError as error:
    refuse(str(error))
"""
FAULTS = {"dies": "os.kill(os.getpid(), signal.SIGKILL)", "falls silent": "while not stop.requested: time.sleep(0.1)"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_process_that_is_missing_is_named_with_its_last_place(fault: str, tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(SCRIPT.format(fault=FAULTS[fault]))
    code, said = ended(torchrun(2, program=[str(tmp_path / "work.py")]))
    assert code != 0 and len(said) == 1 and "process 2 of 2, last seen in warming up," in said[0], said
