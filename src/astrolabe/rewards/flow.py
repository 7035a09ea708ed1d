"""Motion as displacement, without weights: how far the parts of a video move from frame to frame, by phase correlation
(Kuglin and Hines, 1975)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from astrolabe.types import PerSample, Video

BLOCK = 32  # pixels of a part's side, or the frame's if that is less
FLAT = 0.01  # spread of brightness under which a part has nothing to follow
WAVES_AT_ONCE = 2**23  # numbers of parts that are transformed together; what comes of them does not depend on it
LIVELIEST = 0.05  # the share of the parts that tell how much a video moves, as in VBench's dynamic degree


def displacement(video: Video) -> Float[Tensor, "b steps parts 2"]:
    """By how many pixels (down, right) each part of every frame but the last has moved in the next; 0 for flat ones.

    A few frames at a time: parts overlap, and their waves take some forty times the memory of the frames.
    """
    brightness = video.mean(2)
    side = min(BLOCK, *brightness.shape[-2:])
    at_once = max(1, WAVES_AT_ONCE // (4 * brightness[:, 0].numel()))
    found, before = [], None
    for piece in brightness.split(at_once, 1):
        waves, followed = waves_of(piece, side)
        if before is not None:
            waves, followed = (torch.cat(pair, 1) for pair in zip(before, (waves, followed), strict=True))
        if waves.shape[1] > 1:
            found.append(moved_between(waves, followed))
        before = waves[:, -1:].clone(), followed[:, -1:]
    return torch.cat(found, 1) if found else torch.zeros(*followed[:, 1:].shape, 2)


def waves_of(brightness: Float[Tensor, "b t y x"], side: int) -> tuple[Tensor, Tensor]:
    """Fourier transforms [b, t, parts, side, side] of the parts, and which of them [b, t, parts] can be followed."""
    parts = brightness.unfold(2, side, side // 2).unfold(3, side, side // 2).flatten(2, 3)  # [b, t, parts, side, side]
    window = torch.hann_window(side, periodic=False, device=brightness.device)
    centred = (parts - parts.mean((3, 4), keepdim=True)) * window[:, None] * window
    return torch.fft.fft2(centred), parts.std((3, 4)) > FLAT


def moved_between(waves: Tensor, followed: Tensor) -> Float[Tensor, "b steps parts 2"]:
    """Displacements from each frame to the next, by the peak of the correlation of their phases."""
    cross = waves[:, 1:] * waves[:, :-1].conj()
    peaks = torch.fft.ifft2(cross / cross.abs().clamp(min=1e-8)).real
    side = waves.shape[-1]
    place = peaks.flatten(3).argmax(3)
    moved = torch.stack([place // side, place % side], 3)
    moved = torch.where(moved > side // 2, moved - side, moved).float()
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
