"""The records that pass between stages, and the one legend of axes.

    b  videos in a batch          f  latent frames        c  latent channels      h w  latent height, width
    t  video frames               y x  pixels             m  rewards              d  features of a text token
    n  tokens                     k  sampler levels       g  candidates of one prompt (a group)

A batch of groups is ordered prompt by prompt: ``b = prompts * g``, candidate j of prompt i in row ``i * g + j``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from astrolabe.words import Span

Latents = Float[Tensor, "b f c h w"]
Video = Float[Tensor, "b t 3 y x"]  # values in [0, 1]
Frames = UInt8[Tensor, "b t 3 y x"]  # the same as a file holds it, 0 to 255, in the host's memory
TextEmbeddings = Float[Tensor, "b n d"]
Sigmas = Float[Tensor, "b f"]  # noise level of each latent frame, in [0, 1]
PerSample = Float[Tensor, "b"]


@dataclass(frozen=True)
class Stretch:
    """Latent frames [first, end) of the clips of prompt number ``group``, made under one text: the unit of training.

    ``before`` latent frames of the video came earlier: its first chunk may have levels of its own. ``past(clean)`` is
    the frozen memory from which clips [g f c h w] of the group went on at ``first``; their rows share its rows evenly.
    """

    group: int
    first: int
    end: int
    before: int
    text: TextEmbeddings  # one row
    past: Callable[[Latents], Any]


@dataclass(frozen=True)
class Footage:
    """Frames of candidates ``rows`` while the prompts in ``captions`` were in force, and what they count.

    ``shares`` says how much of a score is theirs, for a reward that judges the clip, the video so far, or both mixed;
    over all footage of a candidate each adds up to one. ``clip`` tells a part of the clip from a longer piece, which
    begins before it.
    """

    rows: Int[Tensor, "n"]
    frames: Frames
    captions: tuple[str, ...]
    shares: Mapping[Span, float]
    clip: bool = True


@dataclass(frozen=True)
class Trajectory:
    """How the sampler came to the clips: what it saw at each of its levels, and the clean clip it predicted there.

    Rows of a level that a chunk does not have are nan.
    """

    noisy: Float[Tensor, "k b f c h w"]
    clean: Float[Tensor, "k b f c h w"]


@dataclass(frozen=True)
class Rollout:
    """What the behavior policy made of a batch of prompts: G candidates each for one window of their streams.

    Prompt i (a script of several, maybe) belongs to rows ``i * group_size`` to ``(i + 1) * group_size - 1``.
    """

    prompts: tuple[str, ...]
    group_size: int
    latents: Latents
    footage: tuple[Footage, ...]
    stretches: tuple[Stretch, ...]
    trajectory: Trajectory | None = None


@dataclass(frozen=True)
class Scores:
    """Raw rewards, higher is better: column m of ``values`` is reward ``names[m]``; nan where it gave no finite score.

    ``uncertainty`` is the rewards' own, 0 for those that know none. The first ``trained`` rewards (None: all) are
    trained on, the others judge.
    """

    names: tuple[str, ...]
    values: Float[Tensor, "b m"]
    uncertainty: Float[Tensor, "b m"] | None = None
    trained: int | None = None

    @property
    def valid(self) -> Bool[Tensor, "b"]:
        """The samples that have a score of every reward that is trained on."""
        return self.values[:, : self.trained].isfinite().all(1)

    def column(self, name: str) -> PerSample:
        """The scores of one reward."""
        return self.values[:, self.names.index(name)]


@dataclass(frozen=True)
class Experience:
    """A rollout with credit assigned: all that an update needs. ``credit`` is what the algorithm made of the advantages
    (optimality, say); ``anchored`` samples are held near the reference."""

    rollout: Rollout
    scores: Scores
    advantages: PerSample
    credit: PerSample
    anchored: Bool[Tensor, "b"]


Metrics = dict[str, float]


def to_frames(video: Video) -> Frames:
    """Pixels as bytes, in the host's memory."""
    return (video * 255).round().to(torch.uint8).cpu()


def to_video(frames: Frames) -> Video:
    """The inverse of ``to_frames``, but for what rounding took."""
    return frames.float() / 255


def per_frame(sigma: Tensor | float, like: Latents) -> Sigmas:
    """Spread one level (a number, or one a video) over every frame of ``like``."""
    sigma = torch.as_tensor(sigma, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    if sigma.ndim < 2:
        sigma = sigma.reshape(-1, 1)
    return sigma.expand(like.shape[0], like.shape[1])
