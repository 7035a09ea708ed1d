"""Where the time of a step goes: phases as scopes, timed, and reported to a listener."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Listener(Protocol):
    """Gets the phase that begins or continues, and how much is done; ``total`` is 0 where nothing is counted."""

    def __call__(self, phase: str, done: int, total: int) -> None: ...


def unheard(phase: str, done: int, total: int) -> None:
    """The listener that does nothing."""


class Clock:
    """Seconds of the phases of one step: ``with clock.phase("rollout"): ...``.

    A phase inside another stops the outer one meanwhile, so that the seconds of all phases add up to the time within
    any. A phase that is entered again goes on where it was.
    """

    def __init__(self, on_change: Listener = unheard, now: Callable[[], float] = time.monotonic):
        self.seconds: dict[str, float] = {}
        self._on_change, self._now = on_change, now
        self._counts: dict[str, tuple[int, int]] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[None]:
        """Time what happens within; ``total``: how many things there will be to ``reach``, if that is known anew."""
        self._charge()
        self._open.append(name)
        self.seconds.setdefault(name, 0.0)
        if total is not None:
            self._counts[name] = (0, total)
        self._tell()
        try:
            yield
        finally:
            self._charge()
            self._open.pop()
            if self._open:
                self._tell()

    def reach(self, done: int, total: int | None = None) -> None:
        """So many things of the phase in force, if there is one, are done now; of ``total`` if that is known only
        now."""
        if not self._open:
            return
        name = self._open[-1]
        self._counts[name] = (done, self._counts.get(name, (0, 0))[1] if total is None else total)
        self._tell()

    def _charge(self) -> None:
        now = self._now()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def _tell(self) -> None:
        self._on_change(self._open[-1], *self._counts.get(self._open[-1], (0, 0)))
