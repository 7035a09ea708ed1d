"""How a policy learns, as a configuration says it: algorithms, regularisation, guards, adapters, optimiser.

Nothing here needs torch: help pages and a user's mistakes are read without it. ``make`` gives the object that a group
of settings describes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from astrolabe.runtime.config import config, setting

if TYPE_CHECKING:
    from astrolabe.rl.algorithm import Algorithm
    from astrolabe.rl.regularisation import Regulariser

Combine = Literal["normalize_then_sum", "weighted_sum"]
Std = Literal["step", "group", "none"]
Weighting = Literal["none", "adaptive"]
Space = Literal["x0", "velocity"]
RankScope = Literal["step", "group"]
RankOrder = Literal["ascending", "descending"]
Measure = Literal["motion_energy", "saturation", "sharpness", "flicker", "boundary_jump", "diversity", "latent_shift",
                  "latent_spread"]  # fmt: skip
Action = Literal["warn", "slow", "refresh", "stop"]


@config
class LoraSettings:
    """Size of the adapters, on every linear layer of every block."""

    rank: int = setting("rank of the adapters", ge=1)
    alpha: float = setting("scale of the adapters; their update is multiplied by alpha / rank", gt=0)


@config
class OptimizerSettings:
    """AdamW and how an experience is cut into optimiser steps."""

    lr: float = setting("learning rate", gt=0)
    betas: tuple[float, float] = setting("decay of the gradient's first and second moments", default=(0.9, 0.999))
    weight_decay: float = setting("decoupled weight decay", default=1e-4, ge=0)
    eps: float = setting("term that keeps AdamW's division finite", default=1e-8, gt=0)
    max_grad_norm: float = setting("gradients are scaled down to this norm", default=1.0, gt=0)
    warmup: int = setting("steps over which the learning rate rises to its full value", unit="steps", default=0, ge=0)
    schedule: Literal["constant", "cosine"] = setting(
        "what follows the warm-up: a constant rate, or a cosine decay to zero", default="constant"
    )
    minibatches: int = setting("optimiser steps per training step; the groups are dealt among them", default=1, ge=1)
    share: float = setting(
        "share of a step's samples that are trained on: those whose advantages are largest in absolute value",
        default=1.0,
        gt=0,
        le=1,
    )
    micro_batch: int = setting(
        "candidates of a prompt that are forwarded at once; changes memory and speed, not results",
        ge=1,
        affects="rounding",
    )
    chunks: int | None = setting(
        "chunks of a clip that are forwarded at once; the default is all; changes memory and speed, not results",
        default=None,
        ge=1,
        affects="rounding",
    )
    gradient_checkpointing: bool = setting(
        "gradient checkpointing: keep only the input of each block and run it again in the backward pass; far less "
        "memory, slower",
        default=False,
        affects="rounding",
    )

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas}: expected two numbers >= 0 and < 1")


@config
class AlgorithmSettings:
    """What all algorithms share: how scores become advantages, and how the behavior policy follows."""

    combine: Combine = setting("how several rewards become one", default="normalize_then_sum")
    std: Std = setting("what advantages are divided by", default="step")
    behavior_keep: float = setting(
        "EMA decay of the behavior policy: the share of itself that it keeps after a step; 0 is on-policy", ge=0, le=1
    )
    behavior_rise: float | None = setting(
        "that decay rises from 0 by so much a step, up to behavior_keep; the default is behavior_keep from the start",
        default=None,
        gt=0,
    )
    levels_per_sample: int = setting("levels drawn (without repetition) for every chunk of a sample", default=1, ge=1)
    common_noise: bool = setting(
        "the candidates of a group share levels and noise, so that their common error cancels",
        default=False,
    )

    def keep(self, step: int) -> float:
        """The share that the behavior policy keeps after step number ``step``, counted from 0."""
        if self.behavior_rise is None:
            return self.behavior_keep
        return min(self.behavior_rise * step, self.behavior_keep)

    def make(self, weights: Sequence[float], regulariser: Regulariser) -> Algorithm[Any]:
        """The algorithm itself, for rewards of these weights."""
        raise TypeError(f"{type(self).__name__} is what algorithms share, and none by itself")


@config
class ForwardSettings(AlgorithmSettings):
    """What all algorithms in the forward process share: the noise levels, and what a noisy chunk sees.

    The defaults follow the sampler; claim h of docs/evidence.md measures the others.
    """

    levels: Literal["sampler", "unwarped", "uniform"] = setting(
        "noise levels trained at: those the sampler visits, the same list before warping, or uniform in (0, 1)",
        default="sampler",
    )
    context: Literal["clean", "noisy"] = setting(
        "the chunks before, as a noisy chunk sees them: clean, as in the sampler, or at their own noise levels",
        default="clean",
    )


@config
class NFTSettings(ForwardSettings):
    """Negative-aware fine-tuning: the loss pulls towards good samples and pushes away from bad ones.

    No weighting by default (claim d of docs/evidence.md). ``beta`` has no default, as it acts together with the
    learning rate (claim e).
    """

    name: Literal["nft"] = setting("algorithm", default="nft")
    beta: float = setting("how far the implicit positive and negative policies stand from the behavior policy", gt=0)
    a_max: float = setting("advantage at which optimality saturates", unit="standard deviations", default=5.0, gt=0)
    weighting: Weighting = setting(
        "what a squared error is divided by: nothing, or adaptively its own mean absolute error, as DiffusionNFT does",
        default="none",
    )

    def make(self, weights: Sequence[float], regulariser: Regulariser) -> Algorithm[Any]:
        """See ``AlgorithmSettings``."""
        from astrolabe.rl.nft import NFT

        return NFT(self, weights, regulariser)


@config
class PositiveSettings(ForwardSettings):
    """Positive-only fine-tuning: every sample pulls, good ones more.

    A distilled generator is no denoiser: the pull on its own videos under fresh noise is one to their mean, whatever
    the rewards say. Claim f of docs/evidence.md measures what that does.
    """

    name: Literal["positive"] = setting("algorithm", default="positive")
    beta: float = setting("how far the implicit positive policy stands from the behavior policy", gt=0)
    a_max: float = setting("advantage at which optimality saturates", unit="standard deviations", default=5.0, gt=0)

    def make(self, weights: Sequence[float], regulariser: Regulariser) -> Algorithm[Any]:
        """See ``AlgorithmSettings``."""
        from astrolabe.rl.positive import Positive

        return Positive(self, weights, regulariser)


@config
class RewardWeightedSettings(ForwardSettings):
    """Reward-weighted regression.

    It pulls on every sample, as positive-only fine-tuning does: claim f of docs/evidence.md.
    """

    name: Literal["reward_weighted"] = setting("algorithm", default="reward_weighted")
    temperature: float = setting(
        "advantages are divided by this before they become weights exp(A / temperature)", default=1.0, gt=0
    )
    max_weight: float = setting("weights are cut at this", default=20.0, gt=0)

    def make(self, weights: Sequence[float], regulariser: Regulariser) -> Algorithm[Any]:
        """See ``AlgorithmSettings``."""
        from astrolabe.rl.reward_weighted import RewardWeighted

        return RewardWeighted(self, weights, regulariser)


@config
class GRPOSettings(AlgorithmSettings):
    """GRPO: clipped ratios of the probabilities of the sampler's own steps.

    It learns from the sampler's random steps, so never at the last level: claim f of docs/evidence.md.
    """

    name: Literal["grpo"] = setting("algorithm", default="grpo")
    clip: float = setting("how far a probability ratio may be from 1 before it is clipped", default=1e-3, gt=0)
    max_advantage: float = setting("advantages are cut at this, either way", default=5.0, gt=0)

    def make(self, weights: Sequence[float], regulariser: Regulariser) -> Algorithm[Any]:
        """See ``AlgorithmSettings``."""
        from astrolabe.rl.grpo import GRPO

        return GRPO(self, weights, regulariser)


@config
class RegularisationSettings:
    """A drift penalty that holds the learner near the reference policy, on some of the samples.

    By default there is none. Selective, ascending and moving are the paper's words; claim b of docs/evidence.md
    measures them beside the others.
    """

    samples: Literal["none", "selective", "uniform", "random"] = setting(
        "which samples are anchored: none; selective: those that the primary reward rates high and the auxiliary ones "
        "low; uniform: all; random: as many as selective, drawn at random (a control)",
        default="none",
    )
    strength: float = setting("weight lambda of the drift penalty beside the loss", default=1e-4, gt=0)
    space: Space = setting("where the drift is measured: in clean predictions or in velocities", default="x0")
    share: float = setting(
        "share rho of the disagreeing samples that are anchored at the start", default=0.1, gt=0, lt=1
    )
    share_bounds: tuple[float, float] = setting("bounds within which rho adapts", default=(0.02, 0.2))
    ranks: RankScope = setting("samples are ranked among all of a step, or within each group", default="step")
    order: RankOrder = setting(
        "which rank is best: ascending is the highest; descending anchors the opposite samples, to compare with",
        default="ascending",
    )
    uncertainty: float = setting(
        "how much the primary reward's own uncertainty adds to the disagreement, both in ranks", default=0.0, ge=0
    )
    reference: Literal["moving", "fixed"] = setting(
        "moving: the learner becomes the new reference now and then; fixed: the base stays the reference",
        default="moving",
    )
    max_drift: float | None = setting(
        "the reference moves when the mean drift of the anchored samples exceeds this; the default is never",
        default=None,
        gt=0,
    )
    max_age: int = setting("the reference moves when it is older than this", unit="steps", default=15, ge=1)

    @property
    def moves(self) -> bool:
        """Whether there is a reference that moves."""
        return self.samples != "none" and self.reference == "moving"

    def __post_init__(self) -> None:
        low, high = self.share_bounds
        if not 0 < low <= self.share <= high < 1:
            raise ValueError(f"share={self.share} must lie within share_bounds={low},{high}, and these between 0 and 1")


@config
class GuardSettings:
    """One rule: when a measure has stood beyond a bound for some steps, do something."""

    watch: str = setting(
        "a measure (motion_energy, saturation, sharpness, flicker, boundary_jump, diversity, latent_shift, "
        "latent_spread), or the name of one of the run's rewards"
    )
    below: float | None = setting(
        "the rule applies when the measure is under this share of the base's", default=None, gt=0
    )
    above: float | None = setting(
        "the rule applies when the measure is over this share of the base's", default=None, gt=0
    )
    drop: float | None = setting(
        "the rule applies when the measure is more than this under the base's; the one bound for rewards, which may be "
        "negative",
        default=None,
        gt=0,
    )
    steps: int = setting(
        "the measure must be beyond the bound for so many steps in a row", unit="steps", default=3, ge=1
    )
    action: Action = setting(
        "what is done: warn; slow: half the learning rate from now on, again each time; refresh: the learner becomes "
        "the reference; stop: end the run with the best adapter",
        default="warn",
    )

    def __post_init__(self) -> None:
        bounds = [self.below, self.above, self.drop]
        if bounds.count(None) != 2:
            raise ValueError(f"watch={self.watch}: give one of below, above and drop")

    def broken(self, value: float, base: float) -> bool:
        """Whether a measure is beyond the bound."""
        if self.below is not None:
            return value < self.below * base
        if self.above is not None:
            return value > self.above * base
        return value < base - (self.drop or 0.0)

    @property
    def words(self) -> str:
        """The rule, as a sentence has it."""
        if self.drop is not None:
            return f"{self.watch} more than {self.drop:g} under the base's"
        side, share = ("under", self.below) if self.below is not None else ("over", self.above)
        return f"{self.watch} {side} {share:g} times the base's"


@config
class WatchSettings:
    """Guards, and which checkpoint is the best."""

    guards: tuple[GuardSettings, ...] = setting(
        "rules; for them, and for judges, the base makes two clips of every prompt", default=()
    )
    memory: float = setting("share of itself that a running average keeps in a step", default=0.8, ge=0, lt=1)
