"""A progress bar with running means, for the stages that make the embedded model."""

from __future__ import annotations

from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """``with Bar("teacher", steps) as bar: bar.advance(loss=0.1)``; on a pipe it prints a line every tenth part."""

    def __init__(self, name: str, steps: int):
        self.name, self.steps, self.step = name, steps, 0
        self.means: dict[str, float] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                   TimeRemainingColumn(), TextColumn("{task.fields[numbers]}"))  # fmt: skip
        self.progress = Progress(*columns)
        self.task = self.progress.add_task(name, total=steps, numbers="")

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def advance(self, **numbers: float) -> None:
        """One step further; numbers are shown as running means."""
        self.step += 1
        for name, value in numbers.items():
            self.means[name] = 0.98 * self.means.get(name, value) + 0.02 * value
        shown = "  ".join(f"{name} {value:.4f}" for name, value in self.means.items())
        self.progress.update(self.task, advance=1, numbers=shown)
        if not self.progress.console.is_terminal and self.step % max(self.steps // 20, 1) == 0:
            print(f"{self.name} {self.step}/{self.steps}  {shown}", flush=True)
