"""Training data of the embedded model: rendered training scenes as latents, and batches of windows cut from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from astrolabe.shapes.captions import WORDINGS, caption, split
from astrolabe.shapes.codec import Codec
from astrolabe.shapes.settings import CLIP_FRAMES
from astrolabe.shapes.world import Scene, render

LONG = 2 * CLIP_FRAMES  # latent frames of a training video: windows are cut from twice the length of a clip


@dataclass(frozen=True)
class Batch:
    """Windows of videos: clean latents [b, f, c, h, w], their captions, and which frames count in the loss [b, f].

    A window from the middle of a video has a first chunk whose past is missing: it is context, not a target.
    """

    clean: Tensor
    captions: list[str]
    counted: Tensor


class LatentData:
    """``per_scene`` videos of every training scene (no others), encoded once.

    ``emphasis`` says how much more often than others the scenes of a shape or a motion are drawn (a scene that has both
    by the product); without it all are alike.
    """

    def __init__(
        self, codec: Codec, per_scene: int, generator: torch.Generator, emphasis: Mapping[str, float] | None = None
    ):
        self.scenes: tuple[Scene, ...] = split("train")
        rows = []
        for _ in range(per_scene):
            video = render(self.scenes, 1 + 4 * (LONG - 1), generator)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                rows.append(codec.encode(video).half())
        self.latents = torch.cat(rows)  # row r shows scene r % len(scenes)
        self.weights: Tensor | None = None
        if emphasis:
            factors = [emphasis.get(scene.shape, 1.0) * emphasis.get(scene.motion, 1.0) for scene in self.scenes]
            self.weights = torch.tensor(factors).repeat(per_scene)

    def draw(self, count: int, frames: int, chunk: int, generator: torch.Generator) -> Batch:
        """``count`` windows of ``frames``; half start at the beginning, the others on any later chunk."""
        if self.weights is None:
            rows = torch.randint(len(self.latents), (count,), generator=generator)
        else:
            rows = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        starts = chunk * torch.randint((LONG - frames) // chunk + 1, (count,), generator=generator)
        if frames == chunk:
            starts = torch.zeros_like(starts)
        else:
            starts = starts * (torch.rand(count, generator=generator) < 0.5)
        frame = starts[:, None] + torch.arange(frames)
        counted = (frame >= chunk) & (torch.arange(frames) >= chunk) | (starts == 0)[:, None]
        shown = [self.scenes[row % len(self.scenes)] for row in rows.tolist()]
        return Batch(self.latents[rows[:, None], frame].float(), describe(shown, generator), counted.float())


def describe(scenes: Sequence[Scene], generator: torch.Generator) -> list[str]:
    """One caption a scene, in a wording drawn at random."""
    wordings = torch.randint(WORDINGS, (len(scenes),), generator=generator).tolist()
    return [caption(scene, wording) for scene, wording in zip(scenes, wordings, strict=True)]


def draw_captions(count: int, generator: torch.Generator) -> list[str]:
    """Captions of ``count`` training scenes drawn at random."""
    scenes = split("train")
    return describe([scenes[i] for i in torch.randint(len(scenes), (count,), generator=generator)], generator)
