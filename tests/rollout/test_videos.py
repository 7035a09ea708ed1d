"""Rollouts: levels, noise and the order of rows."""

from __future__ import annotations

import torch

from astrolabe import flow
from astrolabe.rollout.stream import denoise_chunk, stream
from astrolabe.rollout.videos import video_noise
from astrolabe.types import per_frame
from tests.conftest import LATENT, tiny_wan


def test_noise_belongs_to_the_video_not_to_its_place_in_the_batch() -> None:
    both, second = video_noise(3, [4, 9]), video_noise(3, [9])
    for step in range(3):
        assert torch.equal(both(0, step, (2, 3, *LATENT))[1:], second(0, step, (1, 3, *LATENT)))


def test_different_videos_and_seeds_have_different_noise() -> None:
    shape = (1, 3, *LATENT)
    draws = [video_noise(seed, [video])(0, 0, shape) for seed in (0, 1) for video in (0, 1)]
    assert len({float(draw.sum()) for draw in draws}) == 4


@torch.no_grad()
def test_a_chunk_visits_the_samplers_levels_and_is_renoised_with_fresh_noise() -> None:
    wan = tiny_wan(dtype=torch.float64)
    text = wan.condition(torch.randn(1, 5, 8, dtype=torch.float64))
    noises = torch.randn(4, 1, 3, *LATENT, dtype=torch.float64)
    cache = wan.new_cache(1, 3)
    steps = list(denoise_chunk(wan, text, cache, lambda chunk, step, shape: noises[step], 0, noises[0].shape))
    assert [round(level.item(), 4) for _, _, level in steps] == [1.0, 0.9375, 0.8333, 0.625]
    noisy = noises[0]
    for index, (seen, clean, level) in enumerate(steps):
        assert torch.equal(seen, noisy)
        expected = flow.to_clean(noisy, wan.velocity(noisy, per_frame(level, noisy), text, cache), level.item())
        torch.testing.assert_close(clean, expected)
        if index + 1 < len(steps):
            noisy = flow.add_noise(clean, noises[index + 1], steps[index + 1].sigma.item())


@torch.no_grad()
def test_a_stream_yields_its_chunks_as_they_come() -> None:
    wan = tiny_wan(dtype=torch.float32)
    text = wan.condition(torch.randn(2, 5, 8))
    chunks = stream(wan, text, 2, 9, video_noise(0, [0, 1]))
    assert next(chunks).shape == (2, 3, *LATENT)
    assert len(list(chunks)) == 2
