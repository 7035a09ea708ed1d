"""Recipes for the embedded model."""

from __future__ import annotations

from dataclasses import replace

from astrolabe.experiment import TrainConfig
from astrolabe.rewards.settings import RewardSettings
from astrolabe.rl.settings import (
    GRPOSettings,
    LoraSettings,
    NFTSettings,
    OptimizerSettings,
    PositiveSettings,
    RegularisationSettings,
    RewardWeightedSettings,
)
from astrolabe.rollout.settings import RolloutSettings, WindowSettings
from astrolabe.shapes.settings import CLIP_FRAMES, ShapesSettings


def shapes() -> TrainConfig:
    """Align the embedded model in a few minutes on two cores: what ``astrolabe demo`` runs."""
    return TrainConfig(
        seed=0,
        steps=52,
        model=ShapesSettings(),
        prompts="practice",
        rollout=RolloutSettings(prompts=6, group_size=12, micro_batch=12, side_by_side=1),
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
    """The control: the same run under random rewards. Nothing should improve."""
    return replace(shapes(), rewards=(RewardSettings(name="random"),))


def shapes_selective() -> TrainConfig:
    """The same run with selective regularisation: samples that only the joint oracle rates high are anchored."""
    base = shapes()
    primary, *others = base.rewards
    return replace(
        base,
        rewards=(replace(primary, role="primary"), *others),
        regularisation=RegularisationSettings(samples="selective", strength=0.04),
    )


def shapes_positive() -> TrainConfig:
    """A rival: positive-only fine-tuning, without the loss that pushes away from bad samples."""
    settings = PositiveSettings(beta=0.1, behavior_keep=0.5, levels_per_sample=2, common_noise=True)
    return all_samples(replace(shapes(), algorithm=settings))


def shapes_reward_weighted() -> TrainConfig:
    """A rival: reward-weighted flow matching on the model's own samples."""
    settings = RewardWeightedSettings(behavior_keep=0.5, levels_per_sample=2, common_noise=True)
    return all_samples(replace(shapes(), algorithm=settings))


def all_samples(cfg: TrainConfig) -> TrainConfig:
    """Without a choice by advantage: where every sample pulls, those of small advantage count too."""
    return replace(cfg, optimizer=replace(cfg.optimizer, share=1.0))


def shapes_grpo() -> TrainConfig:
    """A rival: GRPO, policy gradients along the sampler's own steps."""
    return replace(shapes(), algorithm=GRPOSettings(behavior_keep=0.0, levels_per_sample=2))


def shapes_tiny() -> TrainConfig:
    """Two steps, to see that everything works; for tests and for trying out changes."""
    base = shapes()
    return replace(
        base,
        steps=2,
        rollout=RolloutSettings(prompts=2, group_size=2, micro_batch=2, side_by_side=1),
        window=WindowSettings(frames=6),
        lora=LoraSettings(rank=4, alpha=8.0),
        optimizer=replace(base.optimizer, minibatches=1, micro_batch=2),
        checkpoint_every=1,
    )
