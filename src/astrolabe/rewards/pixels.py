"""What the pixels of any video say, without weights and without its prompt: as rewards, and as measures to watch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from astrolabe.rewards.base import check_batch
from astrolabe.rewards.flow import dynamic_degree, flow_smoothness
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.viewing import Pixels
from astrolabe.types import Latents, PerSample, Video, to_video

NUMBERS_AT_ONCE = 2**25  # floating-point numbers of a piece of a video: a long one would be gigabytes


def motion_energy(video: Video) -> PerSample:
    """How much moves: mean absolute difference of neighbouring frames."""
    return video.diff(dim=1).abs().mean((1, 2, 3, 4))


def flicker(video: Video) -> PerSample:
    """How unevenly it moves: mean absolute distance of a frame from the mean of its two neighbours."""
    return video.diff(dim=1, n=2).abs().mean((1, 2, 3, 4)) / 2


def saturation(video: Video) -> PerSample:
    """How colourful it is: mean distance of the largest of red, green and blue from the smallest."""
    return (video.amax(2) - video.amin(2)).mean((1, 2, 3))


def sharpness(video: Video) -> PerSample:
    """Mean absolute Laplacian of the brightness."""
    grey = video.mean(2)
    centre = grey[..., 1:-1, 1:-1]
    around = grey[..., :-2, 1:-1] + grey[..., 2:, 1:-1] + grey[..., 1:-1, :-2] + grey[..., 1:-1, 2:]
    return (around - 4 * centre).abs().mean((1, 2, 3))


def boundary_jump(video: Video, chunk_frames: int) -> PerSample:
    """How much more a video changes from chunk to chunk than within chunks: 1 where there is no difference.

    It begins with a chunk. A latent frame is four video frames, but for the first of a whole video, which is one: the
    number of frames tells which of the two came.
    """
    return jump_of(changes(video), chunk_frames)


def changes(video: Video) -> Float[Tensor, "b steps"]:
    """Mean absolute difference of each frame from the one before."""
    return video.diff(dim=1).abs().mean((2, 3, 4))


def jump_of(change: Float[Tensor, "b steps"], chunk_frames: int) -> PerSample:
    """``boundary_jump`` of a video whose frames change so much."""
    whole = change.shape[1] % 4 == 0
    first = 4 * chunk_frames - 3 if whole else 4 * chunk_frames
    jumps = torch.arange(first - 1, max(first - 1, change.shape[1]), 4 * chunk_frames)
    inside = torch.ones(change.shape[1], dtype=torch.bool)
    inside[jumps] = False
    if not len(jumps) or not bool(inside.any()):  # a single chunk, or nothing else
        return torch.ones(len(change))
    return (change[:, jumps].mean(1) + 1e-6) / (change[:, inside].mean(1) + 1e-6)


def diversity(latents: Latents, group_size: int) -> PerSample:
    """Root mean square distance of each candidate from the mean of its group, in units of the latents' own spread."""
    groups = latents.float().unflatten(0, (-1, group_size))
    away = (groups - groups.mean(1, keepdim=True)).square().flatten(2).mean(2)
    away = away * group_size / max(group_size - 1, 1)  # so that it does not depend on the size of the group
    return (away.sqrt() / latents.float().std().clamp(min=1e-6)).flatten()


def channel_moments(latents: Latents) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [c] of every latent channel, over all videos."""
    channels = latents.float().transpose(0, 2).flatten(1)
    return channels.mean(1), channels.std(1)


class PixelReward:
    """A measure of pixels as a reward, or its opposite (``sign``), of videos with at least so many ``frames``.

    The measure is a mean over all runs of ``run`` neighbouring frames (None: of ``frames``), taken a few frames at a
    time. With ``finish``, it gives a number for each run instead, [b, runs], and ``finish`` makes the score of them.
    """

    def __init__(
        self, name: str, measure: Callable[[Video], Tensor], frames: int = 1, sign: float = 1.0,
        finish: Callable[[Tensor], PerSample] | None = None, run: int | None = None,
    ):  # fmt: skip
        self.name, self.measure, self.frames, self.sign, self.finish = name, measure, frames, sign, finish
        self.overlap = (run or frames) - 1  # frames that two pieces share

    def __call__(self, video: Video, prompts: Sequence[str]) -> PerSample:
        """See ``rewards.base.Reward``."""
        check_batch(self.name, video, prompts, self.frames, asked=False)
        self.check_size(*video.shape[3:])
        size = self.runs_at_once(video[:, 0].numel())
        firsts = range(0, video.shape[1] - self.overlap, size)
        return self.sign * self.over(video[:, first : first + size + self.overlap] for first in firsts)

    def of_frames(self, frames: Iterable[Pixels]) -> PerSample:
        """The score of one video whose frames come one by one, as bytes [y, x, 3], however many."""
        return self.sign * self.over(self.pieces_of(frames))

    def over(self, pieces: Iterable[Video]) -> PerSample:
        """The measure of a video from pieces, each of which begins ``overlap`` frames before the last one's end."""
        if self.finish is not None:
            return self.finish(torch.cat([self.measure(piece) for piece in pieces], 1))
        total, count = torch.zeros(1, dtype=torch.float64), 0
        for piece in pieces:
            runs = piece.shape[1] - self.overlap
            total, count = total + self.measure(piece).double().cpu() * runs, count + runs
        return (total / count).float()

    def pieces_of(self, frames: Iterable[Pixels]) -> Iterator[Video]:
        """Frames in pieces for ``over``; UserError when there are too few, or they are too small."""
        held: list[Tensor] = []
        count = 0
        for frame in frames:
            self.check_size(*frame.shape[:2])
            held.append(torch.from_numpy(frame).permute(2, 0, 1))
            count += 1
            if len(held) == self.runs_at_once(frame.size) + self.overlap:
                yield to_video(torch.stack(held)[None])
                held = held[len(held) - self.overlap :]
        if count < self.frames:
            raise UserError(f"{self.name}: videos of {count} frames came; it looks at {self.frames} at least")
        if len(held) > self.overlap:
            yield to_video(torch.stack(held)[None])

    def runs_at_once(self, numbers: int) -> int:
        """How many runs are measured together, of frames of so many numbers."""
        return max(1, NUMBERS_AT_ONCE // numbers)

    def check_size(self, height: int, width: int) -> None:
        """UserError for frames that are too small to be measured."""
        if min(height, width) < 3:
            raise UserError(f"{self.name}: frames of {height} x {width} pixels came; 3 x 3 are needed")


def seamlessness(name: str, chunk_frames: int) -> PixelReward:
    """The opposite of ``boundary_jump`` as a reward, for videos made so many latent frames at a time."""
    return PixelReward(name, changes, 3, -1.0, lambda change: jump_of(change, chunk_frames), run=2)


ANY_VIDEO: dict[str, PixelReward] = {
    "pixel_motion": PixelReward("pixel_motion", motion_energy, 2),
    # A still video is the steadiest of all: give it motion as a counterweight.
    "pixel_steadiness": PixelReward("pixel_steadiness", flicker, 3, sign=-1.0),
    "pixel_saturation": PixelReward("pixel_saturation", saturation),
    "pixel_sharpness": PixelReward("pixel_sharpness", sharpness),
    "flow_degree": PixelReward("flow_degree", dynamic_degree, 2),
    "flow_smoothness": PixelReward("flow_smoothness", flow_smoothness, 3),
}
