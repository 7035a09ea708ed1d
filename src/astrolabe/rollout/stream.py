"""One batch of videos as a stream: chunk by chunk, a few denoising steps each, then the context pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from astrolabe import flow
from astrolabe.models.base import Generator
from astrolabe.models.visibility import StreamMemory
from astrolabe.types import Latents, per_frame


@runtime_checkable
class NoiseSource(Protocol):
    """Where randomness comes from, so that it can be replayed: step 0 starts a chunk, later steps re-noise it."""

    def __call__(self, chunk: int, step: int, shape: Sequence[int]) -> Tensor:
        """Noise [b, f, c, h, w] of ``shape``."""
        ...


class SeededNoise:
    """Noise that belongs to each video alone: row i depends on its own generator, not on who else is in the batch."""

    def __init__(self, generators: Sequence[torch.Generator]):
        self.generators = generators

    def __call__(self, chunk: int, step: int, shape: Sequence[int]) -> Tensor:
        """See NoiseSource."""
        return torch.stack([torch.randn(*shape[1:], generator=g) for g in self.generators])


class Denoised(NamedTuple):
    """One sampler level of a chunk: what the network saw, and the clean chunk it predicted."""

    noisy: Latents
    clean: Latents
    sigma: Tensor


def denoise_chunk(
    generator: Generator, text: object, cache: StreamMemory, noise: NoiseSource, chunk: int, shape: Sequence[int]
) -> Iterator[Denoised]:
    """Every sampler level of a chunk; the last clean one is the chunk (method: few-step sampling)."""
    levels = generator.stream.levels_of(chunk)
    noisy = noise(chunk, 0, shape).to(generator.device)
    for step, sigma in enumerate(levels.tolist()):
        clean = flow.to_clean(noisy, generator.velocity(noisy, per_frame(sigma, noisy), text, cache), sigma)
        yield Denoised(noisy, clean, levels[step])
        if step + 1 < len(levels):
            fresh = noise(chunk, step + 1, shape).to(generator.device)
            noisy = flow.add_noise(clean, fresh, levels[step + 1].item())


def stream(generator: Generator, text: object, batch: int, frames: int, noise: NoiseSource) -> Iterator[Latents]:
    """Yield the clean chunks [b, chunk_frames, c, h, w] of ``batch`` videos of ``frames`` latent frames.

    ``text`` is what ``generator.condition`` returned. Raises UserError when no chunking fits ``frames``.
    """
    chunks = generator.stream.chunks(frames)
    cache = generator.new_cache(batch, frames)
    for index, (first, end) in enumerate(chunks):
        shape = (batch, end - first, *generator.latent_shape)
        *_, (_, clean, _) = denoise_chunk(generator, text, cache, noise, index, shape)
        if end < frames:  # nothing will look back at the last chunk
            generator.commit(clean, text, cache)
        yield clean
