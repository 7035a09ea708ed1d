"""What decides one experiment: its configuration, and the rules that hold across its parts. Nothing here needs torch.

``assembly.py`` makes the objects that a configuration names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, cast, get_args

from astrolabe.models.released import released
from astrolabe.models.settings import ReleasedName, ReleasedSettings
from astrolabe.rewards.settings import (
    DOUBTING,
    KNOWN,
    MEASURES,
    MODELS,
    ONE_FRAME,
    ORACLES,
    PoolSettings,
    RewardSettings,
)
from astrolabe.rl.settings import (
    GRPOSettings,
    LoraSettings,
    NFTSettings,
    OptimizerSettings,
    PositiveSettings,
    RegularisationSettings,
    RewardWeightedSettings,
    WatchSettings,
)
from astrolabe.rollout.settings import RolloutSettings, WindowSettings
from astrolabe.runtime.config import config, paths_in, setting
from astrolabe.runtime.device import Dtype, check_device, default_dtype
from astrolabe.runtime.errors import UserError
from astrolabe.shapes.settings import SHORTEST, ShapesName, ShapesSettings

ModelSettings = ShapesSettings | ReleasedSettings


@config
class ModelChoice:
    """A model alone, for commands other than training."""

    model: ShapesSettings | ReleasedSettings


@config
class TrainConfig:
    """Everything that decides a run."""

    seed: int = setting("seed of every random number of the run", default=0, ge=0, le=2**32 - 1)
    steps: int = setting(
        "training steps: each makes and scores one window, and updates the adapter", unit="steps", ge=1
    )
    model: ShapesSettings | ReleasedSettings = setting("the generator that is aligned")
    prompts: str = setting(
        "file with one prompt or one-line script a line; `train`: the training scenes of the shapes world",
        path=True,
    )
    init: str = setting(
        "adapter that all policies begin from: a run (RUN, RUN@STEP, RUN@best), a PEFT folder or a LoRA file, of the "
        "same base, rank and alpha; empty: they begin at the base",
        default="",
        path=True,
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
    processes: Literal["auto"] | int = setting(
        "processes of one thread each that share the work of a step on the CPU; auto: as many as torch would use "
        "threads and find work, for the embedded model and rewards that hold no weights of their own; else one",
        default="auto",
        affects="nothing",
    )
    offload: bool = setting(
        "keep in the host's memory what the device does not need at the moment: the decoder, the reference and the "
        "optimiser's moments between phases, and all reward models but the one that is scoring",
        default=False,
        affects="rounding",
    )
    checkpoint_every: int = setting(
        "a checkpoint is written every so many steps", unit="steps", default=10, ge=1, affects="nothing"
    )
    checkpoints_kept: int = setting("how many of the newest checkpoints are kept", default=2, ge=1, affects="nothing")
    sample_every: int = setting(
        "a group of candidates is kept for the report every so many steps",
        unit="steps",
        default=10,
        ge=1,
        affects="nothing",
    )
    tensorboard: bool = setting("write TensorBoard events too", default=False, affects="nothing")

    def __post_init__(self) -> None:
        names = [reward.name for reward in self.rewards]
        check_roles(self.rewards, self.regularisation)
        strangers = [name for name in names if name in ORACLES]
        if strangers and not self.model.oracles:
            raise UserError(
                f"rewards: {', '.join(strangers)} judges the shapes world alone, and the model is {self.model.name}; "
                f"any video is judged by {', '.join((*MODELS, *MEASURES))}"
            )
        self.model.check_trainable()
        if self.optimizer.micro_batch > self.rollout.group_size:
            raise UserError(
                f"optimizer.micro_batch={self.optimizer.micro_batch}: a prompt has {self.rollout.group_size} "
                f"candidates (rollout.group_size), forwarded together; choose 1 to {self.rollout.group_size}"
            )
        if self.processes != "auto" and self.processes < 1:
            raise UserError(f"processes={self.processes}: expected auto, or at least 1")
        if self.processes not in ("auto", 1) and (hindrance := self.single):
            raise UserError(f"processes={self.processes}: {hindrance}; leave it at auto, or 1")
        if self.optimizer.minibatches > self.rollout.prompts:
            raise UserError(
                f"optimizer.minibatches={self.optimizer.minibatches}: a step has {self.rollout.prompts} groups (one a "
                "prompt) to deal among them; choose at most that many"
            )

    @property
    def single(self) -> str:
        """Why only one process can work on a step; empty where several can."""
        if not self.model.place.startswith("cpu"):
            return f"one process drives {self.model.place}"
        return "with pool.backend=ray, the pool has the processes" if self.pool.backend == "ray" else ""

    @property
    def light(self) -> bool:
        """Whether nothing large would be held once more by every further process, as far as one can know."""
        return self.model.light and not any(reward.own or reward.name in MODELS for reward in self.rewards)


def files_of(cfg: TrainConfig) -> dict[str, str]:
    """The settings that name a file or a folder, or may, by dotted name; words of the program's own are none."""
    words = [f"rewards.{place}.name" for place, reward in enumerate(cfg.rewards) if not reward.own]
    words += ["prompts"] if cfg.prompts in cfg.model.lists else []
    return {name: text for name, text in paths_in(cfg).items() if name not in words and text != "none"}


def check_roles(rewards: Sequence[RewardSettings], regularisation: RegularisationSettings) -> None:
    """UserError unless the rewards make sense together, and under this regularisation."""
    names = [reward.name for reward in rewards]
    for name in sorted({name for name in names if names.count(name) > 1}):
        roles = {reward.role for reward in rewards if reward.name == name}
        if "judge" in roles and len(roles) > 1:
            raise UserError(f"rewards: {name} is both a judge and trained on; a judge must stay held out: drop one")
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
            raise UserError(
                f"rewards: the primary reward {primaries[0]} has weight 0 and trains nothing; give it a weight above 0"
            )
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
    native = str(default_dtype(place)) == "torch.bfloat16"
    dtype: Dtype = cfg.model.dtype if cfg.model.dtype != "auto" else "bfloat16" if native else "float32"
    return replace(cfg, model=replace(cfg.model, dtype=dtype, device=place))


def model_settings(name: str) -> ModelSettings:
    """The settings of a model by its name; UserError with the nearest names for one that is unknown."""
    if name in get_args(ShapesName):
        return ShapesSettings(name=cast(ShapesName, name))
    return ReleasedSettings(name=cast(ReleasedName, released(name).name))


def check_doubt(name: str, regularisation: RegularisationSettings) -> None:
    """UserError when a reward that does not know how uncertain it is is asked."""
    if regularisation.uncertainty:
        raise UserError(
            f"regularisation.uncertainty={regularisation.uncertainty:g}: {name} does not say how uncertain it is; "
            "leave it at 0"
        )
