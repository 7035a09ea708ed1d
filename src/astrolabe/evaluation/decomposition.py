"""Which condition brings how much of a lift of the joint oracle, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from math import comb

import torch
from torch import Tensor

from astrolabe.evaluation.suites import ATTRIBUTES
from astrolabe.shapes.oracles import WELL_MADE

CONDITIONS = (*ATTRIBUTES, *WELL_MADE)  # joint is all of them


def passes(scores: Mapping[str, Tensor]) -> Tensor:
    """Whether each video meets each of CONDITIONS: [conditions, videos], float64, from scores of any equal shape."""
    met = [scores[name] >= WELL_MADE.get(name, 0.5) for name in CONDITIONS]
    return torch.stack(met).flatten(1).double()


def decompose(base: Tensor, aligned: Tensor) -> list[float]:
    """What each of n conditions adds to the share of videos that meet all; the sum is the difference of the shares.

    ``base`` and ``aligned`` [n, videos] say which conditions are met, 0 or 1; column j of both is the same prompt and
    noise. A condition's part is its Shapley value: its mean effect on the share, over all orders in which conditions
    can go, one after another, from the base's outcome to the aligned one's. Source: Shapley (1953).
    """
    count = len(base)

    def share(taken: tuple[int, ...]) -> float:
        mixed = base.clone()
        mixed[list(taken)] = aligned[list(taken)]
        return mixed.prod(0).mean().item()

    shares = {taken: share(taken) for size in range(count + 1) for taken in combinations(range(count), size)}
    values = []
    for one in range(count):
        without = [taken for taken in shares if one not in taken]
        effects = [
            (shares[tuple(sorted((*taken, one)))] - shares[taken]) / (count * comb(count - 1, len(taken)))
            for taken in without
        ]
        values.append(sum(effects))
    return values


def decomposition(base: Mapping[str, Tensor], aligned: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Of every condition: ``points``, its part of the difference of joint, and ``share`` of the whole difference (0
    when there is none). Scores are [prompts, noises] by measure, paired."""
    values = decompose(passes(base), passes(aligned))
    whole = sum(values)
    return {
        name: {"points": value, "share": value / whole if abs(whole) > 1e-9 else 0.0}
        for name, value in zip(CONDITIONS, values, strict=True)
    }
