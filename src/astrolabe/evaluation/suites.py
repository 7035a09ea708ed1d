"""What is measured: held-out prompts, noise seeds, and the oracles' verdicts on the videos of one policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from astrolabe.models.base import Generator
from astrolabe.rollout.videos import generate, video_noise
from astrolabe.shapes.captions import WORDINGS, caption, split
from astrolabe.shapes.oracles import judge
from astrolabe.shapes.world import Scene

ATTRIBUTES = ("colour", "shape", "motion")
QUALITY = ("cleanliness", "smoothness", "flicker", "motion_energy")
MEASURES = ("joint", *ATTRIBUTES, *QUALITY)
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
    """``scores[measure]`` is [prompts, seeds]; ``windows[measure]`` [windows, prompts, seeds]; some videos are kept."""

    scores: dict[str, Tensor]
    windows: dict[str, Tensor]
    videos: Tensor  # [kept, t, 3, y, x]: the first seed's videos of the kept prompts
    kept_prompts: tuple[str, ...]


def run_suite(
    generator: Generator, suite: Suite, keep: Sequence[int], batch: int, windows: int = 1,
    advance: Callable[[float], None] = lambda videos: None,
) -> Measured:  # fmt: skip
    """Generate and judge every video of the suite under the policy in force.

    Video i of seed s has noise of its own, the same for every policy: comparisons are paired. With ``windows`` the
    video is also cut into that many equal parts, each judged alone (how a long video drifts). The videos of the scenes
    ``keep`` under the first seed are returned.
    """
    per_seed, per_seed_windows = [], []
    kept: list[Tensor] = []
    for seed in suite.seeds:
        text = generator.encode_text(suite.prompts(seed))
        whole, cut = [], []
        for rows in torch.arange(len(text)).split(batch):
            scenes = [suite.scenes[row] for row in rows.tolist()]
            _, video = generate(generator, text[rows], suite.frames, video_noise(seed, rows.tolist()))
            whole.append(verdicts(video, scenes))
            if windows > 1:
                cut.append(torch.stack([verdicts(part, scenes) for part in equal_parts(video, windows)], 1))
            if seed == suite.seeds[0]:
                kept.extend(video[row - int(rows[0])].cpu() for row in keep if row in rows)
            advance(len(rows))
        per_seed.append(torch.cat(whole, 1))
        if cut:
            per_seed_windows.append(torch.cat(cut, 2))
    parts = torch.stack(per_seed_windows, 3) if per_seed_windows else ()
    return Measured(
        scores=dict(zip(MEASURES, torch.stack(per_seed, 2), strict=True)),
        windows=dict(zip(MEASURES, parts, strict=True)) if windows > 1 else {},
        videos=torch.stack(kept) if kept else torch.empty(0),
        kept_prompts=tuple(suite.prompts(suite.seeds[0])[row] for row in keep),
    )


def verdicts(video: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """The oracles' measures [measures, b], in the order of MEASURES."""
    judged = judge(video, scenes)
    return torch.stack([judged[measure] for measure in MEASURES]).cpu()


def equal_parts(video: Tensor, parts: int) -> list[Tensor]:
    """Equal windows of the videos; the first frame, alone in its latent, is left out."""
    size = (video.shape[1] - 1) // parts
    return [video[:, 1 + i * size : 1 + (i + 1) * size] for i in range(parts)]
