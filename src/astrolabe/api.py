"""The functions of ``import astrolabe``: what a program of one's own needs, a line each. See ``docs/python.md``.

import astrolabe

model = astrolabe.load("runs/demo")
for chunk in astrolabe.stream(model, "a red circle moving left"):
    show(chunk.video)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from astrolabe.commands.choosing import recipe_of
from astrolabe.evaluation.paired import evaluate as evaluate_run
from astrolabe.experiment import ModelChoice, TrainConfig, model_settings
from astrolabe.export import load as load_adapter
from astrolabe.models.lora import freeze_onto
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rollout.live import Prompts, VideoStream, start
from astrolabe.runs.adapter import run_of, the_adapter_of
from astrolabe.runtime.config import override
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.settings import shown
from astrolabe.training import train as train_run

__all__ = ["UserError", "config", "evaluate", "load", "stream", "train"]


def load(model: str | Path = "shapes", adapter: str | Path | None = None, **settings: Any) -> WanGenerator:
    """A generator that is ready to stream, any adapter part of it.

    ``model``: an embedded model (``shapes``, ``shapes-framewise``, ``shapes-2step``), a released one's name, or a run
    (RUN, RUN@STEP, RUN@best), whose model acts as the run learned. ``adapter``: another run, a PEFT folder or a LoRA
    file, in place of the run's own. ``settings`` are fields of the model: ``device="cuda"``, ``window_frames=21``. A
    released model embeds prompts that are new by itself. Raises UserError for what is absent or does not fit.
    """
    run = run_of(model)
    choice = ModelChoice(model=run.config().model if run else model_settings(str(model)))
    own = override(choice, {f"model.{name}": shown(value) for name, value in settings.items()}).model
    source = adapter or (model if run else None)
    generator = own.open(live=True)
    if source:
        pairs, _ = load_adapter(Path(source))
        freeze_onto(generator.transformer, pairs, str(source))
    return generator


def stream(model: WanGenerator, prompts: Prompts, seed: int = 0) -> VideoStream:
    """A video a prompt, without an end: iterate over it, or call ``step()``. A chunk has ``video`` [b, t, 3, y, x] in
    [0, 1] and ``latents``; between chunks ``switch("another prompt")`` goes on and ``cut("another prompt")`` starts
    afresh."""
    return start(model, prompts, seed)


def config(recipe: str, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """The configuration of a recipe's name or of a YAML file; ``overrides`` replaces fields by dotted name."""
    return override(recipe_of(recipe), {name: shown(value) for name, value in (overrides or {}).items()})


def train(config: TrainConfig | str, out: str | Path) -> Path:
    """Align a model, new or on from the last checkpoint in ``out``; gives the run's folder. Errors as in
    ``training.train``."""
    return train_run(recipe_of(config) if isinstance(config, str) else config, Path(out))


def evaluate(run: str | Path, split: str = "test", long: bool = True) -> dict[str, Any]:
    """A run against its base on held-out prompts and the same noise: what ``evaluation.json`` holds."""
    return evaluate_run(the_adapter_of(run), split, long=long)
