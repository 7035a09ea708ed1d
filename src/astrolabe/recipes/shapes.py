"""Recipes for the embedded model."""

from __future__ import annotations

from dataclasses import replace

from astrolabe.experiment import RewardSettings, ShapesSettings, TrainConfig
from astrolabe.rl.nft import NFTSettings
from astrolabe.rl.policies import LoraSettings
from astrolabe.rl.update import OptimizerSettings
from astrolabe.rollout.settings import RolloutSettings, WindowSettings
from astrolabe.shapes.model import CLIP_FRAMES


def shapes() -> TrainConfig:
    """Align the embedded model in a few minutes on two cores: what ``astrolabe demo`` runs."""
    return TrainConfig(
        seed=0,
        steps=52,
        model=ShapesSettings(),
        prompts="practice",
        rollout=RolloutSettings(prompts=6, group_size=12, micro_batch=6),
        window=WindowSettings(frames=CLIP_FRAMES),
        rewards=(
            RewardSettings(name="joint"),
            RewardSettings(name="shape_fit", weight=0.4),
            RewardSettings(name="motion_fit", weight=1.5),
            RewardSettings(name="cleanliness", weight=0.3),
            RewardSettings(name="steadiness"),
        ),
        algorithm=NFTSettings(beta=0.1, behavior_keep=0.5, levels_per_sample=2, common_noise=True),
        lora=LoraSettings(rank=16, alpha=32.0),
        optimizer=OptimizerSettings(lr=5e-4, eps=1e-10, schedule="cosine", minibatches=3, share=0.5, micro_batch=12),
    )


def shapes_random() -> TrainConfig:
    """The control: the same run under a reward that knows nothing. It must not lift anything."""
    return replace(shapes(), rewards=(RewardSettings(name="random"),))


def shapes_tiny() -> TrainConfig:
    """Two steps, to see that everything works; for tests and for trying out changes."""
    base = shapes()
    return replace(
        base,
        steps=2,
        rollout=RolloutSettings(prompts=2, group_size=2, micro_batch=2),
        window=WindowSettings(frames=6),
        lora=LoraSettings(rank=4, alpha=8.0),
        optimizer=replace(base.optimizer, minibatches=1, micro_batch=2),
        checkpoint_every=1,
    )
