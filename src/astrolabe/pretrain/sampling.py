"""Many-step guided sampling of the teacher, which the few-step student is measured against."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from astrolabe import flow
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rollout.stream import NoiseSource
from astrolabe.types import TextEmbeddings, per_frame


@torch.no_grad()
def sample_many_steps(
    model: WanGenerator, text: TextEmbeddings, frames: int, noise: NoiseSource, steps: int, guidance: float
) -> Tensor:
    """Latents [b, f, c, h, w] by ``steps`` Euler steps a chunk along warped levels, with classifier-free guidance.

    ``guidance`` 1 is none: the text is then the only condition run.
    """
    branches = [(model.condition(text), model.new_cache(len(text), frames))]
    if guidance != 1:
        branches.append((model.condition(torch.zeros_like(text)), model.new_cache(len(text), frames)))
    levels = flow.warp(torch.linspace(1, 0, steps + 1, dtype=torch.float64), model.stream.shift).tolist()
    chunks = []
    for index, (first, end) in enumerate(model.stream.chunks(frames)):
        x = noise(index, 0, (len(text), end - first, *model.latent_shape))
        for now, then in pairwise(levels):
            velocities = [model.velocity(x, per_frame(now, x), seen, cache) for seen, cache in branches]
            velocity = velocities[-1] + guidance * (velocities[0] - velocities[-1]) if guidance != 1 else velocities[0]
            x = x + (then - now) * velocity
        for seen, cache in branches:
            model.commit(x, seen, cache)
        chunks.append(x)
    return torch.cat(chunks, 1)
