"""Recipes for the embedded model."""

from __future__ import annotations

from dataclasses import replace

from astrolabe.experiment import TrainConfig
from astrolabe.rewards.settings import RewardSettings
from astrolabe.rl.settings import (
    GRPOSettings,
    GuardSettings,
    LoraSettings,
    NFTSettings,
    OptimizerSettings,
    PositiveSettings,
    RegularisationSettings,
    RewardWeightedSettings,
    WatchSettings,
)
from astrolabe.rollout.settings import RolloutSettings, WindowSettings
from astrolabe.shapes.settings import CLIP_FRAMES, ShapesSettings


def shapes() -> TrainConfig:
    """Align the embedded model in a few minutes on two cores: what ``astrolabe demo`` runs."""
    return TrainConfig(
        seed=0,
        steps=36,
        model=ShapesSettings(),
        prompts="train",
        rollout=RolloutSettings(prompts=6, group_size=8, micro_batch=8, side_by_side=3),
        window=WindowSettings(frames=CLIP_FRAMES),
        rewards=(
            RewardSettings(name="joint", weight=3.0),
            RewardSettings(name="right"),
            RewardSettings(name="motion_fit", weight=3.0),
        ),
        algorithm=NFTSettings(beta=0.1, behavior_keep=0.9, levels_per_sample=2, common_noise=True),
        lora=LoraSettings(rank=4, alpha=8.0),
        optimizer=OptimizerSettings(lr=8e-4, eps=1e-10, schedule="cosine", minibatches=3, share=0.5, micro_batch=8),
    )


def shapes_framewise() -> TrainConfig:
    """The same for the embedded model that streams frame by frame."""
    return replace(shapes(), model=ShapesSettings(name="shapes-framewise"))


def shapes_2step() -> TrainConfig:
    """The same for the embedded model that streams frame by frame in two steps."""
    return replace(shapes(), model=ShapesSettings(name="shapes-2step"))


def shapes_random() -> TrainConfig:
    """The control: the same run under random rewards. Nothing should improve."""
    return replace(shapes(), rewards=(RewardSettings(name="random"),))


def shapes_spoiled() -> TrainConfig:
    """What goes wrong: one reward alone, which a video of nothing at all serves best. What was asked for is only
    watched. The rate is twice as high, and the behavior policy follows faster."""
    base = shapes()
    rewards = (RewardSettings(name="steadiness"), RewardSettings(name="right", role="judge"))
    optimizer, algorithm = replace(base.optimizer, lr=2 * base.optimizer.lr), replace(base.algorithm, behavior_keep=0.5)
    return replace(base, steps=base.steps // 2, rewards=rewards, optimizer=optimizer, algorithm=algorithm)


def shapes_guarded() -> TrainConfig:
    """The remedy: the same reward at the same rate among others that know the prompt, samples on which they disagree
    held near a reference that moves, and a guard that ends the run with the best adapter if what was asked for gets
    lost."""
    alone = shapes_spoiled()
    steadiness, judge = alone.rewards
    others = [reward for reward in shapes().rewards if reward.name != judge.name]
    return replace(
        alone,
        rewards=(replace(steadiness, role="primary"), *others, judge),
        regularisation=RegularisationSettings(samples="selective", strength=0.004, share=0.2, max_age=5),
        watch=WatchSettings(memory=0.5, guards=(GuardSettings(watch="right", drop=0.2, steps=2, action="stop"),)),
    )


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
    settings = PositiveSettings(beta=0.1, behavior_keep=0.9, levels_per_sample=2, common_noise=True)
    return all_samples(replace(shapes(), algorithm=settings))


def shapes_reward_weighted() -> TrainConfig:
    """A rival: reward-weighted flow matching on the model's own samples."""
    settings = RewardWeightedSettings(behavior_keep=0.9, levels_per_sample=2, common_noise=True)
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
