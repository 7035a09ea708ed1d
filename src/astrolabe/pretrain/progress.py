"""Progress with running means, for the stages that make the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from astrolabe.runtime.progress import Task, progress


class Bar:
    """Counts the steps of a stage: ``bar.advance(loss=0.1)``."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.means: dict[str, float] = {}

    def advance(self, **numbers: float) -> None:
        """One step further; numbers are shown as running means."""
        for name, value in numbers.items():
            self.means[name] = 0.98 * self.means.get(name, value) + 0.02 * value
        self.task.note = "  ".join(f"{name} {value:.4f}" for name, value in self.means.items())
        self.task.advance()


@contextmanager
def stage_bar(name: str, steps: int) -> Iterator[Bar]:
    """``with stage_bar("teacher", steps) as bar: bar.advance(loss=0.1)``."""
    with progress(name, steps, "steps") as task:
        yield Bar(task)
