"""What a vision model sees of a video: some of its frames, resized and cut into patches as the model's authors did it.

All on the device of the frames, and equal to the authors' own, pixel for pixel: a reward model that is shown other
pixels gives other scores.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from astrolabe.runtime.errors import UserError
from astrolabe.types import Video

Pictures = UInt8[Tensor, "n 3 y x"]
Grid = tuple[int, int, int]  # patches of one picture or video: in time (pairs of frames), height and width

PATCH, MERGE, PAIR = 14, 2, 2  # Qwen2-VL: pixels of a patch's side, patches of a token's side, frames of a patch
FACTOR = PATCH * MERGE
IMAGE_PIXELS = 256 * FACTOR**2
VIDEO_PIXELS = (128 * FACTOR**2, 256 * FACTOR**2)
MOST_ELONGATED = 200
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PRECISION = 22  # bits of Pillow's coefficients


def to_pictures(video: Video) -> UInt8[Tensor, "b t 3 y x"]:
    """Pixels in [0, 1] as bytes."""
    return (video * 255).round().clamp(0, 255).to(torch.uint8)


def smart_size(height: int, width: int, least: int, most: int) -> tuple[int, int]:
    """Height and width of about the same shape that whole tokens fill, with ``least`` to ``most`` pixels (rounding up
    to reach ``least`` may pass ``most``). Python's rounding, half to even, is part of it."""
    if max(height, width) > MOST_ELONGATED * min(height, width):
        raise UserError(f"frames of {height} x {width} are longer than {MOST_ELONGATED} times their other side")
    new = [max(FACTOR, round(side / FACTOR) * FACTOR) for side in (height, width)]
    if new[0] * new[1] > most:
        shrink = math.sqrt(height * width / most)
        new = [max(FACTOR, math.floor(side / shrink / FACTOR) * FACTOR) for side in (height, width)]
    elif new[0] * new[1] < least:
        grow = math.sqrt(least / (height * width))
        new = [math.ceil(side * grow / FACTOR) * FACTOR for side in (height, width)]
    return new[0], new[1]


@lru_cache(maxsize=64)
def pillow_taps(old: int, new: int) -> tuple[Int[Tensor, "new taps"], Int[Tensor, "new taps"]]:
    """Where each new pixel of a line looks, and with which integer weights, in Pillow's bicubic resampling."""
    scale = old / new
    reach = max(scale, 1.0)
    centre = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
    first = (centre - 2 * reach + 0.5).trunc().clamp(min=0).long()
    end = (centre + 2 * reach + 0.5).trunc().clamp(max=old).long()
    place = first[:, None] + torch.arange(int((end - first).max()))
    away = ((place - centre[:, None] + 0.5) / reach).abs()
    near, far = (1.5 * away - 2.5) * away * away + 1, ((-0.5 * away + 2.5) * away - 4) * away + 2
    weight = torch.where(away < 1, near, torch.where(away < 2, far, 0.0))
    weight = torch.where(place < end[:, None], weight, 0.0)
    exact = weight / weight.sum(1, keepdim=True) * 2**PRECISION
    return place.clamp(max=old - 1), (exact + exact.sign() * 0.5).trunc().to(torch.int32)


def pillow_bicubic(frames: Pictures, size: tuple[int, int]) -> UInt8[Tensor, "n 3 h w"]:
    """Bicubic resampling with the integers that Pillow computes with: along lines, rounded, then along columns. (Since
    version 13 Pillow begins with the columns where they shrink much more than the lines.)"""
    for axis in (-1, -2):
        old, new = frames.shape[axis], size[axis]
        if old == new:
            continue
        place, weight = (part.to(frames.device) for part in pillow_taps(old, new))
        shape = (-1, 1) if axis == -2 else (-1,)
        total = torch.full((), 2 ** (PRECISION - 1), dtype=torch.int32, device=frames.device)
        for tap in range(place.shape[1]):
            total = total + frames.index_select(axis, place[:, tap]).int() * weight[:, tap].view(shape)
        frames = (total >> PRECISION).clamp(0, 255).to(torch.uint8)
    return frames


def torch_bicubic(frames: Pictures, size: tuple[int, int]) -> UInt8[Tensor, "n 3 h w"]:
    """Bicubic resampling with antialiasing in floating point, rounded to bytes."""
    resized = functional.interpolate(frames.float(), size, mode="bicubic", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)


def grey(frames: Pictures) -> Pictures:
    """Brightness three times over, cut down (not rounded) to bytes."""
    red, green, blue = frames.float().unbind(1)
    brightness = (0.2989 * red + 0.587 * green + 0.114 * blue).to(torch.uint8)
    return brightness[:, None].repeat(1, 3, 1, 1)


def evenly(count: int, wanted: int) -> Int[Tensor, "n"]:
    """The numbers of ``wanted`` frames out of ``count``, the first and the last among them."""
    return torch.linspace(0, count - 1, wanted).round().long()


def at_rate(count: int, fps: float, rate: float = 2.0) -> Int[Tensor, "n"]:
    """The numbers of the frames of a video of ``count`` frames that VideoAlign looks at: ``rate`` a second, an even
    number, at least 4."""
    wanted = min(max(count / fps * rate, 4), min(768, count) // PAIR * PAIR)
    wanted = min(round(wanted / PAIR) * PAIR, count)
    return evenly(count, wanted)


def normalised(frames: Pictures) -> Float[Tensor, "n 3 y x"]:
    """Bytes as CLIP and Qwen2-VL want them."""
    mean, std = (torch.tensor(numbers, device=frames.device).view(3, 1, 1) for numbers in (CLIP_MEAN, CLIP_STD))
    return (frames.float() / 255 - mean) / std


def to_patches(frames: Pictures) -> tuple[Float[Tensor, "rows 1176"], Grid]:
    """Patches of a picture (one frame, which is doubled) or of a video (an even number), in Qwen2-VL's order: tokens
    in time, height and width, and in each the 2 x 2 patches that it merges."""
    if len(frames) == 1:
        frames = frames.repeat(PAIR, 1, 1, 1)
    count, _, height, width = frames.shape
    grid = (count // PAIR, height // PATCH, width // PATCH)
    pixels = normalised(frames).view(grid[0], PAIR, 3, grid[1] // MERGE, MERGE, PATCH, grid[2] // MERGE, MERGE, PATCH)
    rows = pixels.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return rows.reshape(math.prod(grid), -1), grid
