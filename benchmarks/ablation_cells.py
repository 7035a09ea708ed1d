"""What ``make ablations`` compares: every cell is a configuration that differs from the standard one in what it is
named after. ``b`` regularisation, ``c`` which rewards, ``d`` adaptive weighting, ``e`` beta, levels and context, ``r``
rivals, ``s`` streaming."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from astrolabe.experiment import TrainConfig
from astrolabe.recipes.shapes import shapes
from astrolabe.rewards.settings import RewardSettings
from astrolabe.rl.settings import (
    GRPOSettings,
    GuardSettings,
    NFTSettings,
    PositiveSettings,
    RegularisationSettings,
    RewardWeightedSettings,
    WatchSettings,
)
from astrolabe.rollout.settings import RolloutSettings, WindowSettings
from astrolabe.shapes.settings import CLIP_FRAMES, ShapesSettings

BLIND = 1e9  # an a_max at which every sample weighs the same; added when it had been seen that positive falls
NFT = NFTSettings(beta=0.1, behavior_keep=0.5, levels_per_sample=1, common_noise=True)
POSITIVE = PositiveSettings(beta=0.1, behavior_keep=0.5, common_noise=True)
WEIGHTED = RewardWeightedSettings(behavior_keep=0.5, common_noise=True)
GRPO = GRPOSettings(behavior_keep=0.0)


def standard() -> TrainConfig:
    """The demo's recipe at a size that five seeds of every cell can be paid for."""
    base = shapes()
    return replace(
        base, steps=24, algorithm=NFT, model=ShapesSettings(dtype="bfloat16"),
        rollout=RolloutSettings(prompts=4, group_size=8, micro_batch=8),
        optimizer=replace(base.optimizer, minibatches=2, share=1.0, micro_batch=8),
        checkpoint_every=6, checkpoints_kept=4, sample_every=24,
    )  # fmt: skip


def at_rate(cfg: TrainConfig, times: float, **fields: Any) -> TrainConfig:
    """The same run at so many times the learning rate."""
    return replace(cfg, optimizer=replace(cfg.optimizer, lr=times * cfg.optimizer.lr, **fields))


def algorithm(settings: Any) -> TrainConfig:
    """The standard run under another algorithm."""
    return replace(standard(), algorithm=settings)


def reward(name: Any, weight: float = 1.0, **fields: Any) -> RewardSettings:
    """One reward."""
    return RewardSettings(name=name, weight=weight, **fields)


def rewarded(*rewards: RewardSettings, **fields: Any) -> TrainConfig:
    """Trained on these rewards, on all kinds of scenes and at twice the rate: a proxy is to be served as well as it
    can be."""
    return replace(at_rate(standard(), 2), prompts="train", rewards=rewards, **fields)


def hacking(samples: Any = "none", strength: float = 0.004, **fields: Any) -> TrainConfig:
    """One reward that any brighter blob pleases, primary, and two that know a little, under a regulariser."""
    rewards = (
        reward("pixel_saturation", role="primary"),
        reward("pixel_steadiness", 0.25),
        reward("pixel_motion", 0.25),
    )
    if samples == "none":
        return rewarded(*rewards)
    pull = RegularisationSettings(samples=samples, strength=strength, share=0.2, max_age=5, **fields)
    return rewarded(*rewards, regularisation=pull)


def windows(settings: WindowSettings) -> TrainConfig:
    """The standard run on other windows."""
    return replace(standard(), window=settings)


# The rules that need no oracle stop a run, and cleanliness, which does not know the prompt, says which adapter was the
# best; the other guard is the yardstick itself, on training prompts: as good as a guard can be.
BY_PIXELS = WatchSettings(guards=(
    GuardSettings(watch="motion_energy", below=0.6, steps=2, action="stop"),
    GuardSettings(watch="saturation", above=1.2, steps=2, action="stop"),
))  # fmt: skip
# At 60 % it never spoke where steadiness was trained on; this one was added when that had been seen.
CLOSELY = WatchSettings(guards=(
    GuardSettings(watch="motion_energy", below=0.8, steps=2, action="stop"),
    GuardSettings(watch="saturation", below=0.8, steps=2, action="stop"),
))  # fmt: skip
BY_JUDGE = WatchSettings(guards=(GuardSettings(watch="joint", drop=0.15, steps=2, action="stop"),))
CLEAN, JOINT = reward("cleanliness", role="judge"), reward("joint", role="judge")
BLOB, STILL = reward("pixel_saturation"), reward("pixel_steadiness")
KNOWING = (reward("shape_fit"), reward("motion_fit"))

CELLS: dict[str, TrainConfig] = {
    "standard": standard(),
    "b none": hacking(),
    "b uniform weak": hacking("uniform", 0.001, reference="fixed"),
    "b uniform fixed": hacking("uniform", reference="fixed"),
    "b uniform moving": hacking("uniform"),
    "b selective fixed": hacking("selective", reference="fixed"),
    "b selective moving": hacking("selective"),
    "b selective moving, descending": hacking("selective", order="descending"),
    "b random fixed": hacking("random", reference="fixed"),
    "b random moving": hacking("random"),
    "c saturation": rewarded(BLOB),
    "c steadiness": rewarded(STILL),
    "c shape_fit": rewarded(KNOWING[0]),
    "c motion_fit": rewarded(KNOWING[1]),
    "c saturation + steadiness": rewarded(BLOB, STILL),
    "c shape_fit + motion_fit": rewarded(*KNOWING),
    "c all": rewarded(BLOB, STILL, *KNOWING),
    "c all, saturation anchored": rewarded(
        replace(BLOB, role="primary"), STILL, *KNOWING, regularisation=hacking("selective").regularisation),
    "c saturation, guarded by pixels": rewarded(BLOB, CLEAN, watch=BY_PIXELS),
    "c steadiness, guarded by pixels": rewarded(STILL, CLEAN, watch=BY_PIXELS),
    "c steadiness, guarded closely": rewarded(STILL, CLEAN, watch=CLOSELY),
    "c saturation, guarded by joint": rewarded(BLOB, JOINT, watch=BY_JUDGE),
    "d adaptive": algorithm(replace(NFT, weighting="adaptive")),
    "d plain, fast": at_rate(standard(), 4, schedule="constant"),
    "d adaptive, fast": at_rate(algorithm(replace(NFT, weighting="adaptive")), 4, schedule="constant"),
    "e beta 0.3": algorithm(replace(NFT, beta=0.3)),
    "e beta 1": algorithm(replace(NFT, beta=1.0)),
    "e unwarped": algorithm(replace(NFT, levels="unwarped")),
    "e uniform levels": algorithm(replace(NFT, levels="uniform")),
    "e noisy context": algorithm(replace(NFT, context="noisy")),
    "r positive": algorithm(POSITIVE),
    "r positive, sharper": algorithm(replace(POSITIVE, a_max=1.0)),
    "r positive, sharper, slower": at_rate(algorithm(replace(POSITIVE, a_max=1.0)), 0.25),
    "r positive, blind": algorithm(replace(POSITIVE, a_max=BLIND)),
    "r reward_weighted": algorithm(WEIGHTED),
    "r reward_weighted, slower": at_rate(algorithm(WEIGHTED), 0.25),
    "r grpo": algorithm(GRPO),
    "r grpo, slower": at_rate(algorithm(GRPO), 0.25),
    "s short clips": windows(WindowSettings(frames=CLIP_FRAMES)),
    "s streaming": windows(WindowSettings(frames=CLIP_FRAMES, start="random", video_frames=4 * CLIP_FRAMES)),
}  # fmt: skip
