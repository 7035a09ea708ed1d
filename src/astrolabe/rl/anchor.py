"""Which samples the rewards disagree about, and which of those are anchored (method, section 5; paper, 3.4). Pure.

A sample that the primary reward ranks high and the auxiliary rewards rank low is likely to have hacked the primary one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from astrolabe.rl.settings import RankOrder, RankScope
from astrolabe.types import PerSample


def ranks(values: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
    """Ranks from 0 along the last axis: the highest value has the highest rank, equal ones share the mean of theirs.

    What is nan has the rank nan, and no other rank depends on it.
    """
    filled = torch.where(values.isnan(), torch.inf, values).contiguous()
    ordered = filled.sort(-1).values
    below, up_to = (torch.searchsorted(ordered, filled, right=right) for right in (False, True))
    return torch.where(values.isnan(), torch.nan, (below + up_to - 1).to(values.dtype) / 2)


def disagreement(
    values: Float[Tensor, "b m"],
    primary: int,
    auxiliary: Sequence[int],
    group_size: int,
    scope: RankScope = "step",
    order: RankOrder = "ascending",
) -> PerSample:
    """d(i) = rank of i under the primary reward minus the mean of its ranks under the auxiliary ones.

    Ranks are taken over all samples of the step, or within each group. ``order`` descending turns the sign around: it
    finds the samples that only the auxiliary rewards like, and is there to be compared with.
    """
    columns = values.T if scope == "step" else values.T.unflatten(1, (-1, group_size))
    ranked = ranks(columns.contiguous())
    difference = (ranked[primary] - ranked[list(auxiliary)].mean(0)).flatten()
    return difference if order == "ascending" else -difference


def anchored(difference: PerSample, share: float) -> Bool[Tensor, "b"]:
    """Those above the (100 - 100 ``share``)-th percentile of the positive disagreements; none where there are none."""
    positive = difference[difference > 0]
    if not len(positive):
        return torch.zeros_like(difference, dtype=torch.bool)
    return difference > positive.quantile(1 - share)


def mean_positive(difference: PerSample) -> float:
    """How much the rewards disagree in a step: the mean of the positive disagreements, 0 without any."""
    positive = difference[difference > 0]
    return positive.mean().item() if len(positive) else 0.0


@dataclass
class AdaptiveShare:
    """The share rho: a tenth larger in a step that disagrees more than every one of the last 20, a tenth smaller in one
    that disagrees less, within bounds."""

    share: float
    lowest: float
    highest: float
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=20))

    def see(self, level: float) -> float:
        """The share for a step whose mean positive disagreement is ``level``."""
        if self.recent and level > max(self.recent):
            self.share = min(self.share * 1.1, self.highest)
        elif self.recent and level < min(self.recent):
            self.share = max(self.share * 0.9, self.lowest)
        self.recent.append(level)
        return self.share
