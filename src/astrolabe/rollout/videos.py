"""Whole videos, streamed side by side from independent noise: what evaluation looks at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from astrolabe.models.base import Generator
from astrolabe.rollout.stream import NoiseSource, SeededNoise, stream
from astrolabe.types import Latents, Video


def video_noise(seed: int, videos: Sequence[int]) -> SeededNoise:
    """Noise of videos by number: video i is the same whatever else is generated beside it."""
    return SeededNoise([torch.Generator().manual_seed((seed * 1_000_003 + video) % 2**63) for video in videos])


@torch.no_grad()
def generate(generator: Generator, text: Tensor, frames: int, noise: NoiseSource) -> tuple[Latents, Video]:
    """Stream one video for every row of ``text`` [b, n, d]; latents and pixels of the whole length."""
    condition = generator.condition(text)
    chunks, pixels, state = [], [], None
    for chunk in stream(generator, condition, len(text), frames, noise):
        video, state = generator.decode(chunk, state)
        chunks.append(chunk)
        pixels.append(video)
    return torch.cat(chunks, 1), torch.cat(pixels, 1)


def generate_batches(
    generator: Generator, text: Tensor, frames: int, seed: int, micro_batch: int, first_video: int = 0
) -> tuple[Latents, Video]:
    """``generate`` in parts of ``micro_batch`` rows; row i is video number ``first_video + i`` of ``seed``."""
    parts = []
    for rows in torch.arange(len(text)).split(micro_batch):
        noise = video_noise(seed, [first_video + row for row in rows.tolist()])
        parts.append(generate(generator, text[rows], frames, noise))
    latents, videos = zip(*parts, strict=True)
    return torch.cat(latents), torch.cat(videos)
