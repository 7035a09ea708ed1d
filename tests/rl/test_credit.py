"""Credit without scores, and which reward it came from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astrolabe.rl.advantages import combine_rewards, contributions, group_advantages
from astrolabe.rl.settings import AlgorithmSettings

COMBINE, STD = ("normalize_then_sum", "weighted_sum"), ("step", "group", "none")


def values(seed: int, rows: int = 24) -> torch.Tensor:
    scale = torch.tensor([1.0, 100.0, 0.01], dtype=torch.float64)
    return scale * torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 99), st.sampled_from(COMBINE), st.sampled_from(STD), st.sets(st.integers(0, 23), max_size=9))
def test_a_sample_without_a_score_has_no_advantage_and_the_rest_is_as_if_it_had_not_been(
    seed: int, combine: str, std: str, missing: set[int]
) -> None:
    given_values, weights = values(seed), (1.0, 0.5, 2.0)
    for row in missing:
        given_values[row, row % 3] = torch.nan
    advantages = group_advantages(combine_rewards(given_values, weights, combine), 6, std)  # type: ignore[arg-type]
    assert bool(advantages.isfinite().all())
    kept = torch.tensor([row not in missing for row in range(24)])
    assert not advantages[~kept].any()
    whole = combine_rewards(given_values[kept], weights, combine)  # type: ignore[arg-type]
    spread = whole.std(correction=0)
    groups = torch.arange(24)[kept] // 6
    for group in range(4):
        own = whole[groups == group]
        if len(own) < 2:
            assert not advantages[6 * group : 6 * group + 6].any()
            continue
        expected = own - own.mean()
        divisor = {"step": spread, "group": own.std(correction=0), "none": torch.ones(())}[std]
        expected = expected / divisor
        torch.testing.assert_close(advantages[6 * group : 6 * group + 6][kept[6 * group : 6 * group + 6]], expected)


@given(st.integers(0, 99), st.sampled_from(COMBINE))
def test_contributions_add_up_to_one_and_a_reward_alone_has_all(seed: int, combine: str) -> None:
    shares = contributions(values(seed), (1.0, 0.5, 2.0), combine, 6)  # type: ignore[arg-type]
    assert shares.sum().item() == pytest.approx(1.0)
    alone = contributions(values(seed), (0.0, 3.0, 0.0), combine, 6)  # type: ignore[arg-type]
    torch.testing.assert_close(alone, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))


def test_under_raw_sums_the_reward_of_the_largest_scale_decides_and_its_contribution_says_so() -> None:
    raw = contributions(values(0), (1.0, 1.0, 1.0), "weighted_sum", 6)
    fair = contributions(values(0), (1.0, 1.0, 1.0), "normalize_then_sum", 6)
    assert raw[1] > 0.99 and fair.max() < 0.6


def test_an_outvoted_reward_contributes_less_than_nothing() -> None:
    one = torch.randn(12, 1, generator=torch.Generator().manual_seed(0))
    shares = contributions(torch.cat([one, one, -one], 1), (1.0, 1.0, 1.0), "normalize_then_sum", 6)
    assert shares[2] < 0 < shares[0]
    assert not contributions(torch.ones(12, 3), (1.0, 1.0, 1.0), "normalize_then_sum", 6).any()


def test_the_behavior_policy_keeps_a_share_that_may_rise() -> None:
    assert [AlgorithmSettings(behavior_keep=0.9).keep(step) for step in (0, 700)] == [0.9, 0.9]
    rising = AlgorithmSettings(behavior_keep=0.5, behavior_rise=0.001)
    assert [rising.keep(step) for step in (0, 100, 500, 9999)] == pytest.approx([0.0, 0.1, 0.5, 0.5])


@pytest.mark.parametrize("combine", COMBINE)
def test_what_differs_between_groups_alone_contributes_nothing_nor_does_a_gap_spoil_it(combine: str) -> None:
    found = torch.stack([torch.arange(4.0).repeat_interleave(6), torch.arange(6.0).repeat(4)], 1)
    for row in (0, 3):
        shares = contributions(found, (1.0, 1.0), combine, 6)  # type: ignore[arg-type]
        torch.testing.assert_close(shares, torch.tensor([0.0, 1.0]), rtol=0, atol=1e-5)
        found[row, 0] = torch.nan


@given(st.floats(-1e6, 1e6, width=32), st.sampled_from(COMBINE), st.sampled_from(STD))
def test_what_rounding_makes_of_one_number_teaches_nothing(level: float, combine: str, std: str) -> None:
    one = torch.tensor(level)
    two = torch.nextafter(one, torch.tensor(torch.inf))
    for column in (torch.stack([one, two, one, one, two, two, one, two]), torch.linspace(0, 1e-9, 8)):
        summed = combine_rewards(column[:, None], (1.0,), combine)  # type: ignore[arg-type]
        assert not group_advantages(summed, 4, std).any()  # type: ignore[arg-type]
        assert not contributions(column[:, None], (1.0,), combine, 4).any()  # type: ignore[arg-type]


@pytest.mark.parametrize("combine", COMBINE)
def test_a_difference_that_is_small_beside_its_level_counts(combine: str) -> None:
    scores = 1000.0 + torch.arange(8.0)[:, None] / 100
    summed = combine_rewards(scores, (1.0,), combine)  # type: ignore[arg-type]
    assert group_advantages(summed, 4, "step").abs().min() > 0.1
