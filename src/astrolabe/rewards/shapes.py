"""The oracles of the shapes world as rewards."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import ref

import torch
from torch import Tensor
from torch.nn import functional

from astrolabe.shapes.captions import parse
from astrolabe.shapes.oracles import judge
from astrolabe.shapes.settings import CANVAS
from astrolabe.types import PerSample, Video


class Oracles:
    """Judges videos once for all the rewards that ask about the same ones, one after another."""

    def __init__(self) -> None:
        self._video: ref[Video] | None = None
        self._asked: tuple[int, tuple[str, ...]] | None = None
        self._answer: dict[str, Tensor] = {}

    def __call__(self, video: Video, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Every measure of ``judge``."""
        asked = (video._version, tuple(prompts))  # the version counts changes in place
        if self._video is None or self._video() is not video or self._asked != asked:
            self._answer = judge(to_canvas(video), [parse(prompt) for prompt in prompts])
            self._video, self._asked = ref(video), asked
        return self._answer


def to_canvas(video: Video) -> Tensor:
    """Videos with every pixel so many times as large, as ``astrolabe generate`` writes them, at the canvas's size."""
    scale = video.shape[-1] // CANVAS
    if scale < 2 or video.shape[-2:] != (scale * CANVAS, scale * CANVAS):
        return video
    return functional.avg_pool2d(video.flatten(0, 1), scale).unflatten(0, video.shape[:2])


class OracleReward:
    """One measure of ``shapes.oracles.judge``, negated when lower is better."""

    def __init__(self, name: str, measure: str, oracles: Oracles, sign: float = 1.0):
        self.name, self.measure, self.oracles, self.sign = name, measure, oracles, sign

    def __call__(self, video: Video, prompts: Sequence[str]) -> PerSample:
        """See ``rewards.base.Reward``."""
        return self.sign * self.oracles(video, prompts)[self.measure]


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
