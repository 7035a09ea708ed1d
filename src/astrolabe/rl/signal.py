"""Whether there is anything to learn from: how sure a step is of its advantages, and what a run should be warned of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from astrolabe.rl.advantages import TINY, combine_rewards
from astrolabe.rl.settings import Combine
from astrolabe.types import Metrics, Scores

SURE = 2.0  # standard errors: what a mean should be away from nothing, to count on
PATIENCE = 3  # steps in a row before a run is warned


def advantage_signal(scores: Scores, weights: Sequence[float], combine: Combine, group_size: int) -> Metrics:
    """``advantage_snr``: the variance between candidates of one prompt, mean over the prompts, in standard errors of
    that mean; ``prompts_wanted``: in how many prompts a step it would be ``SURE``.

    The variance is that of the combined reward, less what its rewards say they are uncertain by: of measurements with
    independent errors the variances add up (classical test theory). A mean over its standard error is Student's t; it
    grows with the root of the number of prompts, hence the second number. It says whether the prompts of a step agree
    that there are differences, not whether these are worth learning: a reward that is drawn at random differs
    everywhere. Empty with fewer than two prompts that have two candidates with scores.
    """
    values = scores.values[:, : len(weights)]
    rewards = combine_rewards(values, weights, combine).view(-1, group_size)
    errors = error_variance(scores, weights, combine).view(-1, group_size)
    counts = rewards.isfinite().sum(1)
    centred = rewards - rewards.nanmean(1, keepdim=True)
    between = centred.square().nansum(1) / (counts - 1) - errors.where(rewards.isfinite(), torch.nan).nanmean(1)
    between = between[counts > 1].double()
    if len(between) < 2:
        return {}
    mean, error = between.mean().item(), between.std().item() / math.sqrt(len(between))
    snr = mean / max(error, TINY**2)
    if mean <= TINY**2:
        return {"advantage_snr": 0.0}
    return {"advantage_snr": snr, "prompts_wanted": float(max(2, math.ceil(len(between) * (SURE / snr) ** 2)))}


def error_variance(scores: Scores, weights: Sequence[float], combine: Combine) -> Float[Tensor, "b"]:
    """Variance of the error of every sample's combined reward, by what the rewards know of theirs."""
    if scores.uncertainty is None:
        return torch.zeros(len(scores.values))
    values, doubts = scores.values[:, : len(weights)], scores.uncertainty[:, : len(weights)]
    scale = torch.ones(len(weights))
    if combine == "normalize_then_sum":
        scored = torch.where(values.isfinite().all(1, keepdim=True), values, torch.nan)
        scale = (scored - scored.nanmean(0)).square().nanmean(0).sqrt().clamp(min=TINY)
    return (doubts * torch.tensor(weights) / scale).square().sum(1)


class LearningWarnings:
    """Finds in the metrics of every step that nothing can be learned, though there is no error; warns after
    ``PATIENCE`` such steps in a row, and once more at the end if it lasts until then.

    ``keep`` tells which share of itself the behavior policy keeps after a step.
    """

    def __init__(self, keep: Callable[[int], float]):
        self.keep, self.steps = keep, 0
        self.flat = self.same = 0  # steps in a row

    def see(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """A step's metrics: what is to be said of them now."""
        self.steps += 1
        self.flat = self.flat + 1 if metrics["useful_samples"] == 0 else 0
        if "old_gap" in metrics:  # something was learned
            apart = step > 0 and self.keep(step - 1) > 0  # else the two are equal when a step begins
            self.same = self.same + 1 if apart and metrics["old_gap"] == 0 else 0
        return [said for count, said in self._all() if count == PATIENCE]

    def last(self) -> list[str]:
        """What is to be said at the end."""
        return [said for count, said in self._all() if count and count >= min(PATIENCE, self.steps)]

    def _all(self) -> list[tuple[int, str]]:
        return [
            (
                self.flat,
                f"no reward has told the candidates of any prompt apart for {self.flat} steps: there is nothing to "
                "learn from; look at group_std/ in metrics.jsonl, and at the rewards with `astrolabe rewards check`",
            ),
            (
                self.same,
                f"learner and behavior policy have predicted the same for {self.same} steps (old_gap 0), though the "
                "second keeps a share of itself (algorithm.behavior_keep): the learner does not move; is optimizer.lr "
                "large enough for its numbers?",
            ),
        ]
