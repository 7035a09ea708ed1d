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
    """Every reward on every candidate; UserError when a reward returns something that is no finite score a video."""
    columns = []
    for reward in rewards:
        values = reward(rollout.video, rollout.captions)
        if values.shape != (len(rollout.video),) or not bool(torch.isfinite(values).all()):
            raise UserError(
                f"reward {reward.name!r} returned shape {list(values.shape)} with "
                f"{int((~torch.isfinite(values)).sum())} non-finite values; expected {len(rollout.video)} finite scores"
            )
        columns.append(values.float())
    return Scores(tuple(reward.name for reward in rewards), torch.stack(columns, 1))
