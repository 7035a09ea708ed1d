"""Stopping well: the first signal asks, the second insists."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from astrolabe.runtime.progress import announce


class Interrupted(Exception):
    """Work stopped on request; says what lies on disk."""


@dataclass
class Interrupt:
    """``requested`` turns true at the first SIGINT or SIGTERM; the loop reads it where it can stop."""

    requested: bool = False


@contextmanager
def graceful_interrupt(after: str = "step or sooner") -> Iterator[Interrupt]:
    """Hold back the first SIGINT or SIGTERM as ``.requested``; a second raises KeyboardInterrupt at once. The first is
    answered with what the work stops ``after``.

    The handlers of before are put back at the end. Python hears signals in the main thread only: in any other thread
    nothing is installed, and ``requested`` stays as the caller sets it.
    """
    interrupt = Interrupt()

    def handle(signum: int, frame: FrameType | None) -> None:
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True
        announce(f"stopping after this {after}; once more stops at once")

    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
