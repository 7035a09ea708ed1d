"""Ctrl-C at the command line: one line that says what it met."""

from __future__ import annotations

import pytest

from astrolabe import cli
from astrolabe.runtime.interrupts import Interrupted
from astrolabe.runtime.progress import progress


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def while_loading(*_: object) -> None:
    with progress("loading wan.pth", 4e9, "bytes") as task:
        task.advance(1e9)
        raise KeyboardInterrupt


def while_closing(*_: object) -> None:
    try:
        raise Interrupted("stopped after step 3 of 9; the same command goes on from there")
    finally:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (interrupted, "astrolabe: interrupted\n"),
        (while_loading, "astrolabe: interrupted while loading wan.pth, 1.0 of 4.0 GB\n"),
        (while_closing, "astrolabe: stopped after step 3 of 9; the same command goes on from there\n"),
    ],
)
def test_an_interrupt_at_once_says_what_it_interrupted(
    run: object, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "run", run)
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 130
    assert capsys.readouterr().err == said
