"""From a run's folder to a model that acts as it learned; and adapters on their way to and from the disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from astrolabe.experiment import ModelSettings, TrainConfig
from astrolabe.models.adapters import read_adapter
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rl.policies import SLOTS, Policies
from astrolabe.runs.adapter import RunAdapter, adapter_of, check_scale, say_unfinished, the_adapter_of
from astrolabe.runs.folder import RunFolder
from astrolabe.runtime.checkpoint import fingerprint, own_metadata, save_tensors
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import exists, place
from astrolabe.runtime.random import rng_for


def base_fingerprint(generator: WanGenerator) -> str:
    """What tells one base model from another: a hash of the transformer's frozen tensors, slots left out."""
    weights = generator.transformer.state_dict()
    slots = tuple(f".{slot}.weight" for slot in SLOTS)
    return fingerprint(
        {key.replace(".base_layer.", "."): value for key, value in weights.items() if not key.endswith(slots)},
        "the base model",
    )


def save_adapter(path: Path, adapter: Mapping[str, Tensor], cfg: TrainConfig, base: str, step: int) -> None:
    """An adapter as one safetensors file that knows its rank, its scale, its base model, and how many steps made it."""
    metadata = {"rank": str(cfg.lora.rank), "alpha": str(cfg.lora.alpha), "model": cfg.model.name, "base": base}
    save_tensors(path, dict(adapter), metadata | {"step": str(step)})


def load_adapter(adapter: RunAdapter, generator: WanGenerator, policies: Policies, cfg: TrainConfig) -> None:
    """Load the learner's slot; UserError when the adapter is broken, of another scale, or of another base model."""
    tensors, metadata = adapter.load()
    check_base(str(adapter), metadata, base_fingerprint(generator))
    check_scale(adapter, metadata, cfg)
    policies.load("learner", tensors)


def check_base(source: str, metadata: Mapping[str, str], base: str) -> None:
    """UserError when an adapter was trained on another base model."""
    if metadata.get("base") != base:
        name, other = metadata.get("model", "unknown"), metadata.get("base", "unknown")
        raise UserError(
            f"{source} was trained on another model ({name}, base {other[:12]}; this one is {base[:12]}); "
            "use it with the model it was trained on"
        )


def open_run(
    source: RunFolder | RunAdapter, model: ModelSettings | None = None
) -> tuple[TrainConfig, WanGenerator, Policies]:
    """A run's configuration, generator, and policies with its adapter in the learner's slot: of a folder the finished
    one, or the newest there is.

    ``model``: how to open it now, when not as it was trained (on another device, with another window).
    """
    adapter = source if isinstance(source, RunAdapter) else the_adapter_of(source.path)
    cfg = adapter.folder.config()
    say_unfinished(adapter)
    generator = (model or cfg.model).open()
    policies = make_policies(cfg, generator)
    load_adapter(adapter, generator, policies, cfg)
    return cfg, generator, policies


def make_policies(cfg: TrainConfig, generator: WanGenerator) -> Policies:
    """Fresh slots on the generator's transformer; the start is decided by the seed alone."""
    return Policies(generator.transformer, cfg.lora, rng_for(cfg.seed, 0, "adapter"))


# ------------------------------------------------------------------------------------------- beginning from an adapter


def check_init(cfg: TrainConfig) -> None:
    """UserError when the adapter that a run is to begin from is absent or of another rank or scale; nothing but its
    configuration is opened."""
    if not cfg.init:
        return
    adapter = adapter_of(cfg.init)
    if adapter is None and not exists(place(cfg.init)):
        raise UserError(f"init={cfg.init}: no such run, folder or file; expected RUN, RUN@STEP, RUN@best or a LoRA")
    if adapter is not None:
        lora = adapter.folder.config().lora
        for name in ("rank", "alpha"):
            if getattr(lora, name) != getattr(cfg.lora, name):
                raise UserError(
                    f"init={cfg.init} has {name} {getattr(lora, name)} and this run {getattr(cfg.lora, name)}; an "
                    f"adapter goes on in its own size: --lora.rank {lora.rank} --lora.alpha {lora.alpha:g}"
                )


def initial(cfg: TrainConfig, base: str) -> dict[str, Tensor]:
    """The adapter that all policies of a run begin from, as a slot's tensors; UserError when it is of another base (as
    far as it says so), rank or scale."""
    check_init(cfg)
    if adapter := adapter_of(cfg.init):
        say_unfinished(adapter)
        tensors, metadata = adapter.load()
        check_base(str(adapter), metadata, base)
        return tensors
    path = place(cfg.init)
    if "base" in (metadata := own_metadata(path)):
        check_base(str(path), metadata, base)
    pairs, scale = read_adapter(path), cfg.lora.alpha / cfg.lora.rank
    for layer, pair in pairs.items():
        if pair.a.shape[0] != cfg.lora.rank or abs(pair.scale - scale) > 1e-6 * scale:
            rank, alpha = pair.a.shape[0], pair.scale * pair.a.shape[0]
            raise UserError(
                f"init={cfg.init}: {layer} has rank {rank} and alpha {alpha:g}, this run rank {cfg.lora.rank} and "
                f"alpha {cfg.lora.alpha:g}; an adapter goes on in its own size: --lora.rank {rank} "
                f"--lora.alpha {alpha:g}"
            )
    sides = {"A": "a", "B": "b"}
    return {f"{k}.lora_{side}.weight": getattr(p, name) for k, p in pairs.items() for side, name in sides.items()}
