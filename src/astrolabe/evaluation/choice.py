"""Which videos of a comparison are shown: by a rule, so that nobody picks the pretty ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from astrolabe.evaluation.decomposition import CONDITIONS, passes
from astrolabe.shapes.world import Scene

PAIRS = 8
RULE = (
    "the first video of every way of breaking, the first of every colour that was mended, and where that is too few, "
    "the first that stayed as they were"
)


@dataclass(frozen=True)
class Choice:
    """A video by its place in a suite; ``kind``: mended (joint only after), broken (joint only before) or same; which
    of CONDITIONS it met before and after."""

    row: int
    noise: int
    kind: str
    base: dict[str, bool]
    aligned: dict[str, bool]


def choose(base: Mapping[str, Tensor], aligned: Mapping[str, Tensor], scenes: Sequence[Scene]) -> list[Choice]:
    """PAIRS videos at most, chosen by RULE: what was mended, what broke, the rest; in the order of noises, then of
    ``scenes``. Scores are [scenes, noises] by measure, paired."""
    kinds = outcomes(base, aligned)
    before, after = (passes(scores).unflatten(1, kinds.shape).bool() for scores in (base, aligned))

    def of_kind(number: int) -> list[tuple[int, int]]:
        noises, rows = range(kinds.shape[1]), range(len(scenes))
        return [(row, noise) for noise in noises for row in rows if kinds[row, noise] == number]

    def met(which: Tensor, row: int, noise: int) -> dict[str, bool]:
        return dict(zip(CONDITIONS, which[:, row, noise].tolist(), strict=True))

    def broken() -> Iterator[tuple[int, int]]:
        known: set[str] = set()
        for place in of_kind(-1):
            failing = {name for name, holds in met(after, *place).items() if not holds}
            if failing - known:
                known |= failing
                yield place

    def mended() -> Iterator[tuple[int, int]]:
        colours: set[str] = set()
        for place in of_kind(1):
            if (colour := scenes[place[0]].colour) not in colours:
                colours.add(colour)
                yield place

    broke = list(broken())[: PAIRS - 1]
    shown = broke + list(mended())[: PAIRS - len(broke)]
    others = [place for number in (0, 1, -1) for place in of_kind(number) if place not in shown]
    shown += others[: PAIRS - len(shown)]
    return [
        Choice(*place, kind, met(before, *place), met(after, *place))
        for number, kind in ((1, "mended"), (-1, "broken"), (0, "same"))
        for place in shown
        if kinds[place] == number
    ]


def outcomes(base: Mapping[str, Tensor], aligned: Mapping[str, Tensor]) -> Tensor:
    """1 where joint holds after and not before, -1 where it holds before and not after, else 0: as the scores."""
    return (aligned["joint"] - base["joint"]).round().int()
