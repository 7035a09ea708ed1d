"""What a reward is, and a suite of several with weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from astrolabe.runtime.errors import UserError
from astrolabe.types import PerSample, Rollout, Scores, Video


@runtime_checkable
class Reward(Protocol):
    """Scores videos [b, t, 3, y, x] in [0, 1] against their prompts; higher is better."""

    name: str

    def __call__(self, video: Video, prompts: Sequence[str]) -> PerSample:
        """One finite score a video."""
        ...


def score(rewards: Sequence[Reward], rollout: Rollout) -> Scores:
    """Every reward on every candidate, on the CPU; UserError when videos or scores are not finite.

    Each sees the prompt in force; where that changed within a clip, its scores are averaged over the frames.
    """
    if not bool(torch.isfinite(rollout.latents).all()):
        raise UserError(
            "training diverged: the policy's videos are not finite; start a new run with a smaller optimizer.lr or "
            "algorithm.beta"
        )
    columns = torch.zeros(len(rollout.latents), len(rewards))
    for part in rollout.footage:
        for place, reward in enumerate(rewards):
            values = reward(part.video, part.captions)
            if values.shape != (len(part.video),) or not bool(torch.isfinite(values).all()):
                bad = int((~torch.isfinite(values)).sum())
                raise UserError(
                    f"reward {reward.name!r} returned shape {list(values.shape)} with {bad} non-finite values; "
                    f"expected {len(part.video)} finite scores"
                )
            columns[part.rows, place] += part.share * values.float().cpu()
    return Scores(tuple(reward.name for reward in rewards), columns)
