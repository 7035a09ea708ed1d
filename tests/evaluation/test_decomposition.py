"""A lift is divided among conditions without remainder and without favour."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from astrolabe.evaluation.decomposition import CONDITIONS, decompose, decomposition, passes

outcomes = st.integers(0, 2**32).map(
    lambda seed: (torch.rand(2, 6, 20, generator=torch.Generator().manual_seed(seed)) < 0.7).double()
)


@settings(max_examples=25, deadline=None)
@given(outcomes)
def test_the_parts_sum_to_the_lift(both: Tensor) -> None:
    base, aligned = both
    lift = (aligned.prod(0).mean() - base.prod(0).mean()).item()
    assert sum(decompose(base, aligned)) == pytest.approx(lift, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(outcomes, st.integers(0, 5))
def test_a_condition_that_does_not_change_brings_nothing(both: Tensor, same: int) -> None:
    base, aligned = both
    aligned[same] = base[same]
    assert decompose(base, aligned)[same] == pytest.approx(0, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(outcomes, st.permutations(range(6)))
def test_the_order_of_conditions_does_not_matter(both: Tensor, order: list[int]) -> None:
    base, aligned = both
    plain, turned = decompose(base, aligned), decompose(base[order], aligned[order])
    assert turned == pytest.approx([plain[one] for one in order], abs=1e-12)


def test_two_conditions_that_were_both_needed_share_the_lift() -> None:
    base, aligned = torch.zeros(2, 4).double(), torch.ones(2, 4).double()
    assert decompose(base, aligned) == pytest.approx([0.5, 0.5])
    base[0] = 1
    assert decompose(base, aligned) == pytest.approx([0, 1])


def test_joint_is_all_conditions_together() -> None:
    scores = {name: torch.tensor([[1.0, 1.0, 0.0]]) for name in CONDITIONS}
    scores |= {"smoothness": torch.tensor([[0.6, 0.59, 0.9]]), "vividness": torch.tensor([[0.9, 0.9, 0.9]])}
    assert passes(scores).prod(0).tolist() == [1, 0, 0]
    parts = decomposition(scores, scores | {"smoothness": torch.tensor([[0.6, 0.61, 0.9]])})
    assert parts["smoothness"] == {"points": pytest.approx(1 / 3), "share": pytest.approx(1)}
    assert all(parts[name]["points"] == 0 for name in CONDITIONS if name != "smoothness")
