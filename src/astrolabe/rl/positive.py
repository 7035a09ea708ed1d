"""Positive-only fine-tuning: NFT without the half that pushes away from bad samples. A rival, to compare with."""

from __future__ import annotations

from typing import Literal

from astrolabe.rl import advantages as credit
from astrolabe.rl.algorithm import ForwardProcess, ForwardSettings
from astrolabe.runtime.config import config, setting
from astrolabe.types import Latents, PerSample


@config
class PositiveSettings(ForwardSettings):
    """Positive-only fine-tuning: every sample pulls, good ones more.

    On a distilled generator the pull by itself ruins the videos, with rewards or without: cells ``r positive`` and
    ``r positive, blind`` of docs/evidence.md.
    """

    name: Literal["positive"] = setting("algorithm", default="positive")
    beta: float = setting("how far the implicit positive policy stands from the behavior policy", gt=0)
    a_max: float = setting("advantage at which optimality saturates", unit="standard deviations", default=5.0, gt=0)


class Positive(ForwardProcess[PositiveSettings]):
    """r |positive - x0|^2 alone."""

    def credit(self, advantages: PerSample) -> PerSample:
        """Optimality r in [0, 1]."""
        return credit.optimality(advantages, self.settings.a_max)

    def loss(self, learner: Latents, behavior: Latents, clean: Latents, credit: PerSample) -> PerSample:
        """Mean over the elements of each sample."""
        positive = behavior + self.settings.beta * (learner - behavior)
        return credit * (positive - clean).square().mean((1, 2, 3, 4))
