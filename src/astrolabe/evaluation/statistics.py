"""Paired comparisons with honest intervals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from astrolabe.rl.anchor import ranks

RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """Means over all videos, their difference (aligned - base), and its 95 % bootstrap interval."""

    base: float
    aligned: float
    difference: float
    ci95: tuple[float, float]


def compare(base: Float[Tensor, "prompts seeds"], aligned: Float[Tensor, "prompts seeds"], seed: int = 0) -> Comparison:
    """Paired bootstrap over prompts: whole prompts are resampled, with all their noise seeds.

    Row i of both tensors is the same prompt and column j the same noise. Videos of one prompt are not independent, so
    the prompt is the unit.
    """
    differences = (aligned - base).double().mean(1)
    rng = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(differences), (RESAMPLES, len(differences)), generator=rng)
    low, high = torch.quantile(differences[picks].mean(1), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    means = base.double().mean().item(), aligned.double().mean().item()
    return Comparison(*means, differences.mean().item(), (low, high))


def spearman(one: Float[Tensor, "*rows n"], other: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
    """Rank correlation along the last axis, ties sharing their rank; 0 where one side never changes."""
    centred = [values - values.mean(-1, keepdim=True) for values in (ranks(one), ranks(other))]
    sizes = [values.square().sum(-1).sqrt() for values in centred]
    return (centred[0] * centred[1]).sum(-1) / (sizes[0] * sizes[1]).clamp(min=1e-12)


def rank_correlation(
    one: Float[Tensor, "n"], other: Float[Tensor, "n"], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Spearman's correlation of two scores of the same videos, and its 95 % interval: videos are resampled."""
    rng = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(one), (2000, len(one)), generator=rng)
    found = spearman(one.double()[picks], other.double()[picks])
    low, high = torch.quantile(found, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return spearman(one.double(), other.double()).item(), (low, high)
