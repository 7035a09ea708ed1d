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
from astrolabe.shapes.world import (
    BACKGROUND,
    BOUNCE_HEIGHT,
    COLOURS,
    MOTIONS,
    PERIOD,
    PULSE_DEPTH,
    RADII,
    SHAPES,
    SPEED,
    WOBBLE_PERIODS,
    Scene,
)

UNREADABLE = -1
_FRAMES_AT_ONCE = 192
_WINDOW = 33  # frames, two periods; an object must do the same thing in every window
_STRIDE = 16
_MIN_PRESENCE = 0.93  # of the frames
_MAX_JUNK = 0.25
_MAX_COLOUR_DISTANCE = 0.2  # of unit contrasts: orange and yellow, the nearest two, are 0.3 apart
_FAINT = 0.1  # a contrast below which there is no colour to speak of
_MIN_OVERLAP = 0.75  # soft IoU
_MIN_AGREEMENT = 0.65  # of the sampled frames must show the same colour, and the same shape
_MAX_MOTION_ERROR = 1.0  # pixels
_PHASES = 32
_SHAKEN = 20  # frames from which on a shake can be told from a motion
_STEADY = 1.2  # pixels of jitter at which smoothness is 1 / e
_CLEAN = 0.15  # colour distance outside the object at which cleanliness is 1 / e
_VIGOUR = (0.78, 1.5)  # the least and the greatest, of what is usual, that count as the motion


WELL_MADE = {"vividness": 0.52, "cleanliness": 0.52, "smoothness": 0.6}  # the least of each


@dataclass(frozen=True)
class Readings:
    """What B videos show. ``colour``, ``shape`` and ``motion`` are indices into the world's tables, or -1."""

    colour: Tensor  # [B], int64
    shape: Tensor  # [B], int64
    motion: Tensor  # [B], int64
    colour_distance: Tensor  # [B, S, 8]: of the contrast's direction from each colour's, in each sampled frame
    overlap: Tensor  # [B, S, 4]: soft IoU with each shape, in each sampled frame
    motion_error: Tensor  # [B, W, 7]: pixels between the path and each motion at its best, in each window
    presence: Tensor  # [B]: share of the frames with an object
    vividness: Tensor  # [B], 0 or more: contrast with the background; 1 for the nearest colour's own
    cleanliness: Tensor  # [B] in [0, 1]: 1 when nothing but the dark background is visible outside the object
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

    0 or 1: ``colour``, ``shape`` and ``motion``; ``right``, all three, which is what was asked for; ``made``, whether
    it is made well (:data:`WELL_MADE`), which nobody asked for; and ``joint``, right and made. ``colour_fit``,
    ``shape_fit`` and ``motion_fit`` are in [0, 1] and rise smoothly as a video comes near to, and passes, what the yes
    or no asks for: the intended value fits well enough, and better than every other. ``vividness``, ``cleanliness``,
    ``smoothness``, ``flicker`` and ``motion_energy`` are as in :class:`Readings`. Errors as in :func:`measure`.
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
    scores["right"] = scores["colour"] & scores["shape"] & scores["motion"]
    scores["made"] = torch.stack([getattr(readings, look) >= least for look, least in WELL_MADE.items()]).all(0)
    scores["joint"] = scores["right"] & scores["made"]
    scores["colour_fit"] = _fit(-readings.colour_distance, colour, -_MAX_COLOUR_DISTANCE, 0.1) * readings.presence
    scores["shape_fit"] = _fit(readings.overlap, shape, _MIN_OVERLAP, 0.02) * readings.presence
    scores["motion_fit"] = _fit(-readings.motion_error, motion, -_MAX_MOTION_ERROR, 0.2) * readings.presence
    for name in ("vividness", "cleanliness", "smoothness", "flicker", "motion_energy"):
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
    palette = seen.contrast.new_tensor(list(COLOURS.values())) - seen.contrast.new_tensor(BACKGROUND)
    full = palette.norm(dim=-1)
    # Its direction is the colour, however dim or hazy the video; its length is how vivid.
    direction = seen.contrast / seen.contrast.norm(dim=-1, keepdim=True).clamp_min(_FAINT)
    colour_distance = (direction[:, :, None] - palette / full[:, None]).norm(dim=-1)
    nearest = colour_distance.mean(1).argmin(-1)
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
        vividness=seen.contrast.norm(dim=-1).mean(1) / full[nearest],
        cleanliness=torch.exp(-seen.haze.mean(1) / _CLEAN),
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

    Every motion is fitted with any place and phase, and with a vigour within its limits; the world's shake is left out,
    which is a matter of how the video is made. ``path`` is ``[B, T, 2]``, ``radius`` ``[B, T]``.
    """
    frames = radius.shape[1]
    length = min(frames, _WINDOW)
    begins = torch.linspace(0, frames - length, 1 + math.ceil((frames - length) / _STRIDE)).round().long()
    windows = (begins[:, None] + torch.arange(length)).to(path.device)
    # the size in pixels of an object of the usual size, so that a pulse counts alike for all
    usual_size = sum(RADII) / 2
    size = radius / radius.mean(1, keepdim=True).clamp_min(1e-6) * usual_size
    left_out = _left_out(length).to(path)
    observed = torch.cat((path, size[..., None]), dim=-1)[:, windows]  # [B, W, length, 3]
    observed = observed - left_out @ (left_out.T @ observed)
    total = observed.square().mean(2).sum(-1)
    time = torch.arange(length, dtype=path.dtype, device=path.device)
    phases = torch.arange(_PHASES, dtype=path.dtype, device=path.device)[:, None] / _PHASES
    hops = -(math.pi * (time / PERIOD + phases)).sin().abs()
    waves = (2 * math.pi * (time / PERIOD + phases)).sin()
    line, hops, waves = (one - (one @ left_out) @ left_out.T for one in (time[None], hops, waves))
    x, y, size = observed.unbind(-1)
    gains = {
        "left": _gain(x, -SPEED * line),
        "right": _gain(x, SPEED * line),
        "up": _gain(y, -SPEED * line),
        "down": _gain(y, SPEED * line),
        "bounce": _gain(y, BOUNCE_HEIGHT * hops),
        "pulse": _gain(size, PULSE_DEPTH * usual_size * waves),
        "still": torch.zeros_like(total),
    }
    return torch.stack([(total - gains[motion]).clamp_min(0).sqrt() for motion in MOTIONS], dim=-1)


def _left_out(length: int) -> Tensor:
    """What a motion may add to any path: a place, and, if there are frames enough, a shake of the world's periods.
    Orthonormal columns ``[length, k]``."""
    time = torch.arange(length, dtype=torch.float64)
    columns = [torch.ones_like(time)]
    for period in WOBBLE_PERIODS if length >= _SHAKEN else ():
        angle = 2 * math.pi / period * time
        columns += [angle.cos(), angle.sin()]
    return torch.linalg.qr(torch.stack(columns, 1)).Q


def _gain(observed: Tensor, candidates: Tensor) -> Tensor:
    """By how much the best candidate, with a vigour that counts, lowers the mean square of ``observed``.

    ``observed`` is ``[B, W, length]`` and ``candidates`` ``[P, length]``, both without what is left out; returns
    ``[B, W]``.
    """
    product = observed @ candidates.T / observed.shape[-1]
    power = candidates.square().mean(-1)
    scale = (product / power.clamp_min(1e-9)).clamp(*_VIGOUR)
    return (2 * scale * product - scale.square() * power).amax(-1)


def _smoothness(path: Tensor) -> Tensor:
    """``exp(-jitter / 1.2)`` with the jitter of the centre in pixels, from how second differences change.

    Over one frame and over two, whichever shows more: over two frames a shake of a few frames' period stands out from
    the unsteadiness that any codec leaves. The median leaves out the sudden turns of a bounce; the divisor makes it the
    deviation of independent errors.
    """
    jitter = []
    for lag in (1, 2):
        change = path
        for _ in range(3):
            change = change[:, lag:] - change[:, :-lag]
        jitter.append(change.square().sum(-1).sqrt().median(dim=1).values / math.sqrt(20 * 2 * math.log(2)))
    return torch.exp(-torch.maximum(*jitter) / _STEADY)
