"""Motion as displacement, without weights: how far the parts of a video move from frame to frame, by phase correlation
(Kuglin and Hines, 1975)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from astrolabe.types import PerSample, Video

BLOCK = 32  # pixels of a part's side, or the frame's if that is less
FLAT = 0.01  # spread of brightness under which a part has nothing to follow
LIVELIEST = 0.05  # the share of the parts that tell how much a video moves, as in VBench's dynamic degree


def displacement(video: Video) -> Float[Tensor, "b steps parts 2"]:
    """By how many pixels (down, right) each part of every frame but the last has moved in the next; 0 for flat ones."""
    brightness = video.mean(2)
    side = min(BLOCK, *brightness.shape[-2:])
    parts = brightness.unfold(2, side, side // 2).unfold(3, side, side // 2).flatten(2, 3)  # [b, t, parts, side, side]
    window = torch.hann_window(side, periodic=False, device=video.device)
    centred = (parts - parts.mean((3, 4), keepdim=True)) * window[:, None] * window
    waves = torch.fft.fft2(centred)
    cross = waves[:, 1:] * waves[:, :-1].conj()
    peaks = torch.fft.ifft2(cross / cross.abs().clamp(min=1e-8)).real
    place = peaks.flatten(3).argmax(3)
    moved = torch.stack([place // side, place % side], 3)
    moved = torch.where(moved > side // 2, moved - side, moved).float()
    followed = parts.std((3, 4)) > FLAT
    return moved * (followed[:, 1:] & followed[:, :-1])[..., None]


def dynamic_degree(video: Video) -> PerSample:
    """How far the liveliest parts move, mean over the frames, in hundredths of the frame's height."""
    moved = displacement(video).norm(dim=3)
    count = max(1, round(LIVELIEST * moved.shape[2]))
    return 100 * moved.topk(count, 2).values.mean((1, 2)) / video.shape[3]


def flow_smoothness(video: Video) -> PerSample:
    """How evenly parts move: minus the mean change of their displacement, in hundredths of the frame's height. A still
    video is the smoothest of all: give it motion as a counterweight."""
    change = displacement(video).diff(dim=1).norm(dim=3)
    return -100 * change.mean((1, 2)) / video.shape[3]
