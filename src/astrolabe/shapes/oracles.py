"""Exact oracles of the shapes world: what a video shows, judged from its pixels alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from astrolabe.runtime.errors import UserError
from astrolabe.shapes.settings import CANVAS, SHORTEST
from astrolabe.shapes.tracking import Track, track
from astrolabe.shapes.world import COLOURS, MOTIONS, PERIOD, RADII, SHAPES, Scene

UNREADABLE = -1
_FRAMES_AT_ONCE = 192
_WINDOW = 33  # frames, two periods; an object must do the same thing in every window
_STRIDE = 16
_MIN_PRESENCE = 0.93  # of the frames
_MAX_JUNK = 0.25
_MAX_COLOUR_DISTANCE = 0.3
_MIN_OVERLAP = 0.8  # soft IoU; the codec alone keeps 0.87, and 98 of 100 videos above 0.81
_MIN_AGREEMENT = 0.65  # of the sampled frames must show the same colour, and the same shape
_MAX_MOTION_ERROR = 0.8  # pixels; the codec alone keeps 0.23, and 98 of 100 videos below 0.67
_PHASES = 32
# the least and the greatest speed (pixels a frame), height and swing (pixels) that count as the motion
_SPEED, _HEIGHT, _SWING = (0.25, 0.6), (6.0, 14.0), (1.4, 4.2)


@dataclass(frozen=True)
class Readings:
    """What B videos show. ``colour``, ``shape`` and ``motion`` are indices into the world's tables, or -1."""

    colour: Tensor  # [B], int64
    shape: Tensor  # [B], int64
    motion: Tensor  # [B], int64
    colour_distance: Tensor  # [B, S, 8]: RGB distance to each colour, in each sampled frame
    overlap: Tensor  # [B, S, 4]: soft IoU with each shape, in each sampled frame
    motion_error: Tensor  # [B, W, 7]: pixels between the path and each motion at its best, in each window
    presence: Tensor  # [B]: share of the frames with an object
    cleanliness: Tensor  # [B] in [0, 1]: 1 when nothing is visible outside the object
    smoothness: Tensor  # [B] in [0, 1]: 1 when the object moves without jitter
    flicker: Tensor  # [B], 0 or more: unexplained change from frame to frame
    motion_energy: Tensor  # [B], 0 or more: mean absolute difference of neighbouring frames


@torch.no_grad()
def measure(video: Tensor) -> Readings:
    """Reads videos ``[B, T, 3, 64, 64]`` in [0, 1], T at least 9, possibly cut from the middle of longer ones.

    Raises a :class:`UserError` for another size.
    """
    if video.ndim != 5 or tuple(video.shape[2:]) != (3, CANVAS, CANVAS) or video.shape[1] < SHORTEST:
        raise UserError(
            f"the oracles cannot read a tensor of shape {tuple(video.shape)}; they need videos "
            f"[B, T, 3, {CANVAS}, {CANVAS}] of at least {SHORTEST} frames"
        )
    together = max(1, _FRAMES_AT_ONCE // video.shape[1])
    parts = [_read(track(part.float())) for part in video.split(together)]
    return Readings(
        **{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Readings)}
    )


def judge(video: Tensor, scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Scores ``[B]``, float32, of videos ``[B, T, 3, 64, 64]`` against the scenes that they should show.

    ``colour``, ``shape``, ``motion`` and ``joint`` (all three) are 0 or 1. ``colour_fit``, ``shape_fit`` and
    ``motion_fit`` are in [0, 1] and rise smoothly as a video comes near to, and passes, what the yes or no asks for:
    the intended value fits well enough, and better than every other. ``cleanliness``, ``smoothness``, ``flicker`` and
    ``motion_energy`` are as in :class:`Readings`. Errors as in :func:`measure`.
    """
    if len(scenes) != len(video):
        raise UserError(f"{len(video)} videos came with {len(scenes)} scenes; give one scene a video")
    readings = measure(video)
    colour, shape, motion = (
        torch.tensor([list(table).index(getattr(scene, kind)) for scene in scenes], device=video.device)
        for kind, table in (("colour", COLOURS), ("shape", SHAPES), ("motion", MOTIONS))
    )
    scores = {
        "colour": readings.colour == colour,
        "shape": readings.shape == shape,
        "motion": readings.motion == motion,
    }
    scores["joint"] = scores["colour"] & scores["shape"] & scores["motion"]
    scores["colour_fit"] = _fit(-readings.colour_distance, colour, -_MAX_COLOUR_DISTANCE, 0.1) * readings.presence
    scores["shape_fit"] = _fit(readings.overlap, shape, _MIN_OVERLAP, 0.02) * readings.presence
    scores["motion_fit"] = _fit(-readings.motion_error, motion, -_MAX_MOTION_ERROR, 0.2) * readings.presence
    for name in ("cleanliness", "smoothness", "flicker", "motion_energy"):
        scores[name] = getattr(readings, name)
    return {name: score.float() for name, score in scores.items()}


def _fit(values: Tensor, index: Tensor, worst: float, softness: float) -> Tensor:
    """How well ``values`` ``[B, N, K]``, larger is better, support the entry at ``index`` ``[B]``: ``[B]`` in [0, 1].

    A soft "at least ``worst``, and ahead of the best other"; ``softness``, in the unit of the values, is its width.
    """
    chosen = torch.nn.functional.one_hot(index, values.shape[-1]).bool()[:, None].expand_as(values)
    mine, other = values[chosen].view(values.shape[:2]), values.masked_fill(chosen, -math.inf).amax(-1)
    return (torch.sigmoid((mine - worst) / softness) * torch.sigmoid((mine - other) / softness)).mean(1)


def _read(seen: Track) -> Readings:
    """Turns what was tracked into readings."""
    palette = seen.colours.new_tensor(list(COLOURS.values()))
    colour_distance = (seen.colours[:, :, None] - palette).square().sum(-1).sqrt()
    motion_error = _motion_errors(seen.path, seen.radius)
    presence = seen.present.mean(1)
    readable = (presence >= _MIN_PRESENCE) & (seen.junk.mean(1) <= _MAX_JUNK)
    least, motion = motion_error.min(-1)
    same_motion = (motion == motion[:, :1]).all(1) & (least <= _MAX_MOTION_ERROR).all(1)
    return Readings(
        colour=_vote(-colour_distance, readable, worst=-_MAX_COLOUR_DISTANCE),
        shape=_vote(seen.overlap, readable, worst=_MIN_OVERLAP),
        motion=motion[:, 0].where(readable & same_motion, UNREADABLE),
        colour_distance=colour_distance,
        overlap=seen.overlap,
        motion_error=motion_error,
        presence=presence,
        cleanliness=torch.exp(-seen.haze.mean(1) / 0.05),
        smoothness=_smoothness(seen.path),
        flicker=seen.flicker,
        motion_energy=seen.motion_energy,
    )


def _vote(scores: Tensor, readable: Tensor, worst: float) -> Tensor:
    """The value ``[B]`` with the best mean of ``scores`` ``[B, S, K]``; -1 where it is bad or the frames disagree."""
    mean, winner = scores.mean(1).max(-1)
    agreement = (scores.argmax(-1) == winner[:, None]).float().mean(1)
    return winner.where(readable & (mean >= worst) & (agreement >= _MIN_AGREEMENT), UNREADABLE)


def _motion_errors(path: Tensor, radius: Tensor) -> Tensor:
    """Pixels (root mean square) between the path and each of MOTIONS in each window: ``[B, W, 7]``.

    Every motion is fitted with any place, phase, and speed or height within its limits. ``path`` is ``[B, T, 2]``,
    ``radius`` ``[B, T]``.
    """
    frames = radius.shape[1]
    length = min(frames, _WINDOW)
    begins = torch.linspace(0, frames - length, 1 + math.ceil((frames - length) / _STRIDE)).round().long()
    windows = (begins[:, None] + torch.arange(length)).to(path.device)
    # the size in pixels of an object of the usual size, so that a pulse counts alike for all
    size = radius / radius.mean(1, keepdim=True).clamp_min(1e-6) * (sum(RADII) / 2)
    observed = torch.cat((path, size[..., None]), dim=-1)[:, windows]  # [B, W, length, 3]
    observed = observed - observed.mean(2, keepdim=True)
    total = observed.square().mean(2).sum(-1)
    time = torch.arange(length, dtype=path.dtype, device=path.device)
    phases = torch.arange(_PHASES, dtype=path.dtype, device=path.device)[:, None] / _PHASES
    line = time[None]
    hops = -(math.pi * (time / PERIOD + phases)).sin().abs()
    waves = (2 * math.pi * (time / PERIOD + phases)).sin()
    x, y, size = observed.unbind(-1)
    slowest, fastest = _SPEED
    gains = {
        "left": _gain(x, line, -fastest, -slowest),
        "right": _gain(x, line, *_SPEED),
        "up": _gain(y, line, -fastest, -slowest),
        "down": _gain(y, line, *_SPEED),
        "bounce": _gain(y, hops, *_HEIGHT),
        "pulse": _gain(size, waves, *_SWING),
        "still": torch.zeros_like(total),
    }
    return torch.stack([(total - gains[motion]).clamp_min(0).sqrt() for motion in MOTIONS], dim=-1)


def _gain(observed: Tensor, candidates: Tensor, least: float, most: float) -> Tensor:
    """By how much the best candidate, scaled by ``least`` to ``most``, lowers the mean square of ``observed``.

    ``observed`` is ``[B, W, length]`` with mean zero, ``candidates`` ``[P, length]``; returns ``[B, W]``.
    """
    centred = candidates - candidates.mean(-1, keepdim=True)
    product = observed @ centred.T / observed.shape[-1]
    power = centred.square().mean(-1)
    scale = (product / power.clamp_min(1e-9)).clamp(least, most)
    return (2 * scale * product - scale.square() * power).amax(-1)


def _smoothness(path: Tensor) -> Tensor:
    """``exp(-jitter / 0.5)`` with the jitter of the centre in pixels, from how second differences change.

    The median leaves out the sudden turns of a bounce; the divisor makes it the deviation of independent errors.
    """
    change = path.diff(dim=1, n=3).square().sum(-1).sqrt()
    return torch.exp(-(change.median(dim=1).values / math.sqrt(20 * 2 * math.log(2))) / 0.5)
