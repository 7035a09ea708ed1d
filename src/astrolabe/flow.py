"""The forward process: noise levels and three views of a point on the path from data to noise.

``x_sigma = (1 - sigma) x0 + sigma eps`` and the network predicts the velocity ``v = eps - x0``. Everything here is
pure. ``sigma`` is a number, or has one entry a latent frame ``[b, f]`` for latents ``[b, f, c, h, w]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from astrolabe.types import Latents

TIMESTEPS = 1000  # the network's clock: timestep = 1000 sigma


def warp(sigma: Tensor, shift: float) -> Tensor:
    """Move levels towards noise: ``shift * sigma / (1 + (shift - 1) * sigma)``, as Wan does for large latents."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sampler_levels(steps: Sequence[int], shift: float) -> Tensor:
    """The levels [k] that few-step sampling visits, descending, in float64.

    ``steps`` are timesteps before warping; (1000, 750, 500, 250) with shift 5 gives 1, 0.9375, 0.8333, 0.625.
    """
    return warp(torch.tensor(steps, dtype=torch.float64) / TIMESTEPS, shift)


def _spread(sigma: Tensor | float, like: Tensor) -> Tensor | float:
    """Let a [b, f] level multiply [b, f, c, h, w]; numbers pass as they are."""
    if isinstance(sigma, Tensor) and sigma.ndim:
        return sigma.reshape(*sigma.shape, *[1] * (like.ndim - sigma.ndim)).to(like.dtype)
    return sigma


def add_noise(clean: Latents, noise: Latents, sigma: Tensor | float) -> Latents:
    """x_sigma, the point at level ``sigma`` between ``clean`` and ``noise``."""
    sigma = _spread(sigma, clean)
    return (1 - sigma) * clean + sigma * noise


def to_clean(noisy: Latents, velocity: Latents, sigma: Tensor | float) -> Latents:
    """The x0 that a velocity points at: ``x_sigma - sigma v``."""
    return noisy - _spread(sigma, noisy) * velocity


def to_velocity(noisy: Latents, clean: Latents, sigma: Tensor | float) -> Latents:
    """The velocity that points from ``noisy`` at ``clean``; undefined at sigma = 0."""
    return (noisy - clean) / _spread(sigma, noisy)
