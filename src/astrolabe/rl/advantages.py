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

TINY, ROUNDINGS = 1e-6, 4.0  # what is no difference: so much, or so many roundings of the largest number


def indistinct(values: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """Up to which spread along ``dim`` values count as the same: rounding alone makes them differ by that."""
    largest = values.nan_to_num(nan=0.0).abs().amax(dim, keepdim)
    return (ROUNDINGS * torch.finfo(values.dtype).eps * largest).clamp(min=TINY)


def weighted(values: Float[Tensor, "b m"], weights: Sequence[float], combine: Combine) -> Float[Tensor, "b m"]:
    """What each reward adds to the sum. ``normalize_then_sum`` standardises every column first, so that a weight is a
    share of influence whatever the scale of its reward; a constant column adds nothing. One nan spoils its sample."""
    values = torch.where(values.isfinite().all(1, keepdim=True), values, torch.nan)
    if combine == "normalize_then_sum":
        centred = values - values.nanmean(0)
        std = centred.square().nanmean(0).sqrt()
        differs = (std > indistinct(values, 0)) | values.isnan()
        values = torch.where(differs, centred / std.clamp(min=TINY), torch.zeros_like(values))
    return values * torch.tensor(weights, dtype=values.dtype, device=values.device)


def combine_rewards(values: Float[Tensor, "b m"], weights: Sequence[float], combine: Combine) -> PerSample:
    """One reward a sample."""
    return weighted(values, weights, combine).sum(1)


def group_advantages(rewards: PerSample, group_size: int, std: Std) -> PerSample:
    """Reward minus the group's mean, over the std of the whole step (paper, Table S1), of the group, or over nothing.

    A group whose rewards are all equal, but for rounding, gets zeros.
    """
    groups = rewards.view(-1, group_size)
    centred = groups - groups.nanmean(1, keepdim=True)
    if std == "step":
        centred = centred / (rewards - rewards.nanmean()).square().nanmean().sqrt().clamp(min=TINY)
    elif std == "group":
        centred = centred / centred.square().nanmean(1, keepdim=True).sqrt().clamp(min=TINY)
    spread = groups.nan_to_num(nan=-torch.inf).amax(1) - groups.nan_to_num(nan=torch.inf).amin(1)
    same = spread <= indistinct(groups, 1)
    return torch.where(same[:, None], torch.zeros_like(centred), centred).nan_to_num(nan=0.0).flatten()


def contributions(
    values: Float[Tensor, "b m"], weights: Sequence[float], combine: Combine, group_size: int
) -> Float[Tensor, "m"]:
    """Which share of the advantages' variance each reward brings in; together one, or zeros where nothing varies.

    A share is below zero where the others outweigh a reward.
    """
    added = weighted(values, weights, combine).view(-1, group_size, len(weights))
    centred = (added - added.nanmean(1, keepdim=True)).nan_to_num(nan=0.0).flatten(0, 1)
    whole = centred.sum(1, keepdim=True)
    shares = (centred * whole).sum(0)
    noise = indistinct(added.flatten(0, 1), 0).sum()
    return shares / shares.sum() if whole.abs().max() > noise else torch.zeros_like(shares)


def optimality(advantages: PerSample, a_max: float) -> PerSample:
    """r = clip(A / A_max, -1, 1) / 2 + 1/2, in [0, 1]."""
    return (advantages / a_max).clamp(-1, 1) / 2 + 0.5
