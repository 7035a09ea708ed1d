"""One window of a stream: G candidates for the next clip, all from one frozen history (method, section 2).

The history of every prompt is a ``VideoStream`` of one row a prompt. Candidates read its cache and never write to it;
their decoders start from its decoder's state, so that a clip's first frames look as they would in the whole video.
Cost for a prompt: P + G W frames, instead of the G (P + W) of candidates that are made from the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from astrolabe.rollout.live import Numbered, PlacedNoise, VideoStream
from astrolabe.rollout.stream import NoiseSource, denoise_chunk
from astrolabe.runtime.errors import UserError
from astrolabe.types import Latents, Video


@dataclass(frozen=True)
class Clips:
    """Candidates side by side, group after group: latents [b * G, f, c, h, w], pixels [b * G, t, 3, y, x]."""

    latents: Latents
    video: Video
    group_size: int


@torch.no_grad()
def candidates(stream: VideoStream, group_size: int, frames: int, seed: int, micro_batch: int) -> Clips:
    """``group_size`` clips of ``frames`` latent frames for every row of ``stream``, which stays as it is.

    ``micro_batch`` candidates of a prompt are made at once; it changes memory and speed, not results: the noise of
    candidate j of prompt i belongs to (``seed``, i, j). Raises UserError when no chunking fits ``frames``.
    """
    stream.generator.stream.chunks(frames)
    if not 1 <= micro_batch <= group_size:
        raise UserError(f"micro_batch={micro_batch}: from 1 to group_size={group_size} candidates at once")
    prompts = len(stream.text)
    latents: list[Tensor] = []
    videos: list[Tensor] = []
    for first in range(0, group_size, micro_batch):
        width = min(micro_batch, group_size - first)
        numbers = [i * group_size + first + j for i in range(prompts) for j in range(width)]
        clip, video = _side_by_side(stream, width, frames, PlacedNoise(seed, numbers))
        latents.append(clip.unflatten(0, (prompts, width)))
        videos.append(video.unflatten(0, (prompts, width)))
    return Clips(torch.cat(latents, 1).flatten(0, 1), torch.cat(videos, 1).flatten(0, 1), group_size)


def _side_by_side(stream: VideoStream, width: int, frames: int, noise: NoiseSource) -> tuple[Latents, Video]:
    """``width`` candidates of every prompt, in step."""
    generator, prompts = stream.generator, len(stream.text)
    cache = generator.new_candidates(stream.cache, width, frames)
    rows = torch.arange(prompts, device=generator.device).repeat_interleave(width)
    state = generator.decoder_select(stream.state, rows)
    clean: list[Tensor] = []
    pixels: list[Tensor] = []
    for index, (first, end) in enumerate(generator.stream.chunks(frames)):
        shape = (prompts * width, end - first, *generator.latent_shape)
        opening = 0 if stream.frames + first == 0 else 1  # the first chunk of a video may have steps of its own
        *_, (chunk, _) = denoise_chunk(generator, stream.condition, cache, Numbered(noise, index), opening, shape)
        if end < frames:  # nothing will look back at the last chunk
            generator.commit(chunk, stream.condition, cache)
        video, state = generator.decode(chunk, state)
        clean.append(chunk)
        pixels.append(video)
    return torch.cat(clean, 1), torch.cat(pixels, 1)


def go_on_with(stream: VideoStream, clips: Clips, chosen: Sequence[int]) -> None:
    """Commit candidate ``chosen[i]`` of every prompt i: it becomes history, under the policy in force."""
    rows = torch.tensor([i * clips.group_size + j for i, j in enumerate(chosen)], device=clips.latents.device)
    stream.extend(clips.latents[rows])
