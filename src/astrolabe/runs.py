"""A run directory: what lies where, and how it is opened again.

config.yaml                 the resolved configuration; train from it again with ``astrolabe train config.yaml``
checkpoints/step_000040/    every state that decides the future
adapter.safetensors         the learner at the end; where a guard stopped the run, the best
best.safetensors            the adapter that the judges liked best, if there are judges
metrics.jsonl               one line a step
samples/step_000000.safetensors   one group with its scores, for the report
evaluation.json, evaluation.safetensors, report.html, summary.json
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from astrolabe.experiment import ModelSettings, TrainConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rl.policies import SLOTS, Policies
from astrolabe.runtime.checkpoint import CheckpointStore, fingerprint, load_tensors, save_tensors
from astrolabe.runtime.config import diff, load_yaml, save_yaml
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.random import rng_for
from astrolabe.runtime.tracking import read_metrics

ADAPTER, BEST = "adapter.safetensors", "best.safetensors"


@dataclass(frozen=True)
class RunFolder:
    """A run's place on disk."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> CheckpointStore:
        """The run's checkpoints."""
        return CheckpointStore(self.path)

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return (self.path / ADAPTER).exists()

    def config(self) -> TrainConfig:
        """The configuration that the run was started with; UserError when this is no run."""
        if not self.config_file.exists():
            raise UserError(
                f"{self.path} is no run: it has no config.yaml; name the folder that `astrolabe train` wrote"
            )
        return load_yaml(TrainConfig, self.config_file)

    def holds_another(self, cfg: TrainConfig) -> bool:
        """Whether a run with another configuration lives here."""
        return self.config_file.exists() and bool(diff(self.config(), cfg))

    def seconds_trained(self) -> float:
        """Seconds of all steps so far, by the run's own clock."""
        file = self.path / "metrics.jsonl"
        lines = read_metrics(file) if file.exists() else []
        return sum(value for line in lines for key, value in line.items() if key.startswith("seconds/"))

    def claim(self, cfg: TrainConfig) -> None:
        """Make the folder this configuration's: new, or the same one again. A run is never overwritten."""
        if self.config_file.exists():
            changed = diff(self.config(), cfg)
            if changed:
                raise UserError(
                    f"{self.path} holds a run with another configuration ({'; '.join(changed[:3])}"
                    f"{f' and {len(changed) - 3} more' if len(changed) > 3 else ''}); name a new folder with --out"
                )
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(f"{self.path} exists and is no run; name a new or empty folder with --out")
        self.path.mkdir(parents=True, exist_ok=True)
        save_yaml(cfg, self.config_file)


def base_fingerprint(generator: WanGenerator) -> str:
    """What tells one base model from another: a hash of the transformer's frozen tensors, slots left out."""
    weights = generator.transformer.state_dict()
    slots = tuple(f".{slot}.weight" for slot in SLOTS)
    return fingerprint(
        {key.replace(".base_layer.", "."): value for key, value in weights.items() if not key.endswith(slots)},
        "the base model",
    )


def save_adapter(path: Path, adapter: Mapping[str, Tensor], cfg: TrainConfig, base: str) -> None:
    """An adapter as one safetensors file that knows its rank, its scale and its base model."""
    metadata = {"rank": str(cfg.lora.rank), "alpha": str(cfg.lora.alpha), "model": cfg.model.name, "base": base}
    save_tensors(path, dict(adapter), metadata)


def load_adapter(path: Path, generator: WanGenerator, policies: Policies, cfg: TrainConfig) -> None:
    """Load the learner's slot; UserError when the adapter is broken, of another scale, or of another base model."""
    tensors, metadata = load_tensors(path)
    base = base_fingerprint(generator)
    if metadata.get("base") != base:
        name, other = metadata.get("model", "unknown"), metadata.get("base", "unknown")
        raise UserError(
            f"{path} was trained on another model ({name}, base {other[:12]}; this one is {base[:12]}); "
            "use it with the model it was trained on"
        )
    for name, own in (("rank", cfg.lora.rank), ("alpha", cfg.lora.alpha)):
        if metadata.get(name) != str(own):
            raise UserError(f"{path} has {name} {metadata.get(name)}, but the run's config.yaml says {own}; restore it")
    policies.load("learner", tensors)


def open_run(folder: RunFolder, model: ModelSettings | None = None) -> tuple[TrainConfig, WanGenerator, Policies]:
    """A finished run's configuration, generator, and policies with the trained adapter in the learner's slot.

    ``model``: how to open it now, when not as it was trained (on another device, with another window).
    """
    cfg = folder.config()
    if not folder.finished:
        raise UserError(
            f"{folder.path} has no {ADAPTER} yet: its training has not ended; resume it with the same command"
        )
    generator = (model or cfg.model).open()
    policies = make_policies(cfg, generator)
    load_adapter(folder.path / ADAPTER, generator, policies, cfg)
    return cfg, generator, policies


def make_policies(cfg: TrainConfig, generator: WanGenerator) -> Policies:
    """Fresh slots on the generator's transformer; the start is decided by the seed alone."""
    return Policies(generator.transformer, cfg.lora, rng_for(cfg.seed, 0, "adapter"))
