"""Negative-aware fine-tuning in the forward process (method, section 4)."""

from __future__ import annotations

from torch import Tensor

from astrolabe.rl import advantages as credit
from astrolabe.rl.algorithm import ForwardProcess
from astrolabe.rl.settings import NFTSettings, Weighting
from astrolabe.types import Latents, PerSample


def squared(error: Latents, weighting: Weighting = "none") -> PerSample:
    """Mean square of each sample's error; ``adaptive``: over its mean absolute value, which gets no gradient."""
    mean = error.square().mean((1, 2, 3, 4))
    if weighting == "none":
        return mean
    return mean / error.detach().abs().mean((1, 2, 3, 4)).clamp(min=1e-5)


def nft_loss(
    learner: Latents, behavior: Latents, clean: Latents, optimality: PerSample, beta: float,
    weighting: Weighting = "none",
) -> PerSample:  # fmt: skip
    """r |positive - x0|^2 + (1 - r) |negative - x0|^2, mean over the elements of each sample.

    ``learner`` and ``behavior`` are predictions of x0. At learner = behavior the gradient in the learner's prediction
    is 2 beta (2 r - 1) (behavior - x0) / N.
    """
    step = beta * (learner - behavior)
    positive = squared(behavior + step - clean, weighting)
    negative = squared(behavior - step - clean, weighting)
    return optimality * positive + (1 - optimality) * negative


class NFT(ForwardProcess[NFTSettings]):
    """The method's own algorithm."""

    def credit(self, advantages: PerSample) -> PerSample:
        """Optimality r in [0, 1]; 1/2 neither pulls nor pushes."""
        return credit.optimality(advantages, self.settings.a_max)

    def loss(self, learner: Latents, behavior: Latents, clean: Latents, credit: Tensor) -> PerSample:
        """See ``nft_loss``."""
        return nft_loss(learner, behavior, clean, credit, self.settings.beta, self.settings.weighting)
