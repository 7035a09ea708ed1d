"""Bars on a terminal: whole at 80 columns, less at fewer, and below them a table of numbers where there is room.

What is drawn is made anew for the size that the terminal has at the moment.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from astrolabe.runtime.display import HEADLINE, REMEMBERED, Course
from astrolabe.runtime.progress import Screen, Task, duration

BAR = (8, 40)  # columns of a bar: a fifth of the terminal, within these
SHORTEST = 4  # of a bar that says anything
NARROW = 60  # columns below which a table has no room, nor anything that only looks well
PATIENCE = 0.5  # seconds that work may take before it is worth a bar,
WITHIN = 3.0  # and within a step of training, where bars that come and go would move the table
GAP = 2  # columns between the parts of a line
AROUND = 4  # rows of the terminal that a table leaves to what was printed before


class Bars(Screen):
    """Draws the tasks at work, each with a bar; of training also its course. What is printed meanwhile stands above."""

    period = 0.1

    def __init__(self, out: TextIO, course: Course | None = None) -> None:
        super().__init__(out)
        self.course = course
        self.console = Console(file=out, force_terminal=True, highlight=False)
        self._live: Live | None = None
        self._replaced: list[tuple[str, Above]] = []

    def say(self, text: str) -> None:
        with suppress(OSError):  # a terminal that was closed is no reason to stop
            self.console.out(text, highlight=False)  # as it is: no markup, no wrapping

    def stepped(self) -> None:
        with suppress(OSError):
            self.draw()

    def draw(self) -> None:
        if self._live is None:
            if self.course is None and not any(task.seconds() > PATIENCE for task in list(self.tasks)):
                return
            self._live = Live(console=self.console, auto_refresh=False, transient=self.course is None,
                              redirect_stdout=False, redirect_stderr=False, get_renderable=self._view,
                              vertical_overflow="crop")  # fmt: skip
            self._live.start()
            self._stand_above()
        self._live.refresh()

    def close(self) -> None:
        if self.course is not None:
            self.course.phase = None
        with suppress(OSError):
            if self._live is not None:
                self._live.stop()
        for name, above in self._replaced:
            setattr(sys, name, above.stream)
            above.stream.write(above.begun)
        self._replaced.clear()

    def _view(self) -> RenderableType:
        width, height = self.console.size
        return Group(*picture(self.course, list(self.tasks), width - 1, height))

    def _stand_above(self) -> None:
        """What is printed to the terminal from now on is written above the bars, line by line."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream.isatty():
                above = Above(self, stream)
                self._replaced.append((name, above))
                setattr(sys, name, above)


class Above:
    """A stream whose lines a screen says; all else is the stream's own."""

    def __init__(self, screen: Bars, stream: TextIO) -> None:
        self.screen, self.stream, self.begun = screen, stream, ""

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Say the lines that are whole."""
        *lines, begun = (self.begun + text).replace("\r\n", "\n").split("\n")
        self.begun = begun.rpartition("\r")[2]  # another program's bar writes over itself
        if lines:
            self.screen.say("\n".join(line.rpartition("\r")[2] for line in lines))
        return len(text)


def picture(course: Course | None, tasks: Sequence[Task], width: int, height: int) -> Iterator[RenderableType]:
    """What is drawn on so many columns and rows."""
    rows = height - AROUND
    if course is not None:
        share = course.done / max(course.steps, 1)
        label = place(course)
        yield line(label, share, [course.time(), *course.headline()], width, needed=1, least=len(label))
        rows -= 1
        if (phase := course.phase) is not None:
            yield inside(course, phase, width)
            rows -= 1
    patience, indent = (PATIENCE, "") if course is None else (WITHIN, "  ")
    for task in tasks:
        if task.seconds() > patience and rows > 0:
            left = task.left()
            time = duration(task.seconds()) if left is None else f"left {duration(left)}"
            yield line(f"{indent}{task.name}", task.share, [task.amount, time, task.note], width)
            rows -= 1
    if course is not None and width + 1 >= NARROW and rows > len(course.names()) > HEADLINE:
        yield numbers(course, width)


def place(course: Course) -> str:
    """How many steps are done."""
    return f"step {course.done}/{course.steps}"


def inside(course: Course, phase: Task, width: int) -> RenderableType:
    """Where the step at work is."""
    left = course.left_of_step()
    time = f"{duration(course.elapsed())} so far" if left is None else f"step: {duration(left)} left"
    name = f"  {phase.name}"
    if width >= NARROW:
        name = name.ljust(len(place(course)))  # one bar under the other
    return line(name, course.share_of_phase(), [phase.amount, time, phase.note], width, least=len(name))


def line(
    name: str, share: float | None, parts: Sequence[str], width: int, needed: int = 2, least: int = 12
) -> RenderableType:
    """A name, a bar that pulses while the ``share`` is unknown, and as many of the ``parts`` as there is room for:
    the first ``needed`` before the bar, the others after it. The name gives way until it has ``least`` columns."""
    first = sum(GAP + cell_len(part) for part in parts[:needed] if part)
    bar = min(max(width // 5, BAR[0]), BAR[1])
    name = shortened(name, min(max(width - first - GAP - bar, least), width))
    bar = min(bar, width - cell_len(name) - first - GAP)
    bar = bar if bar >= SHORTEST else 0
    used, kept = cell_len(name) + (GAP + bar if bar else 0), list[str]()
    for part in parts:
        if part and used + GAP + cell_len(part) <= width:
            kept.append(part)
            used += GAP + cell_len(part)
    grid = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    cells: list[RenderableType] = [Text(name, no_wrap=True, overflow="crop")]
    if bar:
        cells.append(Gauge(share, bar))
    cells += [Text(part, no_wrap=True, overflow="crop") for part in kept]
    for _ in cells:
        grid.add_column(no_wrap=True)
    grid.add_row(*cells)
    return grid


class Gauge:
    """A bar of ``width`` columns that shows a ``share``: in colour, or without it by two signs."""

    def __init__(self, share: float | None, width: int) -> None:
        self.share, self.width = share, width

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self.width, self.width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        share = self.share or 0.0
        if console.no_color or console.color_system is None:
            yield Text(f"{'#' * int(share * self.width):.<{self.width}}")
        else:
            yield ProgressBar(total=1.0, completed=share, width=self.width, pulse=self.share is None)


def shortened(text: str, width: int) -> str:
    """A text of at most so many columns, its middle left out where it is longer."""
    if cell_len(text) <= width:
        return text
    head = max(width - 2, 0) // 2
    end = set_cell_size(text[::-1], max(width - 2 - head, 0))[::-1]
    return f"{set_cell_size(text, head)}..{end}"[: max(width, 0)]


def numbers(course: Course, width: int) -> RenderableType:
    """All numbers that are shown: of the last step, of the last few on average, and of the first."""
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 2))
    table.add_column("", no_wrap=True, overflow="ellipsis", max_width=max(width - 44, 1))
    for heading in (
        f"step {course.done}",
        f"mean of {min(len(course.numbers), REMEMBERED)}",
        f"step {course.start + 1}",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in course.names():
        values = (course.numbers[-1][name], course.mean(name), course.first.get(name, float("nan")))
        table.add_row(Text(name), *(f"{value:.4g}" for value in values))
    return table
