"""What one experiment is made of: its configuration, and the objects that the configuration names."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from astrolabe.data.prompts import PromptList, read_prompts
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rewards.base import Reward
from astrolabe.rewards.shapes import OracleReward, Oracles, RandomReward
from astrolabe.rl.nft import NFTSettings
from astrolabe.rl.policies import LoraSettings
from astrolabe.rl.update import OptimizerSettings
from astrolabe.rollout.group import RolloutSettings
from astrolabe.runtime.config import config, setting
from astrolabe.runtime.errors import UserError
from astrolabe.shapes.captions import WORDINGS, caption, parse, split
from astrolabe.shapes.model import default_dtype, load_shapes_model

HARD_MOTIONS, PRACTICE = ("bounce", "pulse"), 5
Dtype = Literal["auto", "bfloat16", "float32"]
RewardName = Literal["joint", "colour", "shape", "motion", "colour_fit", "shape_fit", "motion_fit", "cleanliness",
                     "smoothness", "steadiness", "random"]  # fmt: skip


@config
class ModelSettings:
    """Which generator is aligned."""

    name: Literal["shapes"] = setting("model; `shapes` is embedded in the package", default="shapes")
    dtype: Dtype = setting(
        "what the frozen base computes in; `auto` is bfloat16 where the machine multiplies it natively", default="auto"
    )
    device: str = setting("where it runs: cpu, cuda, cuda:1", default="cpu")


@config
class RewardSettings:
    """One reward and its weight."""

    name: RewardName = setting("reward; steadiness is the opposite of flicker, random is a control that knows nothing")
    weight: float = setting("share of influence on the sum", default=1.0, ge=0)


@config
class TrainConfig:
    """Everything that decides a run."""

    seed: int = setting("seed of every random number of the run", default=0, ge=0, le=2**32 - 1)
    steps: int = setting("rollouts, each followed by one update", unit="steps", ge=1)
    model: ModelSettings
    prompts: str = setting(
        "file with one prompt a line; `train`: the training scenes of the shapes world; `practice`: the same, with the "
        "two motions that the embedded model finds hard, bounce and pulse, five times as often"
    )
    rollout: RolloutSettings
    rewards: tuple[RewardSettings, ...] = setting("rewards, each by name and weight", min_length=1)
    algorithm: NFTSettings
    lora: LoraSettings
    optimizer: OptimizerSettings
    checkpoint_every: int = setting("checkpoints are this far apart", unit="steps", default=10, ge=1)
    sample_every: int = setting("groups kept for the report are this far apart", unit="steps", default=10, ge=1)
    tensorboard: bool = setting("write TensorBoard events too", default=False)

    def __post_init__(self) -> None:
        names = [reward.name for reward in self.rewards]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise UserError(f"rewards: {', '.join(repeated)} is named twice; give each reward once, with its weight")
        if self.optimizer.minibatches > self.rollout.prompts:
            raise UserError(
                f"optimizer.minibatches={self.optimizer.minibatches}: a step has {self.rollout.prompts} groups (one a "
                "prompt) to deal among them; choose at most that many"
            )


def resolved(cfg: TrainConfig) -> TrainConfig:
    """The configuration with nothing left to the machine, as a run stores it; UserError for a device that is absent."""
    check_device(cfg.model.device)
    if cfg.model.dtype != "auto":
        return cfg
    native = default_dtype(cfg.model.device) == torch.bfloat16
    return replace(cfg, model=replace(cfg.model, dtype="bfloat16" if native else "float32"))


def check_device(device: str) -> None:
    """Raise UserError unless torch can put a tensor there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model.device={device}: not usable here ({reason}); cpu always is") from None


def make_generator(settings: ModelSettings) -> WanGenerator:
    """The generator that the settings name, on its device."""
    check_device(settings.device)
    dtypes = {"auto": default_dtype(settings.device), "bfloat16": torch.bfloat16, "float32": torch.float32}
    model = load_shapes_model(dtypes[settings.dtype])
    model.transformer.to(settings.device)
    for module in (model.text_encoder, model.codec):
        assert isinstance(module, torch.nn.Module)
        module.to(settings.device)
    return model


def make_rewards(cfg: TrainConfig) -> list[Reward]:
    """The rewards that the settings name, in order."""
    made: list[Reward] = []
    oracles = Oracles()
    for settings in cfg.rewards:
        if settings.name == "random":
            made.append(RandomReward(cfg.seed))
        elif settings.name == "steadiness":
            made.append(OracleReward("steadiness", "flicker", oracles, sign=-1.0))
        else:
            made.append(OracleReward(settings.name, settings.name, oracles))
    return made


def make_prompts(cfg: TrainConfig) -> PromptList:
    """The prompts that training draws from; UserError when the oracles could not judge one."""
    if cfg.prompts in ("train", "practice"):
        scenes = split("train")
        if cfg.prompts == "practice":
            scenes += tuple(scene for scene in scenes if scene.motion in HARD_MOTIONS) * (PRACTICE - 1)
        texts = [caption(scene, index % WORDINGS) for index, scene in enumerate(scenes * WORDINGS)]
    else:
        texts = read_prompts(cfg.prompts)
        for text in texts:
            parse(text)
    return PromptList(texts, cfg.rollout.prompts, cfg.seed)
