"""What one experiment is made of: its configuration, and the objects that the configuration names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import torch

from astrolabe.data.prompts import PromptList
from astrolabe.data.scripts import parse_script, plan, prompts_of
from astrolabe.models.opening import ReleasedName, ReleasedSettings, open_model
from astrolabe.models.released import released
from astrolabe.models.wan.config import StreamConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rewards.base import Member, Scorer, UncertainReward
from astrolabe.rewards.opening import Opening
from astrolabe.rewards.pool import Pool, PoolSettings
from astrolabe.rewards.settings import DOUBTING, KNOWN, MEASURES, MODELS, ONE_FRAME, ORACLES, RewardSettings
from astrolabe.rl.algorithm import Algorithm
from astrolabe.rl.grpo import GRPO, GRPOSettings
from astrolabe.rl.guards import Watch, WatchSettings
from astrolabe.rl.nft import NFT, NFTSettings
from astrolabe.rl.policies import LoraSettings
from astrolabe.rl.positive import Positive, PositiveSettings
from astrolabe.rl.regularisation import RegularisationSettings, Regulariser
from astrolabe.rl.reward_weighted import RewardWeighted, RewardWeightedSettings
from astrolabe.rl.update import OptimizerSettings
from astrolabe.rollout.settings import RolloutSettings, WindowSettings
from astrolabe.runtime.config import config, setting
from astrolabe.runtime.device import Dtype, check_device, default_dtype, torch_dtype
from astrolabe.runtime.errors import UserError
from astrolabe.shapes.captions import WORDINGS, caption, parse, split
from astrolabe.shapes.model import STREAM, load_shapes_model
from astrolabe.shapes.oracles import SHORTEST
from astrolabe.shapes.world import FPS

HARD = ("bounce", "pulse", "cross")  # words of the scenes that the embedded model gets wrong most


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
    rewards: tuple[RewardSettings, ...] = setting("rewards, each by name, weight and role", min_length=1)
    max_dropped: float = setting(
        "share of a step's samples that may go without a finite score; beyond it the run stops", default=0.1, ge=0, lt=1
    )
    algorithm: NFTSettings | PositiveSettings | RewardWeightedSettings | GRPOSettings
    regularisation: RegularisationSettings = RegularisationSettings()
    watch: WatchSettings = WatchSettings()
    pool: PoolSettings = PoolSettings()
    lora: LoraSettings
    optimizer: OptimizerSettings
    offload: bool = setting(
        "between phases, keep in the host's memory what is idle on the device: the decoder and the reference",
        default=False,
    )
    checkpoint_every: int = setting("checkpoints are this far apart", unit="steps", default=10, ge=1)
    checkpoints_kept: int = setting("so many of the newest checkpoints stay", default=2, ge=1)
    sample_every: int = setting("groups kept for the report are this far apart", unit="steps", default=10, ge=1)
    tensorboard: bool = setting("write TensorBoard events too", default=False)

    def __post_init__(self) -> None:
        names = [reward.name for reward in self.rewards]
        check_roles(self.rewards, self.regularisation)
        strangers = [name for name in names if name in ORACLES]
        if isinstance(self.model, ReleasedSettings) and strangers:
            raise UserError(
                f"rewards: {', '.join(strangers)} judges the shapes world alone, and the model is {self.model.name}; "
                f"any video is judged by {', '.join((*MODELS, *MEASURES))}"
            )
        if isinstance(self.model, ReleasedSettings) and self.model.rebuild_frames is not None:
            raise UserError(
                "model.rebuild_frames: training does not rebuild the cache and would train another policy; leave it out"
            )
        if self.optimizer.micro_batch > self.rollout.group_size:
            raise UserError(
                f"optimizer.micro_batch={self.optimizer.micro_batch}: a prompt has {self.rollout.group_size} "
                f"candidates (rollout.group_size), forwarded together; choose 1 to {self.rollout.group_size}"
            )
        if self.optimizer.minibatches > self.rollout.prompts:
            raise UserError(
                f"optimizer.minibatches={self.optimizer.minibatches}: a step has {self.rollout.prompts} groups (one a "
                "prompt) to deal among them; choose at most that many"
            )


def check_roles(rewards: Sequence[RewardSettings], regularisation: RegularisationSettings) -> None:
    """UserError unless the rewards make sense together, and under this regularisation."""
    names = [reward.name for reward in rewards]
    for name in sorted({name for name in names if names.count(name) > 1}):
        roles = {reward.role for reward in rewards if reward.name == name}
        if "judge" in roles and len(roles) > 1:
            raise UserError(f"rewards: {name} is a judge and trained on too; what judges must not be learned: drop one")
        raise UserError(f"rewards: {name} is named twice; give each reward once, with its weight")
    primaries = [reward.name for reward in rewards if reward.role == "primary"]
    if len(primaries) > 1:
        raise UserError(f"rewards: {' and '.join(primaries)} are both primary; one is, the others are auxiliary")
    trained = [reward for reward in rewards if reward.role != "judge"]
    if not any(reward.weight for reward in trained):
        raise UserError("rewards: every reward that is trained on has weight 0; give one of them a weight above it")
    for reward in rewards:
        if reward.frames is not None and reward.name not in ONE_FRAME and not reward.own:
            raise UserError(
                f"rewards: {reward.name} looks at motion and must see every frame; frames={reward.frames} is for "
                f"{', '.join(ONE_FRAME)}"
            )
        if reward.frames is not None and reward.name in ORACLES and reward.frames < SHORTEST:
            raise UserError(f"rewards: {reward.name} with frames={reward.frames}: the oracles need at least {SHORTEST}")
    if regularisation.samples in ("selective", "random"):
        if not primaries:
            raise UserError(
                f"regularisation.samples={regularisation.samples} asks where the primary reward and others disagree: "
                "give one reward role=primary"
            )
        if not next(reward.weight for reward in rewards if reward.role == "primary"):
            raise UserError(f"rewards: the primary reward {primaries[0]} has weight 0; nobody would serve it too well")
        if primaries[0] in KNOWN and primaries[0] not in DOUBTING:
            check_doubt(primaries[0], regularisation)
        if len(trained) < 2:
            raise UserError(
                f"regularisation.samples={regularisation.samples} compares the primary reward {primaries[0]} with "
                "auxiliary ones: give at least one more reward that is no judge (it may have weight 0)"
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


def in_order(rewards: Sequence[RewardSettings]) -> list[RewardSettings]:
    """Those that are trained on, then the judges."""
    return sorted(rewards, key=lambda reward: reward.role == "judge")


def opening_of(cfg: TrainConfig) -> Opening:
    """What makes the rewards of a run."""
    return Opening(cfg.seed, float(FPS), cfg.model.stream.chunk_frames)


def make_rewards(cfg: TrainConfig) -> list[Member]:
    """The suite that the settings name: first what is trained on, then the judges."""
    opening = opening_of(cfg)
    return [
        Member(opening.reward(settings), settings.weight, settings.role, settings.span, settings.frames)
        for settings in in_order(cfg.rewards)
    ]


@contextmanager
def make_scorers(cfg: TrainConfig) -> Iterator[tuple[list[Member], Callable[[int], Scorer]]]:
    """The suite, and what makes a scorer of so many rows; workers live as long as the scope."""
    if cfg.pool.backend == "ray":
        with closing(Pool(cfg.pool, in_order(cfg.rewards), opening_of(cfg))) as pool:
            check_suite(cfg, pool.suite)
            yield pool.suite, pool.scorer
    else:
        suite = make_rewards(cfg)
        check_suite(cfg, suite)
        yield suite, partial(Scorer, suite)


def check_suite(cfg: TrainConfig, suite: Sequence[Member]) -> None:
    """UserError when two rewards bear the same name, or the primary one is asked how uncertain it is and does not
    know."""
    names = [member.reward.name for member in suite]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"rewards: two of them call themselves {twice[0]!r}; give one of yours another `name`")
    for member in suite:
        if member.role == "primary" and not isinstance(member.reward, UncertainReward):
            check_doubt(member.reward.name, cfg.regularisation)


def check_doubt(name: str, regularisation: RegularisationSettings) -> None:
    """UserError when a reward that does not know how uncertain it is is asked."""
    if regularisation.uncertainty:
        raise UserError(
            f"regularisation.uncertainty={regularisation.uncertainty:g}: {name} does not say how uncertain it is; "
            "leave it at 0"
        )


def make_prompts(cfg: TrainConfig) -> PromptList:
    """The prompts that training draws from; UserError when the oracles could not judge one."""
    embedded = not isinstance(cfg.model, ReleasedSettings)
    if embedded and cfg.prompts in ("train", "practice"):
        scenes = split("train")
        if cfg.prompts == "practice":
            scenes = tuple(scene for scene in scenes if scene.motion in HARD or scene.shape in HARD)
        texts = [caption(scene, index % WORDINGS) for index, scene in enumerate(scenes * WORDINGS)]
        return PromptList(texts, cfg.rollout.prompts, cfg.seed)
    prompts = PromptList.read(cfg.prompts, cfg.rollout.prompts, cfg.seed)
    for line in dict.fromkeys(prompts.prompts if embedded else ()):
        with prompts.at(line):
            for text in prompts_of([parse_script(line)]):
                parse(text)
    return prompts


def make_algorithm(cfg: TrainConfig) -> Algorithm[Any]:
    """The algorithm that the settings describe."""
    trained = [reward for reward in in_order(cfg.rewards) if reward.role != "judge"]
    roles = [reward.role for reward in trained]
    primary = roles.index("primary") if "primary" in roles else None
    others = tuple(index for index in range(len(trained)) if index != primary)
    regulariser, weights = Regulariser(cfg.regularisation, primary, others), tuple(r.weight for r in trained)
    settings = cfg.algorithm
    if isinstance(settings, PositiveSettings):
        return Positive(settings, weights, regulariser)
    if isinstance(settings, RewardWeightedSettings):
        return RewardWeighted(settings, weights, regulariser)
    if isinstance(settings, GRPOSettings):
        return GRPO(settings, weights, regulariser)
    return NFT(settings, weights, regulariser)


def make_watch(cfg: TrainConfig, suite: Sequence[Member] = ()) -> Watch:
    """The guards and judges that the settings describe; UserError for a guard of something unknown. Scores of a user's
    own rewards bear the names that these give themselves: the opened ``suite`` knows them."""
    settings = in_order(cfg.rewards)
    names = {r.name: r.name for r in settings}
    names |= {r.name: member.reward.name for r, member in zip(settings, suite, strict=bool(suite))}
    judges: dict[str, float] = {names[r.name]: r.weight for r in settings if r.role == "judge" and r.weight}
    for guard in cfg.watch.guards:
        if guard.action == "refresh" and not cfg.regularisation.moves:
            raise UserError(
                "watch.guards: action=refresh moves the reference, but regularisation.samples="
                f"{cfg.regularisation.samples} with reference={cfg.regularisation.reference} has none that moves"
            )
    guards = tuple(replace(guard, watch=names.get(guard.watch, guard.watch)) for guard in cfg.watch.guards)
    return Watch(replace(cfg.watch, guards=guards), list(names.values()), judges)


def check_windows(cfg: TrainConfig, prompts: PromptList | None, algorithm: Algorithm[Any]) -> None:
    """UserError unless windows, and scripts if there are any, fall on whole chunks, lie in their video, and have the
    levels asked for. Nothing needs to be loaded for that.
    """
    stream, window = cfg.model.stream, cfg.window
    window.check(stream)
    chunk = stream.chunk_frames
    algorithm.level_table(stream, 1 + (window.length - 1) // chunk)
    seconds = (4 * window.length - 3) / FPS
    if prompts is None:
        return
    for line in dict.fromkeys(prompts.prompts):
        script = parse_script(line)
        with prompts.at(line):
            plan(script, seconds, FPS, chunk)
        if len(script) > 1 and stream.sink_frames % chunk and any(shot.enter == "switch" for shot in script[1:]):
            raise UserError(
                f"model.sink_frames={stream.sink_frames} is not whole chunks of {chunk}, and the prompt {line!r} "
                f"switches: what is remembered could not be run again; choose a multiple of {chunk}, or cut with ||"
            )
