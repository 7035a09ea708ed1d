"""How sure a difference is: on simulated runs whose variances are known."""

from __future__ import annotations

from math import isinf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.evidence.statistics import (
    Components,
    Values,
    estimate,
    half_width,
    power,
    quantile,
    seeds_wanted,
)

SCENES = 44
DRAWS = 1500


def simulated(rng: np.random.Generator, parts: Components, bases: int, seeds: int, mean: float = 0.0) -> Values:
    """Differences with these variances."""
    seed = parts.seed**0.5 * rng.standard_normal((bases, seeds, 1))
    scene = parts.scene**0.5 * rng.standard_normal((1, 1, SCENES))
    return np.asarray(mean + seed + scene + parts.rest**0.5 * rng.standard_normal((bases, seeds, SCENES)))


@pytest.mark.parametrize(("freedom", "table"), [(1, 12.706), (2, 4.3027), (4, 2.7764), (9, 2.2622), (1000, 1.9623)])
def test_quantiles_are_those_of_students_table(freedom: float, table: float) -> None:
    assert quantile(0.975, freedom) == pytest.approx(table, rel=1e-4)


@pytest.mark.parametrize(
    ("parts", "bases", "seeds"),
    [
        (Components(0.02**2, 0.1**2, 0.25**2), 1, 5),
        (Components(0.02**2, 0.1**2, 0.25**2), 2, 5),
        (Components(0.05**2, 0.0, 0.2**2), 1, 5),
        (Components(0.0, 0.15**2, 0.2**2), 2, 8),
    ],
)
def test_an_interval_holds_the_truth_in_95_of_100_cases_and_power_is_what_is_foreseen(
    parts: Components, bases: int, seeds: int
) -> None:
    rng, true = np.random.default_rng(0), 0.06
    found = [estimate(simulated(rng, parts, bases, seeds, true)).interval() for _ in range(DRAWS)]
    held = np.mean([low <= true <= high for low, high in found])
    assert 0.94 <= held <= 0.985  # 95 % with a margin for 1500 draws; where a part is 0 it errs on the safe side
    seen = np.mean([low > 0 for low, _ in found])
    assert power(*parts.error(bases, seeds, SCENES), true) == pytest.approx(float(seen), abs=0.07)


def test_an_interval_of_seeds_alone_would_be_too_narrow_where_scenes_differ() -> None:
    rng = np.random.default_rng(0)
    parts, hits = Components(0.0, 0.2**2, 0.1**2), 0
    for _ in range(300):
        by_seed = simulated(rng, parts, 1, 5).mean(2)[0]
        hits += abs(by_seed.mean()) <= half_width(by_seed.std(ddof=1) / 5**0.5, 4)
    assert hits < 200  # of 285 that it promises


def test_the_parts_of_a_variance_are_found_again() -> None:
    rng = np.random.default_rng(1)
    parts = Components(0.06**2, 0.15**2, 0.2**2)
    found = [estimate(simulated(rng, parts, 2, 6)).components for _ in range(400)]
    for name in ("seed", "scene", "rest"):
        assert np.mean([getattr(one, name) for one in found]) == pytest.approx(getattr(parts, name), rel=0.08)


def test_one_number_a_run_makes_students_usual_interval() -> None:
    found = estimate(np.array([[[1.0], [2.0], [3.0]]]))
    half = 4.3027 / 3**0.5
    assert found.interval() == pytest.approx((2 - half, 2 + half), rel=1e-4)


def test_one_seed_says_nothing_of_how_sure_it_is() -> None:
    low, high = estimate(np.random.default_rng(0).standard_normal((2, 1, SCENES))).interval()
    assert isinf(low) and isinf(high)


@given(st.floats(0, 0.1), st.floats(0, 0.3), st.floats(0.05, 0.4), st.integers(1, 3), st.floats(0.01, 0.06))
def test_the_seeds_wanted_are_the_fewest_that_are_enough(
    seed: float, scene: float, rest: float, bases: int, width: float
) -> None:
    parts = Components(seed**2, scene**2, rest**2)

    def half(count: int) -> float:
        return half_width(*parts.error(bases, count, SCENES))

    count = seeds_wanted(parts, bases, SCENES, width)
    if count is None:
        assert half(50) > width
    else:
        assert half(count) <= width and (count == 2 or half(count - 1) > width)
