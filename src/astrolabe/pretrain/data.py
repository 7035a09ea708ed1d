"""Training data of the embedded models: rendered training scenes of mixed quality, as latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from astrolabe.runtime.progress import progress
from astrolabe.shapes.captions import WORDINGS, caption, split
from astrolabe.shapes.codec import Codec
from astrolabe.shapes.settings import LONGEST
from astrolabe.shapes.world import MIXED, Scene, render


@dataclass(frozen=True)
class Batch:
    """Beginnings of videos: clean latents [b, f, c, h, w] and their captions."""

    clean: Tensor
    captions: list[str]


def make_latents(codec: Codec, per_scene: int, generator: torch.Generator) -> Tensor:
    """``per_scene`` videos of every training scene and no others, each with looks of its own: [n, f, c, h, w] in
    float16, where row r shows scene r % 152."""
    scenes, rows = split("train"), []
    with progress("rendering", per_scene * len(scenes), "videos") as task, torch.no_grad():
        for _ in range(per_scene):
            for part in torch.arange(len(scenes)).split(16):
                video = render([scenes[row] for row in part.tolist()], 1 + 4 * (LONGEST - 1), generator, looks=MIXED)
                with torch.autocast("cpu", torch.bfloat16):
                    rows.append(codec.encode(video).half())
                task.advance(len(part))
    return torch.cat(rows)


class LatentData:
    """Draws from what ``make_latents`` made.

    ``emphasis`` says how much more often than others the scenes of a shape or a motion are drawn (a scene that has both
    by the product); without it all are alike.
    """

    def __init__(self, latents: Tensor, emphasis: Mapping[str, float] | None = None):
        self.scenes, self.latents, emphasis = split("train"), latents, emphasis or {}
        factors = [emphasis.get(scene.shape, 1.0) * emphasis.get(scene.motion, 1.0) for scene in self.scenes]
        self.weights = torch.tensor(factors).repeat(len(latents) // len(self.scenes))

    def draw(self, count: int, frames: int, generator: torch.Generator) -> Batch:
        """The first ``frames`` of ``count`` videos."""
        rows = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        shown = [self.scenes[row % len(self.scenes)] for row in rows.tolist()]
        return Batch(self.latents[rows, :frames].float(), describe(shown, generator))


def describe(scenes: Sequence[Scene], generator: torch.Generator) -> list[str]:
    """One caption a scene, in a wording drawn at random."""
    wordings = torch.randint(WORDINGS, (len(scenes),), generator=generator).tolist()
    return [caption(scene, wording) for scene, wording in zip(scenes, wordings, strict=True)]
