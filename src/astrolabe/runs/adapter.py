"""Which adapter of a run is meant: RUN, RUN@STEP, RUN@best, RUN@last.

RUN alone is the adapter of a finished run, and of another the newest checkpoint: the learner's slot of a checkpoint is
an adapter like any other.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from astrolabe.experiment import TrainConfig
from astrolabe.runs.folder import ADAPTER, BEST, RunFolder
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import place
from astrolabe.runtime.steps import FINISHED, step_name

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RunAdapter:
    """An adapter of a run: a file of its folder, or the learner of the checkpoint after ``step`` steps.

    ``name`` tells it from the run's others: empty for the finished one, ``best``, ``step_000040``.
    """

    folder: RunFolder
    name: str
    file: Path | None
    step: int | None = None

    def __str__(self) -> str:
        end = f"@{self.step}" if self.name.startswith("step_") else f"@{self.name}" if self.name else ""
        return f"{self.folder.path}{end}"

    def load(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The learner's tensors, and what is known of them: rank, alpha, model, base. UserError for a broken file."""
        from astrolabe.runtime.checkpoint import load_tensors

        if self.file:
            return load_tensors(self.file)
        assert self.step is not None
        tensors, state = self.folder.checkpoints.load_part(self.step, "learner")
        return tensors, {key: str(value) for key, value in state.items()}


def run_of(path: Path | str) -> RunFolder | None:
    """The run that RUN or RUN@WHICH names; None for what is no run."""
    folder, _ = split(path)
    return folder if folder.exists else None


def split(path: Path | str) -> tuple[RunFolder, str | None]:
    """Folder and choice of RUN@WHICH; None for RUN alone. A file or folder that is there has its own name, whatever
    signs are in it."""
    path = place(path)
    head, sign, which = str(path).rpartition("@")
    if sign and head and not path.exists() and RunFolder(Path(head)).exists:
        return RunFolder(Path(head)), which
    return RunFolder(path), None


def adapter_of(path: Path | str) -> RunAdapter | None:
    """The adapter that is meant; None for a path that is no run. UserError, which says what there is, for one that the
    run has not."""
    folder, which = split(path)
    if not folder.exists:
        return None
    if which == "best" and (folder.path / BEST).exists():
        return RunAdapter(folder, "best", folder.path / BEST)
    if which is None and folder.finished:
        return RunAdapter(folder, "", folder.path / ADAPTER)
    steps = folder.steps
    if which in (None, "last") and steps:
        return RunAdapter(folder, step_name(steps[-1]), None, steps[-1])
    if which == "last" and folder.finished and not folder.stopped_by():
        return RunAdapter(folder, "", folder.path / ADAPTER)
    if which is not None and which.isdecimal():
        step = int(which)
        if step in steps:
            return RunAdapter(folder, step_name(step), None, step)
        if (file := folder.path / f"adapter-{step_name(step)}.safetensors").exists():
            return RunAdapter(folder, step_name(step), file, step)
    raise UserError(absent(folder, which))


def the_adapter_of(path: Path | str) -> RunAdapter:
    """The same where nothing but a run will do."""
    adapter = adapter_of(path)
    if adapter is None:
        raise UserError(f"{path} is no run: it has no config.yaml; name the folder that `astrolabe train` wrote")
    return adapter


def absent(folder: RunFolder, which: str | None) -> str:
    """Why a run has not the adapter asked for, and which it has."""
    if which == "best":
        why = "none of its rewards is a judge, or has judged for long enough"
        return f"{folder.path} has no best adapter: {why}; {there(folder) or 'and no other yet'}"
    if which is None or not there(folder):
        every = folder.written().checkpoint_every
        return f"{folder.path} has no adapter yet: its first checkpoint comes after {every} step{'s' * (every > 1)}"
    if which.isdecimal() or which == "last":
        return f"{folder.path} keeps no checkpoint of step {which}; {there(folder)}"
    return f"{folder.path}@{which}: expected a step, best or last behind the @; {there(folder)}"


def there(folder: RunFolder) -> str:
    """The adapters of a run as they are asked for; empty when there is none."""
    ends = [file.stem.removeprefix("adapter-") for file in folder.path.glob("adapter-step_*.safetensors")]
    steps = {*folder.steps, *(int(match[1]) for end in ends if (match := FINISHED.fullmatch(end)))}
    names = [str(folder.path)] if folder.finished else []
    names += [f"{folder.path}@{step}" for step in sorted(steps)]
    names += [f"{folder.path}@best"] if (folder.path / BEST).exists() else []
    return f"there are: {', '.join(names)}" if names else ""


def say_unfinished(adapter: RunAdapter) -> None:
    """A line on the standard error when the run is still on its way."""
    folder = adapter.folder
    if not folder.finished and adapter.step is not None and adapter.step == folder.done:
        steps = folder.written().steps
        print(
            f"astrolabe: {folder.path} has not ended; this is its adapter after {adapter.step} of {steps} steps",
            file=sys.stderr,
        )


def check_scale(adapter: RunAdapter, metadata: dict[str, str], cfg: TrainConfig) -> None:
    """UserError unless an adapter has the rank and alpha of a configuration, as far as it says so."""
    for name, own in (("rank", cfg.lora.rank), ("alpha", cfg.lora.alpha)):
        if metadata.get(name, str(own)) != str(own):
            raise UserError(f"{adapter} has {name} {metadata[name]}, but the run's config.yaml says {own}; restore it")
