"""Recipes for released models: the paper's hyper-parameters (section 7), on short clips.

Until a model that judges is named among the rewards, two measures of motion that need no weights stand in for it.
"""

from __future__ import annotations

from dataclasses import replace

from astrolabe.experiment import RewardSettings, TrainConfig
from astrolabe.models.opening import ReleasedSettings
from astrolabe.rl.nft import NFTSettings
from astrolabe.rl.policies import LoraSettings
from astrolabe.rl.update import OptimizerSettings
from astrolabe.rollout.settings import RolloutSettings, WindowSettings


def self_forcing() -> TrainConfig:
    """Align Self-Forcing 1.3B on clips of five seconds."""
    return TrainConfig(
        seed=0,
        steps=200,
        model=ReleasedSettings(name="self-forcing"),
        prompts="prompts.txt",
        rollout=RolloutSettings(prompts=2, group_size=24, micro_batch=1),
        window=WindowSettings(frames=21),
        rewards=(RewardSettings(name="pixel_motion"), RewardSettings(name="pixel_steadiness")),
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
