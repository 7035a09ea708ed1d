"""What a person sees of training: the steps, what goes on inside the one at work, and the numbers of the last.

A ``Course`` knows where a run stands and judges how long it will take; a bar on a terminal (``runtime.terminal``) or
plain lines elsewhere show it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, TextIO

from astrolabe.runtime.progress import Lines, Screen, Task, clock, duration, is_silent, is_terminal

HEADLINE = 2  # numbers that stand behind the time; the rest has a table, where there is room
COUNTED = {"rollout": "candidates", "rewards": "candidates", "update": "samples"}  # what, in each phase
REMEMBERED = 10  # steps over which durations and numbers are averaged


class Course:
    """Where a run of ``steps`` steps stands that began with step ``start``; ``shown``: the metrics to show, most
    important first, all of them when empty."""

    def __init__(self, steps: int, start: int = 0, shown: Sequence[str] = ()) -> None:
        self.steps, self.start, self.shown = steps, start, tuple(shown)
        self.done = start
        self.phase: Task | None = None  # at work; what was spent on it earlier in the step is in ``_spent``
        # Made anew and never changed in place: a screen's thread looks on.
        self.numbers: list[Mapping[str, float]] = []  # of the last steps
        self.first: Mapping[str, float] = {}  # of the first step
        self._opened = self._began = clock()  # this session, and the step at work
        self._spent: dict[str, float] = {}
        self._spans: dict[str, tuple[float, float]] = {}  # when each phase began first and ended last, in the step
        self._usual: dict[str, tuple[float, float]] = {}  # the same of the step before
        self._took: list[dict[str, float]] = []
        self._lasted: list[float] = []

    def enter(self, name: str, done: int = 0, total: int = 0) -> None:
        """The step at work is in phase ``name``, which has done so much (``total`` 0: that is not counted); a phase may
        be left and entered again."""
        if self.phase is None or self.phase.name != name:
            inside = self.phase if self.phase is not None and 0 < (self.phase.share or 0) < 1 else None
            self._leave()
            self.phase = Task(name, unit=COUNTED.get(name, ""), note=inside.amount if inside and not total else "")
            self._spans.setdefault(name, (self.phase.began, self.phase.began))
        self.phase.done, self.phase.total = done, total or None

    def finish(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step number ``step``, counted from 0, is done."""
        self._leave()
        self._took = [*self._took, self._spent][-REMEMBERED:]
        self._lasted = [*self._lasted, self.elapsed()][-REMEMBERED:]
        self._usual, self._spent, self._spans = self._spans, {}, {}
        self.done, self._began = step + 1, clock()
        self.first = self.first or metrics
        self.numbers = [*self.numbers, metrics][-REMEMBERED:]

    def elapsed(self) -> float:
        """Seconds since the step at work began."""
        return clock() - self._began

    def left_of_step(self) -> float | None:
        """Seconds until the step at work is done, from what its phases took in the steps before; None in the first."""
        phase = self.phase
        if not self._took:
            return None
        if phase is None:
            return max(self._mean_step() - self.elapsed(), 0.0)
        reached = self._usual.get(phase.name, (0.0, 0.0))[0]
        left = 0.0
        for name, (_, ended) in self._usual.items():
            usual = self._usually(name)
            spent = self._spent.get(name, 0.0)
            if name == phase.name:
                share = phase.share
                left += usual * (1 - share) if share else max(usual - spent - phase.seconds(), 0.0)
            elif ended > reached:  # otherwise it was over by now
                left += max(usual - spent, 0.0)
        return left

    def share_of_phase(self) -> float | None:
        """How much of the phase at work is done: as counted, else as long as it usually takes; None: unknown."""
        phase = self.phase
        if phase is None:
            return None
        if phase.share:
            return phase.share
        usual = self._usually(phase.name)
        return min((self._spent.get(phase.name, 0.0) + phase.seconds()) / usual, 1.0) if usual else None

    def left(self) -> float | None:
        """Seconds until the run is done, at the pace of the last steps; None before the first is done."""
        if not self._lasted:
            return None
        step = self._mean_step()
        return step * (self.steps - self.done) - min(self.elapsed(), step if self.done < self.steps else 0.0)

    def time(self) -> str:
        """``left 1h 02m``; in the first step how long it has been at work, in the end how long all took."""
        left = self.left()
        if self.done >= self.steps:
            return f"in {duration(clock() - self._opened)}"
        return f"{duration(self.elapsed())} so far" if left is None else f"left {duration(left)}"

    def headline(self) -> list[str]:
        """The first numbers of the last step, as ``loss 0.1234``."""
        last = self.numbers[-1] if self.numbers else {}
        return [f"{name} {last[name]:.4g}" for name in self.names()][:HEADLINE]

    def names(self) -> list[str]:
        """The metrics that are shown, of those that the last step has."""
        last = self.numbers[-1] if self.numbers else {}
        return [name for name in self.shown or last if name in last]

    def mean(self, name: str) -> float:
        """Of a metric, over the last steps that have it."""
        values = [numbers[name] for numbers in self.numbers if name in numbers]
        return sum(values) / len(values)

    def __str__(self) -> str:
        """``step 3/200: rollout, 12 of 48 candidates, 4m 10s, about 2m 00s left of the step``."""
        phase = self.phase
        parts = [phase.name, phase.note, phase.amount] if phase else []
        parts.append(duration(self.elapsed()))
        if left := self.left_of_step():
            parts.append(f"about {duration(left)} left of the step")
        return f"step {self.done + 1}/{self.steps}: {', '.join(part for part in parts if part)}"

    def _usually(self, name: str) -> float:
        took = self._took
        return sum(one.get(name, 0.0) for one in took) / len(took) if took else 0.0

    def _mean_step(self) -> float:
        return sum(self._lasted) / len(self._lasted)

    def _leave(self) -> None:
        if self.phase is not None:
            name = self.phase.name
            self._spent[name] = self._spent.get(name, 0.0) + self.phase.seconds()
            self._spans[name] = (self._spans[name][0], clock())
            self.phase = None


class Display(Protocol):
    """What a person watches: ``update`` after each step, ``phase`` inside it (a ``runtime.clock.Listener``), ``note``
    for a line that stays."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def update(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def phase(self, phase: str, done: int = 0, total: int = 0) -> None: ...
    def note(self, text: str) -> None: ...


def training_display(steps: int, start: int = 0, shown: Sequence[str] = (), stream: TextIO | None = None) -> Display:
    """A bar on a terminal; elsewhere (a file, a pipe, CI) a line a step, and one a minute inside a step that is long.

    ``steps`` is the total, ``start`` the first step that this run does (not 0 when resumed), ``shown`` the metrics to
    show, most important first, all of them when empty. ``update(step, ...)`` is told the step just done. A process
    that was silenced shows nothing.
    """
    out, course = stream or sys.stdout, Course(steps, start, shown)
    if is_silent():
        return Unseen(course)
    if is_terminal(out):
        from astrolabe.runtime.terminal import Bars

        return Shown(course, Bars(out, course))
    return Shown(course, CourseLines(out, course))


class Unseen:
    """Of a process that shows nothing."""

    def __init__(self, course: Course) -> None:
        self.course = course

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            error.add_note(f"in step {self.course.done + 1} of {self.course.steps}")

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """See ``Display``."""
        self.course.finish(step, metrics)

    def phase(self, phase: str, done: int = 0, total: int = 0) -> None:
        """See ``Display``."""
        self.course.enter(phase, done, total)

    def note(self, text: str) -> None:
        """See ``Display``."""


class Shown(Unseen):
    """A course on a screen."""

    def __init__(self, course: Course, screen: Screen) -> None:
        super().__init__(course)
        self.screen = screen

    def __enter__(self) -> Self:
        self.screen.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.screen.__exit__(kind, error, trace)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """See ``Display``."""
        super().update(step, metrics)
        self.screen.stepped()

    def note(self, text: str) -> None:
        """See ``Display``."""
        self.screen.say(text)


class CourseLines(Lines):
    """A line a step."""

    def __init__(self, out: TextIO, course: Course) -> None:
        super().__init__(out)
        self.course = course

    def stepped(self) -> None:
        course = self.course
        left = f"left {duration(course.left() or 0)}"
        self.say("  ".join([f"step {course.done}/{course.steps}", *course.headline(), left]))

    def state(self) -> str:
        return "; ".join([str(self.course), *(str(task) for task in self.tasks)])
