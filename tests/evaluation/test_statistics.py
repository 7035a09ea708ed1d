"""Intervals that mean what they say."""

from __future__ import annotations

import torch

from astrolabe.evaluation.statistics import compare


def test_a_clear_lift_has_an_interval_above_zero_and_the_means_are_plain() -> None:
    base = torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]).repeat(10, 1)
    result = compare(base, torch.ones_like(base))
    assert (result.base, result.aligned, result.difference) == (0.25, 1.0, 0.75)
    assert 0 < result.ci95[0] < 0.75 < result.ci95[1]


def test_no_difference_has_an_interval_around_zero() -> None:
    base = (torch.rand(44, 6, generator=torch.Generator().manual_seed(0)) < 0.6).float()
    other = (torch.rand(44, 6, generator=torch.Generator().manual_seed(1)) < 0.6).float()
    low, high = compare(base, other).ci95
    assert low < 0 < high


def test_the_prompt_is_the_unit_so_repeating_a_noise_adds_no_certainty() -> None:
    base = (torch.rand(30, 1, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    aligned = (torch.rand(30, 1, generator=torch.Generator().manual_seed(1)) < 0.7).float()
    assert compare(base, aligned) == compare(base.repeat(1, 5), aligned.repeat(1, 5))


def test_intervals_cover_the_truth_about_as_often_as_they_claim() -> None:
    rng = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(100):
        prompt = 0.2 * torch.randn(40, 1, generator=rng)
        base = torch.randn(40, 3, generator=rng)
        low, high = compare(base, base + 0.3 + prompt + 0.5 * torch.randn(40, 3, generator=rng)).ci95
        covered += low <= 0.3 <= high
    assert 86 <= covered <= 100
