"""What the pixels of any video say, without weights and without its prompt: as rewards, and as measures to watch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from astrolabe.rewards.base import check_batch
from astrolabe.rewards.flow import dynamic_degree, flow_smoothness
from astrolabe.runtime.errors import UserError
from astrolabe.types import Latents, PerSample, Video


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
    """How much more a video changes from chunk to chunk than within chunks: 1 where nobody could tell.

    It begins with a chunk. A latent frame is four video frames, but for the first of a whole video, which is one: the
    number of frames tells which of the two came.
    """
    whole = video.shape[1] % 4 == 1
    change = video.diff(dim=1).abs().mean((2, 3, 4))  # [b, t - 1]
    first = 4 * chunk_frames - 3 if whole else 4 * chunk_frames
    jumps = torch.arange(first - 1, max(first - 1, change.shape[1]), 4 * chunk_frames)
    inside = torch.ones(change.shape[1], dtype=torch.bool)
    inside[jumps] = False
    if not len(jumps) or not bool(inside.any()):  # a single chunk, or nothing else
        return torch.ones(len(video))
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
    """A measure of pixels as a reward, or its opposite, of videos with at least so many ``frames``."""

    def __init__(self, name: str, measure: Callable[[Video], PerSample], frames: int = 1, sign: float = 1.0):
        self.name, self.measure, self.frames, self.sign = name, measure, frames, sign

    def __call__(self, video: Video, prompts: Sequence[str]) -> PerSample:
        """See ``rewards.base.Reward``."""
        check_batch(self.name, video, prompts, self.frames, asked=False)
        if min(video.shape[3:]) < 3:
            raise UserError(f"{self.name}: frames of {video.shape[3]} x {video.shape[4]} pixels came; 3 x 3 are needed")
        return self.sign * self.measure(video)


ANY_VIDEO: dict[str, PixelReward] = {
    "pixel_motion": PixelReward("pixel_motion", motion_energy, 2),
    # A still video is the steadiest of all: give it motion as a counterweight.
    "pixel_steadiness": PixelReward("pixel_steadiness", flicker, 3, sign=-1.0),
    "pixel_saturation": PixelReward("pixel_saturation", saturation),
    "pixel_sharpness": PixelReward("pixel_sharpness", sharpness),
    "flow_degree": PixelReward("flow_degree", dynamic_degree, 2),
    "flow_smoothness": PixelReward("flow_smoothness", flow_smoothness, 3),
}
