"""How far work has come: whatever takes a while says so with ``progress``, and one screen a process shows it.

On a terminal that is a bar, drawn by ``runtime.terminal`` and gone when the work is done. Anywhere else (a pipe, a
file, CI) nothing is shown of what is quick, and of what is slow one line a minute, so that no log is silent for long.
Work knows nothing of terminals, and nothing that works need be handed a display.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self, TextIO

SILENCE = 60.0  # seconds without a line after which a log hears how far the work is
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def clock() -> float:
    """Seconds, of a clock that never goes back."""
    return time.monotonic()


@dataclass
class Task:
    """Work and how far it has come. ``unit`` is ``"bytes"`` or the plural of what is counted; ``total`` None:
    unknown; ``note``: what else is to be seen of it."""

    name: str
    total: float | None = None
    unit: str = ""
    done: float = 0.0
    note: str = ""
    began: float = field(default_factory=clock)

    def advance(self, by: float = 1.0) -> None:
        """So much more is done."""
        self.done += by

    @property
    def share(self) -> float | None:
        """What is done of the whole, from 0 to 1; None when that is unknown."""
        total = self.total  # read once: another thread may be looking
        return min(max(self.done / total, 0.0), 1.0) if total else None

    @property
    def amount(self) -> str:
        """``12 of 48 candidates``, ``1.2 of 28.6 GB``, ``12 candidates``; empty for what is not counted."""
        scale, unit, total = 1.0, self.unit, self.total
        if unit == "bytes":
            unit, scale = next(((name, one) for name, one in UNITS if max(total or 0, self.done) >= one), UNITS[-1])
        form = ".1f" if scale > 1 else ".0f"
        if total:
            return f"{self.done / scale:{form}} of {total / scale:{form}} {unit}".rstrip()
        return f"{self.done / scale:{form}} {unit}".rstrip() if self.done else ""

    def seconds(self) -> float:
        """Since it began."""
        return clock() - self.began

    def left(self) -> float | None:
        """Seconds to go at the speed so far; None when that cannot be told."""
        share = self.share
        return self.seconds() * (1 / share - 1) if share else None

    def __str__(self) -> str:
        """``hashing the base model: 1.2 of 28.6 GB, 1m 02s``."""
        return f"{self.name}: {', '.join(part for part in (self.amount, duration(self.seconds()), self.note) if part)}"


def duration(seconds: float) -> str:
    """``45s``, ``4m 05s``, ``2h 07m``, ``3d 04h``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}h"
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


class Screen:
    """What shows the tasks that are at work. A thread of its own draws, so that what is shown moves while the work is
    inside one long operation; a screen that can no longer be written to is given up, not the work."""

    period = 5.0  # seconds between looks at the tasks

    def __init__(self, out: TextIO) -> None:
        if isinstance(out, TextIOWrapper):  # where letters are missing, better an escape than no line
            out.reconfigure(errors="backslashreplace")
        self.out = out
        self.tasks: list[Task] = []
        self._words: SimpleQueue[str | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._thread.start()
        _screens.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _screens.remove(self)
        self._words.put(None)
        try:
            if self._thread is not None:
                self._thread.join()
        finally:
            self.close()  # also when an interrupt insists: the terminal gets its cursor back

    def announce(self, text: str) -> None:
        """``say``, from a signal handler: the thread says it, for the handler may have interrupted a print."""
        self._words.put(text)

    def say(self, text: str) -> None:
        """A line that stays."""
        raise NotImplementedError

    def draw(self) -> None:
        """Show how things are, if it is time to."""
        raise NotImplementedError

    def stepped(self) -> None:
        """A step of training is done."""

    def close(self) -> None:
        """Draw no more."""

    def _watch(self) -> None:
        try:
            while True:
                try:
                    text = self._words.get(timeout=self.period)
                except Empty:
                    self.draw()
                    continue
                if text is None:
                    return
                self.say(text)
        except (OSError, ValueError):  # the terminal or the file is gone
            return


class Lines(Screen):
    """A line for what has been at work in silence for ``SILENCE`` seconds."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._spoke = clock()

    def say(self, text: str) -> None:
        print(text + "\n", file=self.out, end="", flush=True)  # one write: threads do not cut each other's lines
        self._spoke = clock()

    def draw(self) -> None:
        if clock() - self._spoke >= SILENCE and (text := self.state()):
            self.say(text)

    def state(self) -> str:
        """What is at work, in a line; empty when nothing is."""
        return str(self.tasks[-1]) if self.tasks else ""


_screens: list[Screen] = []
_silent = False


def silence() -> None:
    """From here on this process shows nothing: another one does, which does the same work beside it."""
    global _silent
    _silent = True


def is_silent() -> bool:
    """Whether another process shows what this one does."""
    return _silent


def is_terminal(stream: TextIO) -> bool:
    """Whether ``stream`` is watched: a terminal that can move its cursor, and not the one of a CI's log."""
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown") or os.environ.get("CI", "") not in ("", "false")
    return not dumb and not stream.closed and stream.isatty()


@contextmanager
def progress(name: str, total: float | None = None, unit: str = "", own_bar: bool = False) -> Iterator[Task]:
    """Work named ``name`` (``loading wan.pth``) is being done in this scope; tell the task how far it is.

    Inside other work it is shown beside that. Of silent processes nothing is shown, and on a terminal nothing of work
    with an ``own_bar``, which another library draws there. KeyboardInterrupt leaves with a note that says what was
    interrupted.
    """
    task = Task(name, total, unit)
    with _some_screen(own_bar) as screen:
        screen.tasks.append(task)
        try:
            yield task
        except KeyboardInterrupt as stop:
            stop.add_note(f"while {name}" + (f", {task.amount}" if task.amount else ""))
            raise
        finally:
            screen.tasks.remove(task)


@contextmanager
def _some_screen(own_bar: bool) -> Iterator[Screen]:
    if _screens:
        yield _screens[-1]
    elif _silent or (own_bar and is_terminal(sys.stderr)):
        yield Screen(sys.stderr)  # that is never opened
    else:
        with _new_screen() as screen:
            yield screen


def _new_screen() -> Screen:
    # What a program prints is on its standard output; progress never goes there in a pipe.
    for stream in (sys.stdout, sys.stderr):
        if is_terminal(stream):
            from astrolabe.runtime.terminal import Bars

            return Bars(stream)
    return Lines(sys.stderr)


def announce(text: str) -> None:
    """Say at once, from a signal handler, a line that stays."""
    if _screens:
        _screens[-1].announce(text)
    elif not _silent:
        try:
            os.write(2, f"\n{text}\n".encode())  # not print: the handler may have interrupted one
        except OSError:
            return
