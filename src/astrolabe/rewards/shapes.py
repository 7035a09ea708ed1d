"""The oracles of the shapes world as rewards."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from astrolabe.shapes.captions import parse
from astrolabe.shapes.oracles import judge
from astrolabe.types import PerSample, Video


class OracleReward:
    """One measure of ``shapes.oracles.judge``, negated when lower is better."""

    def __init__(self, name: str, measure: str, sign: float = 1.0):
        self.name, self.measure, self.sign = name, measure, sign

    def __call__(self, video: Video, prompts: Sequence[str]) -> PerSample:
        """See ``rewards.base.Reward``."""
        return self.sign * judge(video, [parse(prompt) for prompt in prompts])[self.measure]


class RandomReward:
    """A reward that knows nothing: the control that must not lift anything."""

    name = "random"

    def __init__(self, seed: int):
        self.seed = seed

    def __call__(self, video: Video, prompts: Sequence[str]) -> PerSample:
        """A score drawn from the pixels' own hash, so that resuming repeats it."""
        keys = (video.double().mean((1, 2, 3, 4)) * 1e9).long()
        draws = [
            torch.rand((), generator=torch.Generator().manual_seed((int(key) + self.seed) % 2**63)) for key in keys
        ]
        return torch.stack(draws)
