"""Rewards that need no weights and no prompt: what the pixels of any video say about its motion."""

from __future__ import annotations

from collections.abc import Sequence

from astrolabe.types import PerSample, Video


class PixelMotion:
    """How much moves: mean absolute difference of neighbouring frames."""

    name = "pixel_motion"

    def __call__(self, video: Video, prompts: Sequence[str]) -> PerSample:
        """See ``rewards.base.Reward``."""
        return video.diff(dim=1).abs().mean((1, 2, 3, 4))


class PixelSteadiness:
    """How evenly it moves: minus the mean absolute distance of a frame from the mean of its two neighbours.

    A still video is the steadiest of all: give it motion as a counterweight.
    """

    name = "pixel_steadiness"

    def __call__(self, video: Video, prompts: Sequence[str]) -> PerSample:
        """See ``rewards.base.Reward``."""
        return -video.diff(dim=1, n=2).abs().mean((1, 2, 3, 4)) / 2
