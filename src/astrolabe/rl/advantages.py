"""Credit: from raw rewards to advantages to optimality (method, section 3). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from astrolabe.types import PerSample

Combine = Literal["normalize_then_sum", "weighted_sum"]
Std = Literal["step", "group", "none"]
TINY = 1e-6


def combine_rewards(values: Float[Tensor, "b m"], weights: Sequence[float], combine: Combine) -> PerSample:
    """One reward a sample. ``normalize_then_sum`` standardises every column first, so that a weight is a share of
    influence whatever the scale of its reward; a constant column adds nothing."""
    weight = torch.tensor(weights, dtype=values.dtype, device=values.device)
    if combine == "normalize_then_sum":
        centred = values - values.mean(0)
        std = values.std(0, correction=0)
        values = torch.where(std > TINY, centred / std.clamp(min=TINY), torch.zeros_like(values))
    return values @ weight


def group_advantages(rewards: PerSample, group_size: int, std: Std) -> PerSample:
    """Reward minus the group's mean, over the std of the whole step (paper, Table S1), of the group, or over nothing.

    A group whose rewards are all equal gets zeros.
    """
    groups = rewards.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    if std == "step":
        centred = centred / rewards.std(correction=0).clamp(min=TINY)
    elif std == "group":
        centred = centred / groups.std(1, correction=0, keepdim=True).clamp(min=TINY)
    equal = (groups.amax(1) - groups.amin(1) <= TINY)[:, None]
    return torch.where(equal, torch.zeros_like(centred), centred).flatten()


def optimality(advantages: PerSample, a_max: float) -> PerSample:
    """r = clip(A / A_max, -1, 1) / 2 + 1/2, in [0, 1]."""
    return (advantages / a_max).clamp(-1, 1) / 2 + 0.5
