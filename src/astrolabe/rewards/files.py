"""Video files as rewards see them: at one rate, and never whole where that is not needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from astrolabe.rewards.base import Answer, Member, attempt
from astrolabe.rewards.pixels import PixelReward
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.video import frames_at
from astrolabe.runtime.viewing import Pixels, at_rate
from astrolabe.types import Video, to_video

NUMBERS_HELD = 2**30  # of the frames that a reward sees at once, as floating point: 4 GiB


@dataclass(frozen=True)
class VideoFile:
    """A video or an image on disk, seen at ``rate`` frames a second. UserError where it cannot be read."""

    path: Path
    rate: float

    def frames(self) -> Iterator[Pixels]:
        """Its frames one by one, as bytes."""
        return frames_at(self.path, self.rate)

    def score(self, member: Member, prompt: str) -> Answer:
        """What a reward says of it. UserError for a video that is too long to be seen by it at once."""
        if isinstance(member.reward, PixelReward) and member.frames is None:
            return member.reward.of_frames(self.frames()), torch.zeros(1), ""
        return attempt(member, self.video(member), [prompt])

    def video(self, member: Member) -> Video:
        """The frames that a reward sees."""
        if member.frames is None:
            kept = self.frames()
        else:
            count = sum(1 for _ in at_rate(self.path, self.rate))
            chosen = torch.linspace(0, count - 1, min(member.frames, count)).round().long().tolist()
            kept = (frame for number, frame in enumerate(self.frames()) if number in chosen)
        held: list[Pixels] = []
        for frame in kept:
            held.append(frame)
            if len(held) * frame.size > NUMBERS_HELD:
                size, name = f"{frame.shape[1]} x {frame.shape[0]}", member.reward.name
                raise UserError(
                    f"more than {len(held) - 1} frames of {size} pixels are too many at once; let {name} see fewer, "
                    f"evenly spread: {name},frames=32"
                )
        if not held:
            raise UserError(f"{self.path}: has no frames")
        return to_video(torch.from_numpy(np.stack(held)).permute(0, 3, 1, 2)[None])

    def fingerprint(self) -> str:
        """What tells these frames from others."""
        return fingerprint(self.frames())


def fingerprint(frames: Iterable[Pixels]) -> str:
    """What tells frames [y, x, 3] from others, as bytes of [t, 3, y, x] and their shape; they are not held."""
    digest, shape, count = hashlib.sha256(), (0, 0), 0
    for frame in frames:
        digest.update(frame.transpose(2, 0, 1).tobytes())
        shape, count = frame.shape[:2], count + 1
    return f"{digest.hexdigest()} {[1, count, 3, *shape]}"
