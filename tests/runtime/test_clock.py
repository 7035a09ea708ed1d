from __future__ import annotations

from itertools import count

import pytest

from astrolabe.runtime.clock import Clock


def ticking() -> Clock:
    """A clock on which every look takes a second."""
    seconds = count()
    return Clock(now=lambda: float(next(seconds)))


def test_a_phase_inside_another_stops_the_outer_one_meanwhile():
    clock = ticking()
    with clock.phase("rollout"):
        for _ in range(3):
            with clock.phase("rewards"):
                pass
    assert clock.seconds == {"rollout": 4.0, "rewards": 3.0}


def test_what_lies_between_phases_belongs_to_none():
    clock = ticking()
    with clock.phase("rollout"):
        pass
    for _ in range(5):
        clock._now()
    with clock.phase("update"):
        pass
    assert clock.seconds == {"rollout": 1.0, "update": 1.0}


def test_a_phase_that_fails_is_over():
    clock = ticking()
    with pytest.raises(RuntimeError), clock.phase("rollout"), clock.phase("rewards"):
        raise RuntimeError
    with clock.phase("update"):
        pass
    assert clock.seconds["update"] == 1.0


def test_a_listener_hears_what_begins_what_goes_on_and_how_far_it_came():
    heard: list[tuple[str, int, int]] = []
    clock = Clock(lambda *said: heard.append(said))
    with clock.phase("rollout", 12):
        with clock.phase("rewards"):
            pass
        clock.reach(6)
    with clock.phase("update"):
        clock.reach(1, 4)
    rollout, update = [("rollout", 0, 12), ("rollout", 6, 12)], [("update", 0, 0), ("update", 1, 4)]
    assert heard == [rollout[0], ("rewards", 0, 0), *rollout, *update]
