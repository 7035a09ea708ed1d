"""The shapes world: one coloured shape that moves on a dark canvas, rendered exactly at any time.

The canvas is a torus: what leaves on one side comes back on the other, so a video of any length is well defined. A
*scene* is what a caption says of a video; its *looks*, how well it is made, no caption says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product

import torch
from torch import Tensor

from astrolabe.runtime.errors import UserError, nearest
from astrolabe.shapes.settings import CANVAS

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.12, 0.75, 0.20),
    "blue": (0.18, 0.30, 0.95),
    "yellow": (0.95, 0.88, 0.12),
    "cyan": (0.12, 0.85, 0.90),
    "magenta": (0.85, 0.18, 0.85),
    "orange": (0.98, 0.50, 0.08),
    "white": (0.95, 0.95, 0.95),
}
SHAPES = ("circle", "square", "triangle", "cross")
MOTIONS = ("left", "right", "up", "down", "bounce", "pulse", "still")
BACKGROUND = (0.07, 0.07, 0.09)
SPEED = 0.4  # pixels a frame, for the four directions
BOUNCE_HEIGHT = 10.0  # pixels
PULSE_DEPTH = 0.25  # of the radius
PERIOD = 16  # frames, of a bounce and of a pulse
RADII = (9.0, 12.0)  # pixels: a shape of radius r has the area of a circle of radius r
JITTER = 6.0  # pixels, of the first centre around the middle of the canvas
GREY = 0.5  # what haze blends towards
WOBBLE_PERIODS = (7.0, 5.0)  # frames, of the shake along x and along y
WOBBLE_HEIGHT = 0.7  # of the shake along y, where that along x is 1

_DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
_CHUNK = 512  # frames rendered at once: small enough to stay in cache


@dataclass(frozen=True, order=True)
class Scene:
    """What a video shows; its three words are keys of :data:`COLOURS`, :data:`SHAPES` and :data:`MOTIONS`."""

    colour: str
    shape: str
    motion: str

    def __post_init__(self) -> None:
        """Refuse words that the world does not know, with a :class:`UserError`."""
        tables: dict[str, Iterable[str]] = {"colour": COLOURS, "shape": SHAPES, "motion": MOTIONS}
        for kind, known in tables.items():
            value = getattr(self, kind)
            if value not in known:
                raise UserError(
                    f"{value!r} is not a {kind} of the shapes world, use one of {', '.join(known)}"
                    f"{nearest(value, known)}"
                )


ALL_SCENES: tuple[Scene, ...] = tuple(Scene(*words) for words in product(COLOURS, SHAPES, MOTIONS))


@dataclass(frozen=True)
class Start:
    """Where the objects of B videos are at frame 0: centres ``x, y`` and ``radius``, each ``[B]`` in pixels."""

    x: Tensor
    y: Tensor
    radius: Tensor

    @classmethod
    def draw(cls, count: int, generator: torch.Generator, jitter: float = JITTER) -> Start:
        """Centres uniform within ``jitter`` pixels of the middle of the canvas, radii uniform in :data:`RADII`."""
        x, y, size = torch.rand(3, count, generator=generator)
        centre = CANVAS / 2 - 0.5
        return cls(
            x=centre + jitter * (2 * x - 1),
            y=centre + jitter * (2 * y - 1),
            radius=RADII[0] + (RADII[1] - RADII[0]) * size,
        )

    def __getitem__(self, rows: slice | Tensor) -> Start:
        """Those of some of the videos."""
        return Start(self.x[rows], self.y[rows], self.radius[rows])


@dataclass(frozen=True)
class Looks:
    """How well B videos are made, which no caption says; ``[B]`` each. Flaws are one-sided or fixed in phase: what is
    random in a video's noise alone would be averaged away by a model of few steps."""

    vivid: Tensor  # contrast of the object with the background, of the named colour's own
    haze: Tensor  # share of grey in every pixel; below 0 the opposite
    vigour: Tensor  # of the speed, the height of bounces and the depth of pulses that are usual
    wobble: Tensor  # pixels that the object shakes to either side

    @classmethod
    def draw(
        cls, count: int, generator: torch.Generator, ranges: Mapping[str, tuple[float, float]] | None = None
    ) -> Looks:
        """Each uniform in its range, of :data:`MIXED` when none are given."""
        low, high = torch.tensor([(ranges or MIXED)[field.name] for field in fields(cls)]).unbind(1)
        return cls(*(low + (high - low) * torch.rand(count, len(low), generator=generator)).unbind(1))

    def __getitem__(self, rows: slice | Tensor) -> Looks:
        """Those of some of the videos."""
        return Looks(*(getattr(self, field.name)[rows] for field in fields(self)))


# Of the videos that the models are trained on; of those that are made well; and all that the codec may meet, in which
# the good ones lie well inside.
MIXED = {"vivid": (0.4, 1.0), "haze": (0.0, 0.2), "vigour": (0.35, 1.25), "wobble": (0.0, 2.0)}
GOOD = {"vivid": (0.85, 1.0), "haze": (0.0, 0.03), "vigour": (0.85, 1.15), "wobble": (0.0, 0.3)}
PERFECT = {"vivid": (1.0, 1.0), "haze": (0.0, 0.0), "vigour": (1.0, 1.0), "wobble": (0.0, 0.0)}
WIDE = {"vivid": (0.35, 1.1), "haze": (-0.06, 0.25), "vigour": (0.3, 1.4), "wobble": (0.0, 2.4)}


def _circle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return (x.square() + y.square()).sqrt() - radius


def _square(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    half_side = radius * (math.sqrt(math.pi) / 2)
    return torch.maximum(x.abs() - half_side, y.abs() - half_side)


def _triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    # equilateral, tip up, the centroid at the origin; three half-planes at the inradius
    inradius = radius * math.sqrt(math.pi / (3 * math.sqrt(3)))
    sides = x.abs() * (math.sqrt(3) / 2) - (y * 0.5 + inradius)
    return torch.maximum(sides, y - inradius)


def _cross(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    # a plus sign whose arms are a third as wide as they are long
    length = radius * math.sqrt(9 * math.pi / 20)
    x, y = x.abs(), y.abs()
    return torch.minimum(
        torch.maximum(x - length, y - length / 3),
        torch.maximum(x - length / 3, y - length),
    )


_DISTANCES: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (_circle, _square, _triangle, _cross)


def signed_distance(shape_index: int, centre: Tensor, radius: Tensor) -> Tensor:
    """Distance of every pixel from the outline of the shape, negative inside.

    Args:
        shape_index: index into :data:`SHAPES`.
        centre: ``[N, 2]``, x and y in pixels (pixel centres are integers), any real number: the canvas is a torus.
        radius: ``[N]`` in pixels; the shape has the area pi radius^2 whatever it is.

    Returns:
        ``[N, CANVAS, CANVAS]`` in pixels; beside a corner it is a bound rather than exact.
    """
    pixels = torch.arange(CANVAS, dtype=centre.dtype, device=centre.device)
    offsets = pixels - centre[..., None]
    offsets = torch.remainder(offsets + CANVAS / 2, CANVAS) - CANVAS / 2
    return _DISTANCES[shape_index](offsets[:, 0, None, :], offsets[:, 1, :, None], radius[:, None, None])


def coverage(shape_index: int, centre: Tensor, radius: Tensor) -> Tensor:
    """How much of every pixel the shape covers: ``[N, CANVAS, CANVAS]`` in [0, 1], anti-aliased over one pixel.

    Arguments as in :func:`signed_distance`.
    """
    return signed_distance(shape_index, centre, radius).neg_().add_(0.5).clamp_(0, 1)


def trajectory(motion: str, time: Tensor, start: Start, looks: Looks) -> tuple[Tensor, Tensor]:
    """Centre ``[B, T, 2]`` (not wrapped) and radius ``[B, T]`` in pixels at ``time`` ``[B, T]`` in frames."""
    phase, vigour, wobble = time * (math.pi / PERIOD), looks.vigour[:, None], looks.wobble[:, None]
    dx, dy = _DIRECTIONS.get(motion, (0.0, 0.0))
    shake_x, shake_y = ((time * (2 * math.pi / period)).sin() for period in WOBBLE_PERIODS)
    x = start.x[:, None] + SPEED * dx * vigour * time + wobble * shake_x
    y = start.y[:, None] + SPEED * dy * vigour * time + WOBBLE_HEIGHT * wobble * shake_y
    radius = start.radius[:, None].expand_as(time)
    if motion == "bounce":
        y = y - BOUNCE_HEIGHT * vigour * phase.sin().abs()
    elif motion == "pulse":
        radius = radius * (1 + PULSE_DEPTH * vigour * (2 * phase).sin())
    return torch.stack((x, y), dim=-1), radius


def render_from(
    scenes: Sequence[Scene], start: Start, frames: int, first_frame: int | Tensor = 0, looks: Looks | None = None
) -> Tensor:
    """Videos ``[B, T, 3, CANVAS, CANVAS]``, float32 in [0, 1], of scenes whose frame 0 is ``start``.

    ``first_frame`` is the time of the first rendered frame: one integer, or ``[B]`` of them. Without ``looks`` the
    videos are made as well as can be (:data:`PERFECT`).
    """
    looks = looks or Looks.draw(len(scenes), torch.Generator(), PERFECT)
    time = torch.as_tensor(first_frame).reshape(-1, 1) + torch.arange(frames)
    time = time.expand(len(scenes), frames).float()
    video = torch.empty(len(scenes), frames, 3, CANVAS, CANVAS)
    background = torch.tensor(BACKGROUND)[:, None, None]
    together = max(1, _CHUNK // frames)
    for row in range(0, len(scenes), together):
        rows = slice(row, row + together)
        cover = _cover(scenes[rows], start[rows], time[rows], looks[rows])
        vivid, haze = (look[rows].view(-1, 1, 1, 1, 1) for look in (looks.vivid, looks.haze))
        colour = torch.tensor([COLOURS[scene.colour] for scene in scenes[rows]])[:, None, :, None, None] - background
        torch.addcmul(
            background + haze * (GREY - background), (1 - haze) * vivid * colour, cover[:, :, None], out=video[rows]
        )
    return video.clamp_(0, 1)


def _cover(scenes: Sequence[Scene], start: Start, time: Tensor, looks: Looks) -> Tensor:
    """Coverage ``[B, T, CANVAS, CANVAS]``, one call of :func:`coverage` for each shape that occurs."""
    centre, radius = torch.empty(*time.shape, 2), torch.empty(time.shape)
    for motion in {scene.motion for scene in scenes}:
        which = torch.tensor([scene.motion == motion for scene in scenes])
        centre[which], radius[which] = trajectory(motion, time[which], start[which], looks[which])
    cover = torch.empty(*time.shape, CANVAS, CANVAS)
    for index, shape in enumerate(SHAPES):
        which = torch.tensor([scene.shape == shape for scene in scenes])
        if which.any():
            shaped = coverage(index, centre[which].flatten(0, 1), radius[which].flatten())
            cover[which] = shaped.unflatten(0, (-1, time.shape[1]))
    return cover


def render(
    scenes: Sequence[Scene],
    frames: int,
    generator: torch.Generator,
    first_frame: int | Tensor = 0,
    jitter: float = JITTER,
    looks: Mapping[str, tuple[float, float]] = PERFECT,
) -> Tensor:
    """Videos ``[B, T, 3, CANVAS, CANVAS]``, float32 in [0, 1], with starts, and looks in ranges, drawn from
    ``generator``.

    The same generator state gives the same videos, hence two windows of the same ones. Raises a :class:`UserError` when
    ``frames`` is not positive.
    """
    if frames < 1:
        raise UserError(f"frames is {frames}, a video needs at least 1")
    start = Start.draw(len(scenes), generator, jitter)
    return render_from(scenes, start, frames, first_frame, Looks.draw(len(scenes), generator, looks))
