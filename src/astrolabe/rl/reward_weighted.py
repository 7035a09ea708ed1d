"""Reward-weighted regression: flow matching on the policy's own samples, good ones weighing more. A rival.

Source: Peters & Schaal 2007, for diffusion models Lee et al. (arXiv 2302.12192); weights as in advantage-weighted
regression (Peng et al., arXiv 1910.00177).
"""

from __future__ import annotations

from typing import Literal

from astrolabe.rl.algorithm import ForwardProcess, ForwardSettings
from astrolabe.runtime.config import config, setting
from astrolabe.types import Latents, PerSample


@config
class RewardWeightedSettings(ForwardSettings):
    """Reward-weighted regression.

    It learns from rewards, but on a distilled generator loses more by the pull on every sample than it wins: cells
    ``r reward_weighted`` of docs/evidence.md.
    """

    name: Literal["reward_weighted"] = setting("algorithm", default="reward_weighted")
    temperature: float = setting(
        "advantages are divided by this before they become weights exp(A / temperature)", default=1.0, gt=0
    )
    max_weight: float = setting("weights are cut at this", default=20.0, gt=0)


class RewardWeighted(ForwardProcess[RewardWeightedSettings]):
    """w |learner - x0|^2."""

    def credit(self, advantages: PerSample) -> PerSample:
        """w = exp(A / temperature), cut."""
        return (advantages / self.settings.temperature).exp().clamp(max=self.settings.max_weight)

    def loss(self, learner: Latents, behavior: Latents, clean: Latents, credit: PerSample) -> PerSample:
        """Mean over the elements of each sample."""
        return credit * (learner - clean).square().mean((1, 2, 3, 4))
