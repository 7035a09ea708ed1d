"""What a reward is, and a suite of several with weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from astrolabe.runtime.errors import UserError
from astrolabe.types import PerSample, Rollout, Scores, Video, to_video

FLOATS_AT_ONCE = 2**28  # pixels that are floating-point numbers at the same time: all of a step would be gigabytes


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
        for some in torch.arange(len(part.rows)).split(at_once(part.frames[0].numel())):
            video, captions = to_video(part.frames[some]), [part.captions[i] for i in some.tolist()]
            for place, reward in enumerate(rewards):
                columns[part.rows[some], place] += part.share * judged(reward, video, captions)
    return Scores(tuple(reward.name for reward in rewards), columns)


def at_once(pixels: int) -> int:
    """How many videos of so many numbers each are judged at a time."""
    return max(1, min(8, FLOATS_AT_ONCE // pixels))


def judged(reward: Reward, video: Video, captions: Sequence[str]) -> PerSample:
    """The scores of some videos; UserError when they are not one finite number each."""
    values = reward(video, captions)
    if values.shape != (len(video),) or not bool(torch.isfinite(values).all()):
        raise UserError(
            f"reward {reward.name!r} returned shape {list(values.shape)} with {int((~torch.isfinite(values)).sum())} "
            f"non-finite values; expected {len(video)} finite scores"
        )
    return values.float().cpu()
