"""Positive-only fine-tuning: NFT without the half that pushes away from bad samples. A rival, to compare with."""

from __future__ import annotations

from astrolabe.rl import advantages as credit
from astrolabe.rl.algorithm import ForwardProcess
from astrolabe.rl.settings import PositiveSettings
from astrolabe.types import Latents, PerSample


class Positive(ForwardProcess[PositiveSettings]):
    """r |positive - x0|^2 alone."""

    def credit(self, advantages: PerSample) -> PerSample:
        """Optimality r in [0, 1]."""
        return credit.optimality(advantages, self.settings.a_max)

    def loss(self, learner: Latents, behavior: Latents, clean: Latents, credit: PerSample) -> PerSample:
        """Mean over the elements of each sample."""
        positive = behavior + self.settings.beta * (learner - behavior)
        return credit * (positive - clean).square().mean((1, 2, 3, 4))
