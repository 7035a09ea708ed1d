"""Recipes: functions that return a configuration. A run starts from one, and the command line overrides its fields."""

from __future__ import annotations

from collections.abc import Callable

from astrolabe.experiment import TrainConfig
from astrolabe.recipes import shapes as _shapes
from astrolabe.recipes import wan as _wan

RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "shapes": _shapes.shapes,
    "shapes_framewise": _shapes.shapes_framewise,
    "shapes_2step": _shapes.shapes_2step,
    "shapes_spoiled": _shapes.shapes_spoiled,
    "shapes_guarded": _shapes.shapes_guarded,
    "shapes_random": _shapes.shapes_random,
    "shapes_selective": _shapes.shapes_selective,
    "shapes_positive": _shapes.shapes_positive,
    "shapes_reward_weighted": _shapes.shapes_reward_weighted,
    "shapes_grpo": _shapes.shapes_grpo,
    "shapes_tiny": _shapes.shapes_tiny,
    "self_forcing": _wan.self_forcing,
    "causal_forcing": _wan.causal_forcing,
    "longlive": _wan.longlive,
    "self_forcing_24gb": _wan.self_forcing_24gb,
    "causal_forcing_24gb": _wan.causal_forcing_24gb,
    "longlive_24gb": _wan.longlive_24gb,
    "krea_realtime": _wan.krea_realtime,
}
