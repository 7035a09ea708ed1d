"""What one experiment is made of: its configuration, and the objects that the configuration names."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast

import torch

from astrolabe.data.prompts import PromptList, read_prompts
from astrolabe.data.scripts import parse_script, plan
from astrolabe.models.opening import ReleasedName, ReleasedSettings, open_model
from astrolabe.models.released import released
from astrolabe.models.wan.config import StreamConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rewards.base import Reward
from astrolabe.rewards.pixels import PixelMotion, PixelSteadiness
from astrolabe.rewards.shapes import OracleReward, Oracles, RandomReward
from astrolabe.rl.nft import NFT, NFTSettings
from astrolabe.rl.policies import LoraSettings
from astrolabe.rl.update import OptimizerSettings
from astrolabe.rollout.settings import RolloutSettings, WindowSettings
from astrolabe.runtime.config import config, setting
from astrolabe.runtime.device import Dtype, check_device, default_dtype, torch_dtype
from astrolabe.runtime.errors import UserError
from astrolabe.shapes.captions import WORDINGS, caption, parse, split
from astrolabe.shapes.model import STREAM, load_shapes_model
from astrolabe.shapes.world import FPS

HARD = ("bounce", "pulse", "cross")  # words of the scenes that the embedded model gets wrong most
RewardName = Literal["joint", "colour", "shape", "motion", "colour_fit", "shape_fit", "motion_fit", "cleanliness",
                     "smoothness", "steadiness", "pixel_motion", "pixel_steadiness", "random"]  # fmt: skip
# All other rewards know the shapes world alone.
ANY_VIDEO: dict[str, Reward] = {"pixel_motion": PixelMotion(), "pixel_steadiness": PixelSteadiness()}


@config
class ShapesSettings:
    """The embedded model."""

    name: Literal["shapes"] = setting("model; `shapes` is embedded in the package", default="shapes")
    dtype: Dtype = setting(
        "what the frozen base computes in; `auto` is bfloat16 where the machine multiplies it natively", default="auto"
    )
    device: str = setting("where it runs: cpu, cuda, cuda:1", default="cpu")

    @property
    def place(self) -> str:
        """The device."""
        return self.device

    @property
    def stream(self) -> StreamConfig:
        """How it streams."""
        return STREAM


ModelSettings = ShapesSettings | ReleasedSettings


@config
class ModelChoice:
    """A model by itself, as commands other than training take it."""

    model: ShapesSettings | ReleasedSettings


@config
class RewardSettings:
    """One reward and its weight."""

    name: RewardName = setting(
        "reward; steadiness is the opposite of flicker, random is a control that knows nothing; pixel_* judge any video"
    )
    weight: float = setting("share of influence on the sum", default=1.0, ge=0)


@config
class TrainConfig:
    """Everything that decides a run."""

    seed: int = setting("seed of every random number of the run", default=0, ge=0, le=2**32 - 1)
    steps: int = setting("windows, each made, scored and followed by one update", unit="steps", ge=1)
    model: ShapesSettings | ReleasedSettings = setting("which generator is aligned")
    prompts: str = setting(
        "file with one prompt or one-line script a line; `train`: the training scenes of the shapes world; `practice`: "
        "those with what the embedded model finds hard, bounces, pulses and crosses"
    )
    rollout: RolloutSettings
    window: WindowSettings
    rewards: tuple[RewardSettings, ...] = setting("rewards, each by name and weight", min_length=1)
    algorithm: NFTSettings
    lora: LoraSettings
    optimizer: OptimizerSettings
    offload: bool = setting(
        "between phases, keep in the host's memory what is idle on the device: the decoder and the reference",
        default=False,
    )
    checkpoint_every: int = setting("checkpoints are this far apart", unit="steps", default=10, ge=1)
    sample_every: int = setting("groups kept for the report are this far apart", unit="steps", default=10, ge=1)
    tensorboard: bool = setting("write TensorBoard events too", default=False)

    def __post_init__(self) -> None:
        names = [reward.name for reward in self.rewards]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise UserError(f"rewards: {', '.join(repeated)} is named twice; give each reward once, with its weight")
        strangers = [name for name in names if name not in (*ANY_VIDEO, "random")]
        if isinstance(self.model, ReleasedSettings) and strangers:
            raise UserError(
                f"rewards: {', '.join(strangers)} judges the shapes world alone, and the model is {self.model.name}; "
                f"any video is judged by {', '.join(ANY_VIDEO)}"
            )
        if isinstance(self.model, ReleasedSettings) and self.model.rebuild_frames is not None:
            raise UserError(
                "model.rebuild_frames: training does not rebuild the cache and would train another policy; leave it out"
            )
        if self.optimizer.micro_batch > self.rollout.group_size:
            raise UserError(
                f"optimizer.micro_batch={self.optimizer.micro_batch}: a prompt has {self.rollout.group_size} candidates "
                f"(rollout.group_size) and those of one are forwarded together; choose 1 to {self.rollout.group_size}"
            )
        if self.optimizer.minibatches > self.rollout.prompts:
            raise UserError(
                f"optimizer.minibatches={self.optimizer.minibatches}: a step has {self.rollout.prompts} groups (one a "
                "prompt) to deal among them; choose at most that many"
            )


def resolved(cfg: TrainConfig) -> TrainConfig:
    """The configuration with nothing left to the machine, as a run stores it; UserError for a device that is absent."""
    place = cfg.model.place
    check_device(place)
    native = default_dtype(place) == torch.bfloat16
    dtype: Dtype = cfg.model.dtype if cfg.model.dtype != "auto" else "bfloat16" if native else "float32"
    return replace(cfg, model=replace(cfg.model, dtype=dtype, device=place))


def model_settings(name: str) -> ModelSettings:
    """The settings of a model by its name; UserError with the nearest names for one that is unknown."""
    if name == ShapesSettings().name:
        return ShapesSettings()
    return ReleasedSettings(name=cast(ReleasedName, released(name).name))


def make_generator(settings: ModelSettings) -> WanGenerator:
    """The generator that the settings name, on its device."""
    if isinstance(settings, ReleasedSettings):
        return open_model(settings)
    check_device(settings.device)
    model = load_shapes_model(torch_dtype(settings.dtype, settings.device))
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
        elif settings.name in ANY_VIDEO:
            made.append(ANY_VIDEO[settings.name])
        elif settings.name == "steadiness":
            made.append(OracleReward("steadiness", "flicker", oracles, sign=-1.0))
        else:
            made.append(OracleReward(settings.name, settings.name, oracles))
    return made


def make_prompts(cfg: TrainConfig) -> PromptList:
    """The prompts that training draws from; UserError when the oracles could not judge one."""
    if isinstance(cfg.model, ReleasedSettings):
        texts = read_prompts(cfg.prompts)
    elif cfg.prompts in ("train", "practice"):
        scenes = split("train")
        if cfg.prompts == "practice":
            scenes = tuple(scene for scene in scenes if scene.motion in HARD or scene.shape in HARD)
        texts = [caption(scene, index % WORDINGS) for index, scene in enumerate(scenes * WORDINGS)]
    else:
        texts = read_prompts(cfg.prompts)
    prompts = PromptList(texts, cfg.rollout.prompts, cfg.seed)
    if not isinstance(cfg.model, ReleasedSettings):
        for text in prompts.texts:
            parse(text)
    return prompts


def make_algorithm(cfg: TrainConfig) -> NFT:
    """The algorithm that the settings describe."""
    return NFT(cfg.algorithm, tuple(reward.weight for reward in cfg.rewards))


def check_windows(cfg: TrainConfig, prompts: PromptList | None, algorithm: NFT) -> None:
    """UserError unless windows, and scripts if there are any, fall on whole chunks, lie in their video, and have the
    levels asked for. Nothing needs to be loaded for that.
    """
    stream, window = cfg.model.stream, cfg.window
    window.check(stream)
    chunk = stream.chunk_frames
    algorithm.level_table(stream, 1 + (window.length - 1) // chunk)
    seconds = (4 * window.length - 3) / FPS
    for line in dict.fromkeys(prompts.prompts if prompts else ()):
        script = parse_script(line)
        plan(script, seconds, FPS, chunk)
        if len(script) > 1 and stream.sink_frames % chunk and any(shot.enter == "switch" for shot in script[1:]):
            raise UserError(
                f"model.sink_frames={stream.sink_frames} is not whole chunks of {chunk}, and the prompt {line!r} "
                f"switches: what is remembered could not be run again; choose a multiple of {chunk}, or cut with ||"
            )
