"""What is generated in a step, and where along a stream."""

from __future__ import annotations

import math
from typing import Literal

from astrolabe.models.wan.config import StreamConfig
from astrolabe.runtime.config import config, setting
from astrolabe.runtime.errors import UserError


@config
class RolloutSettings:
    """What is generated in a step."""

    prompts: int = setting("prompts in a step", ge=1)
    group_size: int = setting("candidates of a prompt, which are compared (G)", ge=2)
    micro_batch: int = setting(
        "candidates of every prompt that are made at once; changes memory and speed, not results",
        ge=1,
        affects="rounding",
    )
    side_by_side: int | None = setting(
        "prompts whose candidates are made in one batch, if their scripts change at the same places; the default is "
        "all; one batch is made by one process",
        default=None,
        ge=1,
        affects="rounding",
    )

    @property
    def batches(self) -> int:
        """The fewest batches that the candidates of a step are made in: as many processes find work."""
        tracks = math.ceil(self.prompts / (self.side_by_side or self.prompts))
        return tracks * math.ceil(self.group_size / self.micro_batch)

    def __post_init__(self) -> None:
        if self.micro_batch > self.group_size:
            raise UserError(
                f"rollout.micro_batch={self.micro_batch}: a prompt has {self.group_size} candidates "
                f"(rollout.group_size); choose 1 to {self.group_size}"
            )


@config
class WindowSettings:
    """Which part of a video is a clip: made several times, scored and trained on.

    Whether videos longer than a clip are better trained anywhere along them (``start`` random) or at their beginning is
    claim g of docs/evidence.md.
    """

    frames: int = setting("length of a clip", unit="latent frames", ge=1)
    start: Literal["first", "random", "choices"] = setting(
        "where the first window of a stream stands: at the beginning, anywhere, or at one of `choices`; drawn anew for "
        "every stream, the same for all prompts of a step",
        default="first",
    )
    choices: tuple[int, ...] = setting("starts to choose from", unit="latent frames", default=())
    video_frames: int | None = setting(
        "length of the whole video, in which windows and scripts lie; the default ends with the last window",
        unit="latent frames",
        default=None,
    )
    per_stream: int = setting("windows trained on, one after another, along one stream", default=1, ge=1)
    continue_with: Literal["random", "best"] = setting(
        "which candidate of a window the stream goes on with", default="random"
    )
    credit: float = setting(
        "how a score is divided: this share judges the shot from its beginning, the rest the clip alone (not the "
        "`credit` of a sample)",
        default=0.0,
        ge=0,
        le=1,
    )

    def __post_init__(self) -> None:
        if (self.start == "choices") != bool(self.choices):
            raise UserError(
                "window.choices are the starts that window.start=choices chooses from: give both, or neither"
            )
        if self.start == "random" and self.video_frames is None:
            raise UserError("window.start=random needs window.video_frames: the length of the video it may stand in")
        latest = self.length - self.along
        if latest < 0:
            raise UserError(
                f"window.video_frames={self.video_frames} is shorter than {self.per_stream} windows of {self.frames}; "
                f"it must be at least {self.along}"
            )
        for start in self.choices:
            if not 0 <= start <= latest:
                raise UserError(
                    f"window.choices: a window that starts at {start} ends beyond the video of {self.length} latent "
                    f"frames; the latest start is {latest}"
                )

    @property
    def along(self) -> int:
        """Latent frames of all windows of a stream."""
        return self.frames * self.per_stream

    @property
    def length(self) -> int:
        """Latent frames of the whole video."""
        return self.video_frames if self.video_frames is not None else max((0, *self.choices)) + self.along

    def check(self, stream: StreamConfig) -> None:
        """UserError, naming the nearest that do, when a length or a start does not fall on whole chunks."""
        size = stream.chunk_frames
        named = [("window.frames", self.frames)]
        named += [("window.video_frames", self.video_frames)] if self.video_frames is not None else []
        named += [("window.choices", start) for start in self.choices]
        for name, frames in named:
            if frames % size:
                low = frames // size * size
                near = f"{low} and {low + size}" if low or name == "window.choices" else f"{size}"
                verb = "are" if " and " in near else "is"
                raise UserError(f"{name}={frames} is not a multiple of chunk_frames={size}; the nearest {verb} {near}")

    def start_of(self, seed: int, stream: int, chunk: int) -> int:
        """Latent frame at which the first window of stream number ``stream`` stands."""
        import torch

        from astrolabe.runtime.random import rng_for

        starts = (0,) if self.start == "first" else self.choices
        if self.start == "random":
            starts = tuple(range(0, self.length - self.along + 1, chunk))
        rng = rng_for(seed, stream, "window")  # one for all prompts: they go on in step
        return starts[int(torch.randint(len(starts), (), generator=rng))]
