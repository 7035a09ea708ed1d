"""A clock and a terminal that tests hold in their hands."""

from __future__ import annotations

import io

import pytest


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Terminal(io.StringIO):
    """A file that somebody watches."""

    def isatty(self) -> bool:
        return True
