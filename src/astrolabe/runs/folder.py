"""A run's folder: what lies where, whose it is, and what may change when it goes on.

config.yaml                 the configuration; train from it again with ``astrolabe train config.yaml``
history.jsonl               when it began, from what, and what happened since
checkpoints/step_000040/    every state that decides the future
adapter.safetensors         the learner at the end; where a guard stopped the run, the best
adapter-step_000040.safetensors   the same of an earlier end, when the run was extended
best.safetensors            the adapter that the judges liked best, if there are judges
metrics.jsonl               one line a step
samples/step_000000.safetensors   one group with its scores, for the report
evaluation.json, evaluation.safetensors, report.html, summary.json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astrolabe.experiment import TrainConfig, files_of
from astrolabe.runs.history import HISTORY, Origin, events, found_again, located, record
from astrolabe.runtime.config import Change, changes, load_yaml, override, save_yaml
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.steps import finished_steps, step_name
from astrolabe.runtime.tracking import read_metrics

if TYPE_CHECKING:
    from astrolabe.runtime.checkpoint import CheckpointStore

ADAPTER, BEST = "adapter.safetensors", "best.safetensors"
SPARSE = {".lock", HISTORY}


@dataclass(frozen=True)
class RunFolder:
    """A run's place on disk."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The configuration."""
        return self.path / "config.yaml"

    @property
    def exists(self) -> bool:
        """Whether a run is here."""
        return self.config_file.exists()

    @property
    def checkpoints(self) -> CheckpointStore:
        """The run's checkpoints."""
        from astrolabe.runtime.checkpoint import CheckpointStore

        return CheckpointStore(self.path)

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return (self.path / ADAPTER).exists()

    @property
    def steps(self) -> list[int]:
        """The steps whose state is kept, oldest first."""
        return finished_steps(self.path / "checkpoints")

    def metrics(self) -> list[dict[str, Any]]:
        """Its steps so far."""
        file = self.path / "metrics.jsonl"
        return read_metrics(file) if file.exists() else []

    def stopped_by(self) -> str:
        """The measure whose guard ended the run; empty when none did."""
        last = (self.metrics() or [{}])[-1]
        return next((name.split("/")[1] for name in last if name.startswith("alarm/") and name.endswith("/stop")), "")

    @property
    def done(self) -> int:
        """Steps that are done for good: an interrupted run continues after them."""
        if self.steps:
            return self.steps[-1]
        return len(self.metrics()) if self.finished else 0

    @property
    def begun(self) -> dict[str, Any]:
        """What the history says of the beginning; nothing when an earlier version made the run."""
        return next((event for event in reversed(events(self.path)) if event.get("what") == "begun"), {})

    def seconds_trained(self) -> float:
        """Seconds of all steps so far, by the run's own clock."""
        return sum(value for line in self.metrics() for key, value in line.items() if key.startswith("seconds/"))

    # --------------------------------------------------------------------------------------------- its configuration

    def written(self) -> TrainConfig:
        """The configuration as it was given, paths relative to where that was; UserError when this is no run."""
        if not self.exists:
            raise UserError(
                f"{self.path} is no run: it has no config.yaml; name the folder that `astrolabe train` wrote"
            )
        return load_yaml(TrainConfig, self.config_file)

    def config(self) -> TrainConfig:
        """The configuration, its files found again from wherever this is asked; UserError when this is no run."""
        cfg = self.written()
        return override(cfg, found_again(files_of(cfg), self.begun.get("paths", {})))

    def examine(self, cfg: TrainConfig) -> list[Change]:
        """What would change if this run went on as ``cfg``; nothing for a folder that is new.

        UserError for what cannot be this run's: a run is never overwritten, and results are one configuration's.
        """
        if not self.exists:
            # A run that was killed before it had a configuration leaves no more than these two.
            if self.path.exists() and not (self.path.is_dir() and {p.name for p in self.path.iterdir()} <= SPARSE):
                raise UserError(f"{self.path} exists and is no run; name a new or empty folder with --out")
            return []
        before = self.config()
        found = changes(at_home(before), at_home(cfg))
        if other := [str(change) for change in found if change.affects == "results" and change.name != "steps"]:
            raise UserError(
                f"{self.path} holds a run with another configuration ({'; '.join(other[:3])}"
                f"{f' and {len(other) - 3} more' if len(other) > 3 else ''}); name a new folder with --out"
            )
        if before.steps != cfg.steps:
            self.check_steps(cfg.steps, before.steps)
        return found

    def check_steps(self, steps: int, before: int) -> None:
        """UserError when a run of ``before`` steps cannot become one of ``steps``."""
        if self.finished and (guard := self.stopped_by()):
            raise UserError(
                f"{self.path}: the guard of {guard} stopped this run at step {self.done} of {before}, and more steps "
                f"do not start it again; begin another from its adapter: --init {self.path} --out NEW"
            )
        if steps < self.done:
            raise UserError(
                f"{self.path} has done {self.done} steps, --steps {steps} is fewer; ask for at least {self.done}, or "
                "name a new folder with --out"
            )
        if self.finished and not self.steps:
            raise UserError(
                f"{self.path} cannot go on, its checkpoints are gone; begin another run from its adapter: "
                f"--init {self.path} --out NEW"
            )

    def holds_another(self, cfg: TrainConfig) -> bool:
        """Whether a run that is not exactly this one lives here."""
        found = changes(at_home(self.config()), at_home(cfg)) if self.exists else []
        return any(change.affects == "results" for change in found)

    def already_done(self, cfg: TrainConfig) -> bool:
        """Whether nothing is left to do; UserError as in ``examine``."""
        return not any(change.name == "steps" for change in self.examine(cfg)) and self.finished

    # ----------------------------------------------------------------------------------------------- what becomes of it

    def begin(self, cfg: TrainConfig, origin: Origin, **more: Any) -> None:
        """Make the folder this configuration's."""
        self.path.mkdir(parents=True, exist_ok=True)
        places = {name: place for name, text in files_of(cfg).items() if (place := located(text))}
        record(self.path, "begun", 0, steps=cfg.steps, **origin.told(), paths=places, **more)
        save_yaml(cfg, self.config_file)

    def go_on(self, found: Sequence[Change], origin: Origin) -> None:
        """Go on as changed: the configuration says so from now on, and what belonged to an earlier end is named so."""
        written = self.written()
        extended = self.finished and any(change.name == "steps" for change in found)
        if extended:
            self.put_aside(self.done)
        if found:
            save_yaml(override(written, {change.name: change.new for change in found}), self.config_file)
        record(self.path, "resumed", self.done, **origin.told(), changes=[str(change) for change in found])

    def put_aside(self, step: int) -> None:
        """Adapter, evaluations and report of an end that is none any more get the step into their names."""
        for stem in ("adapter", "evaluation", "evaluation-validation", "report"):
            for suffix in (".json", ".safetensors", ".html"):
                file = self.path / f"{stem}{suffix}"
                if file.exists():
                    file.replace(file.with_name(f"{stem}-{step_name(step)}{suffix}"))


def at_home(cfg: TrainConfig) -> TrainConfig:
    """The configuration with every file that is there under its absolute name, so that two can be compared."""
    return override(cfg, {name: place for name, text in files_of(cfg).items() if (place := located(text))})
