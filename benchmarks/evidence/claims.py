"""What is claimed, and when a claim is held or refuted: written before the runs (docs/evidence_plan.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import log
from typing import Literal

import numpy as np

from astrolabe.shapes.settings import ShapesName
from benchmarks.evidence.cells import ALL, ONE, TWO, Cell
from benchmarks.evidence.statistics import DETECTED, LEVEL, Estimate, Values, estimate, seeds_wanted
from benchmarks.evidence.store import Record, Store

Verdict = Literal["not run", "refuted", "undecided", "held"]
Difference = Callable[[Record, Record, Record], Values]  # of a run, another, and the base: a number a scene, or one


@dataclass(frozen=True)
class Rule:
    """Held when the interval lies wholly above ``holds``; else refuted when it lies wholly under ``fails``."""

    says: str
    holds: float
    fails: float

    def verdict(self, found: Estimate, level: float = LEVEL) -> Verdict:
        """Of an estimate; the interval that refutes may be of another ``level``."""
        if found.interval()[0] > self.holds:
            return "held"
        return "refuted" if found.interval(level)[1] < self.fails else "undecided"

    def seeds(self, found: Estimate) -> int | None:
        """How many would decide, if mean and variances stay as they are; None if no number would."""
        bases, _, scenes = found.shape
        return seeds_wanted(found.components, bases, scenes, max(found.mean - self.holds, self.fails - found.mean))


BETTER = Rule("better", 0.0, DETECTED)  # refuted where no gain is left that the plan would find
NO_WORSE = Rule("no worse", -DETECTED, 0.0)
LESS = Rule("less", 0.0, 0.0)
BY_20, NOT_BY_10 = Rule("better by 0.2", 0.2, 0.2), Rule("no worse by 0.1", -0.1, -0.1)
BY_A_QUARTER = Rule("less by a quarter", log(1.25), log(1.25))


# --------------------------------------------------------------------- how two runs of a seed differ, scene by scene


def at_end(measure: str) -> Difference:
    """After all steps."""
    return lambda one, other, _: np.array(one["scores"][measure]) - np.array(other["scores"][measure])


def on_long(measure: str, *quarters: int) -> Difference:
    """On long videos: the mean over these quarters, each judged alone."""

    def value(run: Record) -> Values:
        return np.array(run["long"][f"{measure} by quarter"])[list(quarters)].mean(0)

    return lambda one, other, _: value(one) - value(other)


def track(run: Record, base: Record, measure: str) -> Values:
    """A measure of every scene [looks, scenes], from the base on."""
    return np.array([look[measure] for look in (base["along"][0], *run["along"])])


def between(across: Values, values: Values, place: float) -> Values:
    """``values`` [n, scenes] where ``across`` [n] first rises to ``place``, between two of them linearly; else the
    last."""
    reached = np.flatnonzero(across >= place)
    after = int(reached[0]) if len(reached) else len(across) - 1
    if after == 0 or not len(reached):
        return np.asarray(values[after])
    share = (place - across[after - 1]) / (across[after] - across[after - 1])
    return np.asarray(values[after - 1] + share * (values[after] - values[after - 1]))


def at_equal(measure: str, across: Callable[[Record, Record], Values]) -> Difference:
    """Where both have come as far along ``across``: as far as the one that does not come as far."""

    def difference(one: Record, other: Record, base: Record) -> Values:
        ways = [across(run, base) for run in (one, other)]
        place = min(way.max() for way in ways)
        ends = [between(way, track(run, base, measure), place) for way, run in zip(ways, (one, other), strict=True)]
        return ends[0] - ends[1]

    return difference


def proxy(run: Record, base: Record) -> Values:
    """Of every look: steadiness, the reward that is hacked, mean over scenes."""
    return np.asarray(-track(run, base, "flicker").mean(1))


def seconds(run: Record, _: Record) -> Values:
    """Of every look: the time that the process had of its core until then."""
    return np.array([0, *(look["step"] for look in run["along"])]) * step_seconds(run)


def smaller(value: Callable[[Record], float]) -> Difference:
    """The logarithm of how many times as large the other's is."""
    return lambda one, other, _: np.array([log(value(other) / value(one))])


def step_seconds(run: Record) -> float:
    """Of one core."""
    return float(run["cpu_seconds"] / run["steps"])


def size(run: Record) -> float:
    """Root mean square of the clean latents at the end; a hundred where they came to be not finite."""
    return 100.0 if run["diverged"] else float(run["by_step"]["latents_rms"][-1])


# ---------------------------------------------------------------------------------------------------------- the claims


@dataclass(frozen=True)
class Comparison:
    """One cell against another, over their training seeds and scenes on some bases."""

    one: str
    other: str
    what: str
    difference: Difference
    rule: Rule
    bases: tuple[ShapesName, ...]

    @property
    def factor(self) -> bool:
        """Whether differences are logarithms of a factor."""
        return self.rule in (LESS, BY_A_QUARTER)

    def differences(self, store: Store, known: Mapping[str, Cell]) -> Values:
        """Of the training seeds that are there on all bases: [bases, seeds, scenes]."""
        found = [self.by_seed(store, known, base) for base in self.bases]
        seeds = sorted(set.intersection(*(set(one) for one in found)))
        return np.array([[one[seed] for seed in seeds] for one in found])

    def by_seed(self, store: Store, known: Mapping[str, Cell], base: ShapesName) -> dict[int, Values]:
        """Differences of every training seed that is there, scene by scene."""
        one, other, start = (store.runs(known[name], base) for name in (self.one, self.other, "base"))
        return {
            seed: self.difference(one[seed], other[seed], start[seed])
            for seed in one.keys() & other.keys() & start.keys()
        }


@dataclass(frozen=True)
class Claim:
    """A sentence, the comparisons that decide it, and others that are told beside them."""

    letter: str
    sentence: str
    decides: tuple[Comparison, ...]
    also: tuple[Comparison, ...] = ()

    @property
    def level(self) -> float:
        """Of the intervals that refute one of the comparisons (Bonferroni). To hold, all must: that needs none."""
        return 1 - (1 - LEVEL) / len(self.decides)

    def seeds(self, store: Store, known: Mapping[str, Cell]) -> tuple[int, int]:
        """How many training seeds are there of what decides, at least, and how many are planned."""
        there = min(one.differences(store, known).shape[1] for one in self.decides)
        planned = (len(known[name].all_seeds) for one in self.decides for name in (one.one, one.other))
        return there, min(planned)

    def verdict(self, store: Store, known: Mapping[str, Cell]) -> Verdict:
        """Held when every comparison is, refuted when one is; not run while one has no runs."""
        found = [(one.rule, one.differences(store, known)) for one in self.decides]
        said = {rule.verdict(estimate(there), self.level) if there.size else "not run" for rule, there in found}
        order: tuple[Verdict, ...] = ("not run", "refuted", "undecided", "held")
        return next(verdict for verdict in order if verdict in said)


def vs(
    one: str, others: str | Iterable[str], what: str, difference: Difference, rule: Rule = BETTER,
    bases: tuple[ShapesName, ...] = ONE,
) -> tuple[Comparison, ...]:  # fmt: skip
    """One cell against others."""
    names = (others,) if isinstance(others, str) else others
    return tuple(Comparison(one, other, what, difference, rule, bases) for other in names)


JOINT, RIGHT = at_end("joint"), at_end("right")
MEMORY = smaller(lambda run: float(run["peak_bytes"]))  # at the peak of training, beyond what the libraries hold
CLIP, MEMORIES = "a clip detached", ("a clip full", "a sequence detached", "a sequence full")
MOVING, PULLS = "b selective moving", ("b none", "b uniform moving", "b random moving")
PROXY, EQUAL_PROXY = "right at equal steadiness", at_equal("right", proxy)
ALONE, PAIR = "c steadiness", "c steadiness + saturation"
RIVALS = ("f positive", "f reward_weighted", "f grpo")
STREAM, SHORT = "g streaming", ("recipe", "g short, as long")
PARTS = ("p groups of half", "p groups of twice", "p 1 level", "p 4 levels", "p keep 0", "p keep 0.5", "p share 0.25",
         "p share 1")  # fmt: skip

CLAIMS = (
    Claim(
        "demo",
        "The demo's recipe lifts joint by at least 20 points on each of the three bases, and right with it; random "
        "rewards do not lift joint by 10.",
        (*(pair for base in ALL for pair in vs("demo", "base", "joint", JOINT, BY_20, (base,))),
         *vs("demo", "base", "right", RIGHT, BETTER, ALL),
         *vs("base", "random", "joint", JOINT, NOT_BY_10, ALL)),
        tuple(pair for part in ("made", "colour", "shape", "motion")
              for pair in vs("demo", "base", part, at_end(part), BETTER, ALL)),
    ),
    Claim(
        "a",
        "Training on a clip behind a detached context takes the least memory and costs no quality.",
        (*vs(CLIP, MEMORIES, "peak memory", MEMORY, LESS), *vs(CLIP, MEMORIES, "joint", JOINT, NO_WORSE)),
        vs(CLIP, MEMORIES, "seconds a step", smaller(step_seconds), LESS),
    ),
    Claim(
        "b",
        "Where a reward is hacked, a pull on the samples that rewards disagree about, to a reference that moves, keeps "
        "more of what was asked for, at as much of the reward, than no pull, than one on all samples, and than one on "
        "as many drawn at random.",
        vs(MOVING, PULLS, PROXY, EQUAL_PROXY, BETTER, TWO),
        (*vs("base", "b none", "right", RIGHT, BETTER, TWO),
         *vs("b uniform moving", "b none", PROXY, EQUAL_PROXY, BETTER, TWO),
         *vs(MOVING, ("b selective descending", "b selective fixed"), PROXY, EQUAL_PROXY),
         *vs(MOVING, PULLS, "joint at equal steadiness", at_equal("joint", proxy), BETTER, TWO),
         *vs(MOVING, PULLS, "right at equal seconds", at_equal("right", seconds), BETTER, TWO),
         *vs(MOVING, "b uniform moving", "seconds a step", smaller(step_seconds), LESS, TWO)),
    ),
    Claim(
        "c",
        "Alone, a reward that can be hacked ruins what was asked for; beside a second one, unlike it, it does so less.",
        (*vs("base", ALONE, "right", RIGHT, BETTER, TWO), *vs(PAIR, ALONE, "right", RIGHT, BETTER, TWO)),
        (*vs("base", "c saturation", "right", RIGHT), *vs(PAIR, "c saturation", "right", RIGHT),
         *(pair for name in ("c shape_fit", "c motion_fit", "c shape_fit + motion_fit", "c all")
           for pair in vs(name, "base", "right", RIGHT, NO_WORSE)),
         *vs("c all", PAIR, "right", RIGHT), *vs("c all, anchored", "c all", "right", RIGHT),
         *vs(f"{ALONE}, guarded by pixels", ALONE, "right", RIGHT),
         *vs(f"{ALONE}, guarded by a judge", ALONE, "right", RIGHT)),
    ),
    Claim(
        "d",
        "Adaptive weighting makes the clean predictions explode: in long and fast training they end at least a quarter "
        "larger than with the plain loss.",
        vs("d plain, long", "d adaptive, long", "size of x0", smaller(size), BY_A_QUARTER),
        (*vs("recipe", "d adaptive", "joint", JOINT, NO_WORSE),
         *vs("d plain, long", "d adaptive, long", "joint", JOINT)),
    ),
    Claim(
        "e",
        "beta = 1 is better than beta = 0.1, each at the best of three rates.",
        vs("e beta 1", "f nft", "joint", JOINT),
        vs("e beta 0.3", "f nft", "joint", JOINT),
    ),
    Claim(
        "f",
        "On as many videos, NFT is better than positive-only fine-tuning, than reward-weighted regression and than "
        "GRPO, each at the best of three rates.",
        vs("f nft", RIVALS, "joint", JOINT, BETTER, TWO),
        (*vs("f nft", RIVALS, "joint at equal seconds", at_equal("joint", seconds), BETTER, TWO),
         *vs("f nft", RIVALS, "right", RIGHT, BETTER, TWO), *vs("f nft", "f dead", "joint", JOINT)),
    ),
    Claim(
        "g",
        "For videos four times as long, training along streams is better than training on short clips, on as many "
        "videos and in as many seconds.",
        vs(STREAM, SHORT, "joint, mean of quarters", on_long("joint", 0, 1, 2, 3), BETTER, TWO),
        (*vs(STREAM, SHORT, "joint, last quarter", on_long("joint", 3), BETTER, TWO),
         *vs(STREAM, SHORT, "right, mean of quarters", on_long("right", 0, 1, 2, 3), BETTER, TWO),
         *vs("recipe", "base", "joint, last quarter", on_long("joint", 3), BETTER, TWO),
         *vs(STREAM, "base", "joint, last quarter", on_long("joint", 3), BETTER, TWO)),
    ),
    Claim(
        "h",
        "Training at the levels that the sampler visits, each chunk seeing the clean past, is better than at unwarped "
        "levels, at levels drawn from all, and than seeing a noisy past.",
        vs("recipe", ("h unwarped", "h continuous", "h noisy context"), "joint", JOINT),
    ),
    Claim(
        "p",
        "No other size of groups, number of levels, decay of the behavior policy or share of the samples is better "
        "than the recipe's.",
        vs("recipe", PARTS, "joint", JOINT, NO_WORSE),
    ),
)  # fmt: skip
