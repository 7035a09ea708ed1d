"""Levels and the forward process."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from astrolabe import flow

SIGMA = st.floats(0.05, 1.0)


def test_the_samplers_levels_are_the_warped_quarters() -> None:
    levels = flow.sampler_levels((1000, 750, 500, 250), 5.0)
    torch.testing.assert_close(levels, torch.tensor([1, 0.9375, 5 / 6, 0.625], dtype=torch.float64), rtol=0, atol=1e-12)


@given(sigma=SIGMA, seed=st.integers(0, 99))
def test_clean_and_velocity_are_inverse_views_of_the_same_point(sigma: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    clean, noise = torch.randn(2, 2, 3, 4, 2, 2, generator=rng, dtype=torch.float64)
    noisy = flow.add_noise(clean, noise, sigma)
    torch.testing.assert_close(flow.to_clean(noisy, noise - clean, sigma), clean)
    torch.testing.assert_close(flow.to_velocity(noisy, clean, sigma), noise - clean)


@given(sigma=SIGMA)
def test_a_level_for_each_frame_equals_the_same_level_as_a_number(sigma: float) -> None:
    clean, noise = torch.randn(2, 2, 3, 4, 2, 2, dtype=torch.float64)
    each = torch.full((2, 3), sigma, dtype=torch.float64)
    torch.testing.assert_close(flow.add_noise(clean, noise, each), flow.add_noise(clean, noise, sigma))


@given(sigma=st.floats(0, 1), shift=st.floats(1, 10))
def test_warping_moves_towards_noise_and_keeps_the_ends(sigma: float, shift: float) -> None:
    warped = flow.warp(torch.tensor(sigma, dtype=torch.float64), shift)
    assert sigma - 1e-12 <= warped <= 1 + 1e-12
    ends = flow.warp(torch.tensor([0.0, 1.0], dtype=torch.float64), shift)
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0], dtype=torch.float64))
