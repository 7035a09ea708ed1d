"""Paired comparisons with honest intervals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

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
