"""Recipes for released models: the paper's hyper-parameters and rewards (sections 6 and 7), on short clips."""

from __future__ import annotations

from dataclasses import replace

from astrolabe.experiment import TrainConfig
from astrolabe.models.settings import ReleasedSettings
from astrolabe.rewards.settings import RewardModelSettings, RewardSettings
from astrolabe.rl.settings import LoraSettings, NFTSettings, OptimizerSettings, RegularisationSettings
from astrolabe.rollout.settings import RolloutSettings, WindowSettings

# How good every picture looks, how well it moves, and whether it shows what was asked for.
PREFERENCES = (
    RewardSettings(name="hpsv3", role="primary", model=RewardModelSettings()),
    RewardSettings(name="videoalign_mq", model=RewardModelSettings()),
    RewardSettings(name="videoalign_ta", model=RewardModelSettings()),
)


def self_forcing() -> TrainConfig:
    """Align Self-Forcing 1.3B on clips of five seconds."""
    return TrainConfig(
        seed=0,
        steps=200,
        model=ReleasedSettings(name="self-forcing"),
        prompts="prompts.txt",
        rollout=RolloutSettings(prompts=2, group_size=24, micro_batch=1),
        window=WindowSettings(frames=21),
        rewards=PREFERENCES,
        regularisation=RegularisationSettings(samples="selective"),
        algorithm=NFTSettings(beta=1.0, behavior_keep=0.9),
        lora=LoraSettings(rank=256, alpha=256.0),
        optimizer=OptimizerSettings(lr=1e-5, micro_batch=1, gradient_checkpointing=True),
    )


def causal_forcing() -> TrainConfig:
    """Align Causal-Forcing 1.3B, chunk by chunk, on clips of five seconds."""
    return replace(self_forcing(), model=ReleasedSettings(name="causal-forcing"))


def longlive() -> TrainConfig:
    """Align LongLive 1.3B: its base and its own adapter stay frozen."""
    return replace(self_forcing(), model=ReleasedSettings(name="longlive"))


def krea_realtime() -> TrainConfig:
    """Align Krea realtime 14B on clips of five seconds."""
    return replace(self_forcing(), model=ReleasedSettings(name="krea-realtime-14b"))


def self_forcing_24gb() -> TrainConfig:
    """Self-Forcing on one card of 24 GB, such as an RTX 4090."""
    return on_24_gb(self_forcing())


def causal_forcing_24gb() -> TrainConfig:
    """Causal-Forcing on one card of 24 GB."""
    return on_24_gb(causal_forcing())


def longlive_24gb() -> TrainConfig:
    """LongLive on one card of 24 GB."""
    return on_24_gb(longlive())


def on_24_gb(cfg: TrainConfig) -> TrainConfig:
    """A recipe in so little memory that a step fits a card of 24 GB, as ``astrolabe plan`` counts it.

    What changes training: adapters of rank 64 at the same scale, and HPSv3 looks at every fourth frame. What does not:
    one prompt after another, a chunk at a time, in blocks that are run again; and what is idle waits in the host's
    memory, 20 GB of reward models above all.
    """
    primary, *others = cfg.rewards
    return replace(
        cfg,
        rollout=replace(cfg.rollout, side_by_side=1),
        rewards=(replace(primary, model=RewardModelSettings(every=4, token_budget=4096)), *others),
        lora=LoraSettings(rank=64, alpha=64.0),
        optimizer=replace(cfg.optimizer, chunks=1),
        offload=True,
    )
