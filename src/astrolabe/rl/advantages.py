"""Credit: from raw rewards to advantages to optimality (method, section 3). Pure.

A sample that a reward could not score is nan there. It takes no part in any mean, and its advantage is zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from astrolabe.rl.settings import Combine, Std
from astrolabe.types import PerSample

TINY = 1e-6


def weighted(values: Float[Tensor, "b m"], weights: Sequence[float], combine: Combine) -> Float[Tensor, "b m"]:
    """What each reward adds to the sum. ``normalize_then_sum`` standardises every column first, so that a weight is a
    share of influence whatever the scale of its reward; a constant column adds nothing. One nan spoils its sample."""
    values = torch.where(values.isfinite().all(1, keepdim=True), values, torch.nan)
    if combine == "normalize_then_sum":
        centred = values - values.nanmean(0)
        std = centred.square().nanmean(0).sqrt()
        values = torch.where((std > TINY) | values.isnan(), centred / std.clamp(min=TINY), torch.zeros_like(values))
    return values * torch.tensor(weights, dtype=values.dtype, device=values.device)


def combine_rewards(values: Float[Tensor, "b m"], weights: Sequence[float], combine: Combine) -> PerSample:
    """One reward a sample."""
    return weighted(values, weights, combine).sum(1)


def group_advantages(rewards: PerSample, group_size: int, std: Std) -> PerSample:
    """Reward minus the group's mean, over the std of the whole step (paper, Table S1), of the group, or over nothing.

    A group whose rewards are all equal gets zeros.
    """
    groups = rewards.view(-1, group_size)
    centred = groups - groups.nanmean(1, keepdim=True)
    if std == "step":
        centred = centred / (rewards - rewards.nanmean()).square().nanmean().sqrt().clamp(min=TINY)
    elif std == "group":
        centred = centred / centred.square().nanmean(1, keepdim=True).sqrt().clamp(min=TINY)
    spread = groups.nan_to_num(nan=-torch.inf).amax(1) - groups.nan_to_num(nan=torch.inf).amin(1)
    return torch.where((spread <= TINY)[:, None], torch.zeros_like(centred), centred).nan_to_num(nan=0.0).flatten()


def contributions(
    values: Float[Tensor, "b m"], weights: Sequence[float], combine: Combine, group_size: int
) -> Float[Tensor, "m"]:
    """Which share of the advantages' variance each reward brings in; together one, or zeros where nothing varies.

    A share is below zero where a reward was outvoted by the others.
    """
    added = weighted(values, weights, combine).view(-1, group_size, len(weights))
    centred = (added - added.nanmean(1, keepdim=True)).nan_to_num(nan=0.0).flatten(0, 1)
    shares = (centred * centred.sum(1, keepdim=True)).sum(0)
    return shares / shares.sum() if shares.sum() > TINY**2 else torch.zeros_like(shares)


def optimality(advantages: PerSample, a_max: float) -> PerSample:
    """r = clip(A / A_max, -1, 1) / 2 + 1/2, in [0, 1]."""
    return (advantages / a_max).clamp(-1, 1) / 2 + 0.5
