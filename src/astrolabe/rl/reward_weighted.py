"""Reward-weighted regression: flow matching on the policy's own samples, good ones weighing more. A rival.

Source: Peters & Schaal 2007, for diffusion models Lee et al. (arXiv 2302.12192); weights as in advantage-weighted
regression (Peng et al., arXiv 1910.00177).
"""

from __future__ import annotations

from astrolabe.rl.algorithm import ForwardProcess
from astrolabe.rl.settings import RewardWeightedSettings
from astrolabe.types import Latents, PerSample


class RewardWeighted(ForwardProcess[RewardWeightedSettings]):
    """w |learner - x0|^2."""

    def credit(self, advantages: PerSample) -> PerSample:
        """w = exp(A / temperature), cut."""
        return (advantages / self.settings.temperature).exp().clamp(max=self.settings.max_weight)

    def loss(self, learner: Latents, behavior: Latents, clean: Latents, credit: PerSample) -> PerSample:
        """Mean over the elements of each sample."""
        return credit * (learner - clean).square().mean((1, 2, 3, 4))
