"""How sure a difference is: training seeds and scenes are both drawn at random, and both make it uncertain.

Differences are an array [bases, seeds, scenes]: one cell's score minus another's, of the same base, training seed and
scene, mean over the same noises. Bases are not drawn: what is estimated is the mean over those there are. The model is
that of crossed random factors (Searle, Casella & McCulloch, Variance Components, 1992, chapter 4):

    d[b, s, c] = mean of b + seed[b, s] + scene[c] + rest[b, s, c]

An interval is Student's, with Satterthwaite's degrees of freedom. A bootstrap of five seeds would be too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, inf, lgamma, pi, sqrt

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
LEVEL = 0.95
DETECTED = 0.05  # the smallest difference that seeds and noises are chosen to find


@dataclass(frozen=True)
class Components:
    """Variances: between training seeds, between scenes, and of what is left of one seed on one scene."""

    seed: float
    scene: float
    rest: float

    def error(self, bases: int, seeds: int, scenes: int) -> tuple[float, float]:
        """Standard error of the mean of so many differences, and its degrees of freedom (0: it cannot be known)."""
        free = bases * (seeds - 1)
        seed, scene = scenes * self.seed + self.rest, bases * seeds * self.scene + self.rest  # expected mean squares
        total = seed + scene - self.rest
        parts = ((seed, free), (scene, scenes - 1), (self.rest, free * (scenes - 1)))
        doubt = sum(square**2 / own for square, own in parts if own)
        return sqrt(total / (bases * seeds * scenes)), total**2 / doubt if free and doubt else free


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error with its degrees of freedom, and what they were made of."""

    mean: float
    error: float
    freedom: float
    components: Components
    shape: tuple[int, int, int]

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Two-sided; without bounds where there is but one seed."""
        half = half_width(self.error, self.freedom, level)
        return self.mean - half, self.mean + half


def estimate(differences: Values) -> Estimate:
    """The mean of differences [bases, seeds, scenes], and how sure it is."""
    bases, seeds, scenes = differences.shape
    free = bases * (seeds - 1)
    of_base, of_seed = differences.mean((1, 2), keepdims=True), differences.mean(2, keepdims=True)
    rest = differences - of_seed - differences.mean(1, keepdims=True) + of_base
    left = float((rest**2).sum()) / max(free * (scenes - 1), 1)
    seed = scenes * float(((of_seed - of_base) ** 2).sum()) / max(free, 1)
    scene = bases * seeds * float(np.var(differences.mean((0, 1)))) * scenes / max(scenes - 1, 1)
    found = Components(max(seed - left, 0.0) / scenes, max(scene - left, 0.0) / (bases * seeds), left)
    return Estimate(float(differences.mean()), *found.error(bases, seeds, scenes), found, (bases, seeds, scenes))


def half_width(error: float, freedom: float, level: float = LEVEL) -> float:
    """Of a two-sided interval."""
    return error * quantile((1 + level) / 2, freedom) if freedom else inf


def power(error: float, freedom: float, difference: float = DETECTED) -> float:
    """The chance that the interval lies above 0 when this is the true difference: the non-central t distribution, as
    Abramowitz & Stegun approximate it (26.7.10)."""
    far = quantile((1 + LEVEL) / 2, freedom)
    z = (difference / error - far * (1 - 1 / (4 * freedom))) / sqrt(1 + far**2 / (2 * freedom))
    return (1 + erf(z / sqrt(2))) / 2


def seeds_wanted(parts: Components, bases: int, scenes: int, width: float, most: int = 50) -> int | None:
    """The fewest seeds whose interval is no wider to each side; None where ``most`` are too few."""
    counts = range(2, most + 1)
    return next((n for n in counts if half_width(*parts.error(bases, n, scenes)) <= width), None)


def quantile(share: float, freedom: float) -> float:
    """Of Student's distribution, ``share`` at least a half.

    With x = sqrt(n) tan(a), its density of n degrees of freedom is proportional to cos(a)^(n - 1).
    """
    angles = np.linspace(0, pi / 2, 20001)[:-1]
    density = np.cos(angles) ** (freedom - 1) * np.exp(lgamma((freedom + 1) / 2) - lgamma(freedom / 2)) / sqrt(pi)
    areas = np.concatenate(([0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(angles))))
    return sqrt(freedom) * float(np.tan(np.interp(share - 0.5, areas, angles)))
