"""The records that pass between stages, and the one legend of axes.

    b  videos in a batch          f  latent frames        c  latent channels      h w  latent height, width
    t  video frames               y x  pixels             m  rewards              d  features of a text token
    n  tokens                     k  sampler levels       g  candidates of one prompt (a group)

A batch of groups is ordered prompt by prompt: ``b = prompts * g``, candidate j of prompt i in row ``i * g + j``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "b f c h w"]
Video = Float[Tensor, "b t 3 y x"]  # values in [0, 1]
TextEmbeddings = Float[Tensor, "b n d"]
Sigmas = Float[Tensor, "b f"]  # noise level of each latent frame, in [0, 1]
PerSample = Float[Tensor, "b"]
Positions = Literal["absolute", "relative"]


@dataclass(frozen=True)
class Rollout:
    """What the behavior policy made of a batch of prompts: G candidates each, scored and trained on as one window.

    ``prompts[i]`` belongs to rows ``i * group_size`` to ``(i + 1) * group_size - 1``; ``text`` has one row a prompt.
    """

    prompts: tuple[str, ...]
    group_size: int
    text: Float[Tensor, "prompts n d"]
    latents: Latents
    video: Video

    @property
    def captions(self) -> tuple[str, ...]:
        """The prompt of every row."""
        return tuple(prompt for prompt in self.prompts for _ in range(self.group_size))


@dataclass(frozen=True)
class Scores:
    """Raw rewards, higher is better: column m of ``values`` is reward ``names[m]``."""

    names: tuple[str, ...]
    values: Float[Tensor, "b m"]

    def column(self, name: str) -> PerSample:
        """The scores of one reward."""
        return self.values[:, self.names.index(name)]


@dataclass(frozen=True)
class Experience:
    """A rollout with credit assigned: all that an update needs."""

    rollout: Rollout
    scores: Scores
    advantages: PerSample
    optimality: PerSample  # r in [0, 1]; 1/2 neither pulls nor pushes


Metrics = dict[str, float]


def per_frame(sigma: Tensor | float, like: Latents) -> Sigmas:
    """Spread one level (a number, or one a video) over every frame of ``like``."""
    sigma = torch.as_tensor(sigma, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    if sigma.ndim < 2:
        sigma = sigma.reshape(-1, 1)
    return sigma.expand(like.shape[0], like.shape[1])
