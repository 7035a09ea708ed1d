"""What is measured: held-out prompts, noise seeds, and the oracles' verdicts on the videos of one policy."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from astrolabe.models.base import Generator
from astrolabe.rollout.videos import generate, video_noise
from astrolabe.runtime.world import ALONE, World
from astrolabe.shapes.captions import WORDINGS, caption, split
from astrolabe.shapes.oracles import judge
from astrolabe.shapes.world import Scene
from astrolabe.types import Frames, to_frames

ATTRIBUTES = ("colour", "shape", "motion")
QUALITY = ("vividness", "cleanliness", "smoothness", "flicker", "motion_energy")
MEASURES = ("joint", "right", "made", *ATTRIBUTES, *QUALITY)
LOWER_IS_BETTER = ("flicker",)


@dataclass(frozen=True)
class Suite:
    """Scenes of a split, each in ``seeds`` noises (and as many wordings); ``frames`` latent frames long."""

    split: str
    seeds: tuple[int, ...]
    frames: int

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """The scenes, none of which occurs in training unless the split is ``train``."""
        return split(self.split)

    def prompts(self, seed: int) -> list[str]:
        """One caption a scene; the wording turns with scene and seed."""
        return [caption(scene, (index + seed) % WORDINGS) for index, scene in enumerate(self.scenes)]

    def __len__(self) -> int:
        return len(self.scenes) * len(self.seeds)


@dataclass(frozen=True)
class Measured:
    """``scores[measure]`` is [prompts, seeds]; ``windows[measure]`` [windows, prompts, seeds]. Videos that were kept
    stay with the process of the ``world`` that made them, ``held`` by row and number of the seed."""

    scores: dict[str, Tensor]
    windows: dict[str, Tensor]
    held: dict[tuple[int, int], Frames]
    world: World

    def videos(self, places: Sequence[tuple[int, int]]) -> Frames:
        """Kept videos [places, t, 3, y, x], on all processes; all must ask for the same ones."""
        parts = self.world.gather({place: self.held[place] for place in places if place in self.held})
        found = {place: video for part in parts for place, video in part.items()}
        return torch.stack([found[place] for place in places])


def run_suite(
    generator: Generator, suite: Suite, keep: Container[int], batch: int, windows: int = 1,
    advance: Callable[[float], None] = lambda videos: None, world: World = ALONE,
) -> Measured:  # fmt: skip
    """Generate and judge every video of the suite under the policy in force; the processes of a ``world`` share the
    batches, and all get every score.

    Video i of seed s has noise of its own, the same for every policy: comparisons are paired. With ``windows`` the
    video is also cut into that many equal parts, each judged alone (how a long video drifts). The videos of the scenes
    ``keep`` are kept, as bytes.
    """
    scenes = suite.scenes
    held: dict[tuple[int, int], Frames] = {}

    def measured(part: tuple[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Of a batch: measures [measures, b], and those of its parts [measures, parts, b]."""
        number, rows = part
        seed, own = suite.seeds[number], [scenes[row] for row in rows.tolist()]
        text = generator.encode_text(suite.prompts(seed))
        _, video = generate(generator, text[rows], suite.frames, video_noise(seed, rows.tolist()))
        cut = [verdicts(one, own) for one in equal_parts(video, windows)] if windows > 1 else []
        for row, frames in zip(rows.tolist(), to_frames(video), strict=True):
            if row in keep:
                held[row, number] = frames
        advance(len(rows) * world.size)  # the others are about as far
        return verdicts(video, own), torch.stack(cut, 1) if cut else torch.empty(0)

    batches = [(number, rows) for number in range(len(suite.seeds)) for rows in torch.arange(len(scenes)).split(batch)]
    found = list(world.shared(batches, measured, [float(len(rows)) for _, rows in batches]))
    # Batches follow one another seed by seed: [measures, prompts, seeds], and [measures, windows, prompts, seeds].
    whole = torch.cat([part for part, _ in found], 1).unflatten(1, (len(suite.seeds), -1)).transpose(1, 2)
    cut = (
        torch.cat([part for _, part in found], 2).unflatten(2, (len(suite.seeds), -1)).transpose(2, 3)
        if windows > 1
        else ()
    )
    return Measured(
        scores=dict(zip(MEASURES, whole, strict=True)),
        windows=dict(zip(MEASURES, cut, strict=True)) if windows > 1 else {},
        held=held,
        world=world,
    )


def verdicts(video: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """The oracles' measures [measures, b], in the order of MEASURES."""
    judged = judge(video, scenes)
    return torch.stack([judged[measure] for measure in MEASURES]).cpu()


def equal_parts(video: Tensor, parts: int) -> list[Tensor]:
    """Equal windows of the videos; the first frame, alone in its latent, is left out."""
    size = (video.shape[1] - 1) // parts
    return [video[:, 1 + i * size : 1 + (i + 1) * size] for i in range(parts)]
