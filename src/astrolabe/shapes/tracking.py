"""Follows the object of a shapes video from pixels alone: where it is, how large, and which shapes it resembles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from astrolabe.shapes.settings import CANVAS
from astrolabe.shapes.world import BACKGROUND, SHAPES, signed_distance

SAMPLES = 12  # frames in which colour and shape are looked at
CORE_PIXELS = 60  # the pixels farthest from the background, well inside any object
_VISIBLE = 0.1  # how visible a pixel must be to count as part of an object
_HALO = 3.0  # pixels around the object that count neither as object nor as background
_REACH = 26.0  # pixels, more than any object extends from its centre
_SMALLEST, _LARGEST = 4.0, 20.0  # radii in pixels outside which there is no object


@dataclass(frozen=True)
class Track:
    """One object followed through B videos of T frames; S frames were sampled for colour and shape."""

    contrast: Tensor  # [B, S, 3]: mean RGB of the most object-like pixels, less that of the background
    overlap: Tensor  # [B, S, 4]: soft IoU with each of SHAPES at the object's own place and area
    path: Tensor  # [B, T, 2]: centre in pixels, unwrapped
    radius: Tensor  # [B, T]: of the circle of the same area, in pixels
    present: Tensor  # [B, T]: 1 where there is an object of a plausible and steady size, else 0
    haze: Tensor  # [B, S]: mean colour distance from the world's background, outside the object and its halo
    junk: Tensor  # [B, S]: the share of all that is visible which lies outside the object and its halo
    flicker: Tensor  # [B]: change from frame to frame of the object's mean colour and of background pixels
    motion_energy: Tensor  # [B]: mean absolute difference of neighbouring frames


def track(video: Tensor) -> Track:
    """Follows the object of each of the videos ``[B, T, 3, CANVAS, CANVAS]``, in [0, 1]."""
    frames = video.shape[1]
    picks = torch.linspace(0, frames - 1, min(SAMPLES, frames), device=video.device).round().long()
    sampled = video[:, picks]
    # An object covers a ninth of the canvas: the median pixel is the background, however hazy the video.
    background = sampled.transpose(1, 2).flatten(2).median(-1).values
    visible = (sampled - background[:, None, :, None, None]).square().sum(2).sqrt()
    colours, colour = _core_colours(sampled, visible)
    direction = colour - background
    direction = direction / direction.square().sum(-1, keepdim=True).clamp_min(1e-4)
    # for a rendered object this is exactly the coverage of each pixel
    likeness = torch.einsum("btcn,bc->btn", video.flatten(3), direction)
    likeness = (likeness - (direction * background).sum(-1)[:, None, None]).clamp_(0, 1)
    mask = (likeness * (likeness > _VISIBLE)).unflatten(-1, (CANVAS, CANVAS))
    area = mask.sum((-1, -2))
    radius = (area / math.pi).sqrt()
    path = _path(mask)
    lifted = (sampled - video.new_tensor(BACKGROUND)[:, None, None]).square().sum(2).sqrt()
    overlap, haze, junk = _compare(mask[:, picks], path[:, picks], radius[:, picks], visible, lifted)
    flicker, energy = _changes(video.flatten(3), likeness)
    return Track(colours - background[:, None], overlap, path, radius, _present(radius), haze, junk, flicker, energy)


def _core_colours(sampled: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """RGB of the core pixels of each sampled frame ``[B, S, 3]``, and of the whole video ``[B, 3]``."""
    strength, where = visible.flatten(2).topk(CORE_PIXELS, dim=-1, sorted=False)
    pixels = sampled.flatten(3).gather(3, where[:, :, None].expand(-1, -1, 3, -1))
    colours = pixels.mean(-1)
    weight = strength.mean(-1, keepdim=True) + 1e-6  # frames without an object say nothing about its colour
    return colours, (colours * weight).sum(1) / weight.sum(1)


def _path(mask: Tensor) -> Tensor:
    """Unwrapped centroids ``[B, T, 2]`` of masks ``[B, T, H, W]`` on the torus."""
    pixels = torch.arange(CANVAS, dtype=mask.dtype, device=mask.device)
    angles = pixels * (2 * math.pi / CANVAS)
    coordinates = []
    for profile in (mask.sum(-2), mask.sum(-1)):
        turn = torch.atan2((profile * angles.sin()).sum(-1), (profile * angles.cos()).sum(-1))
        centre = turn * (CANVAS / (2 * math.pi))
        # the circular mean is a little off for a shape without symmetry: add the plain mean around it
        offset = torch.remainder(pixels - centre[..., None] + CANVAS / 2, CANVAS) - CANVAS / 2
        near = profile * (offset.abs() < _REACH)
        centre = centre + (near * offset).sum(-1) / near.sum(-1).clamp_min(1e-6)
        steps = torch.remainder(centre.diff(dim=-1) + CANVAS / 2, CANVAS) - CANVAS / 2
        coordinates.append(torch.cat((centre[:, :1], centre[:, :1] + steps.cumsum(-1)), dim=-1))
    return torch.stack(coordinates, dim=-1)


def _present(radius: Tensor) -> Tensor:
    """1 where the object has a plausible size, no less than 0.6 and no more than 1.6 times its usual one."""
    usual = radius.median(dim=1, keepdim=True).values
    plausible = (radius > _SMALLEST) & (radius < _LARGEST)
    return (plausible & (radius > 0.6 * usual) & (radius < 1.6 * usual)).to(radius.dtype)


def _compare(
    mask: Tensor, centre: Tensor, radius: Tensor, visible: Tensor, lifted: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap with every shape ``[B, S, 4]``, and haze and junk ``[B, S]`` around the most similar one."""
    batch, samples = radius.shape
    mask, visible, lifted = mask.flatten(0, 1), visible.flatten(0, 1).flatten(1), lifted.flatten(0, 1).flatten(1)
    area = mask.sum((-1, -2))
    overlap, outside = [], []
    for index in range(len(SHAPES)):
        distance = signed_distance(index, centre.flatten(0, 1), radius.flatten())
        template = (0.5 - distance).clamp_(0, 1)
        shared = torch.minimum(mask, template).sum((-1, -2))
        overlap.append(shared / (area + template.sum((-1, -2)) - shared).clamp_min(1e-6))
        outside.append(distance.flatten(1) > _HALO)
    overlaps = torch.stack(overlap, dim=-1)
    around = torch.stack(outside, dim=1)[torch.arange(len(mask)), overlaps.argmax(-1)].to(visible.dtype)
    haze = (lifted * around).sum(-1) / around.sum(-1).clamp_min(1)
    solid = (visible - _VISIBLE).clamp_min(0)
    junk = (solid * around).sum(-1) / solid.sum(-1).clamp_min(1e-6)
    return overlaps.unflatten(0, (batch, samples)), haze.view(batch, samples), junk.view(batch, samples)


def _changes(video: Tensor, likeness: Tensor) -> tuple[Tensor, Tensor]:
    """Flicker and motion energy, ``[B]`` each, of ``video`` ``[B, T, 3, N]`` and ``likeness`` ``[B, T, N]``."""
    weight = likeness.square().square()  # the inside of the object, hardly its anti-aliased rim
    colour = torch.einsum("btcn,btn->btc", video, weight) / weight.sum(-1, keepdim=True).clamp_min(1e-6)
    change = video.diff(dim=1).abs_().mean(2)
    empty = (1 - 8 * likeness).clamp_(0, 1)
    still_empty = empty[:, 1:] * empty[:, :-1]
    background = (change * still_empty).sum((1, 2)) / still_empty.sum((1, 2)).clamp_min(1)
    return colour.diff(dim=1).abs().mean((1, 2)) + background, change.mean((1, 2))
