from __future__ import annotations

import io
import time

import pytest

from astrolabe.runtime import progress as module
from astrolabe.runtime.display import Course, training_display
from astrolabe.runtime.progress import Lines, Task
from tests.runtime.watching import Clock


def step(course: Course, clock: Clock, **seconds: float) -> None:
    for name, lasting in seconds.items():
        course.enter(name)
        clock.sleep(lasting)
    course.finish(course.done, {"loss": 1.0})


def test_a_step_is_a_line_with_two_numbers_where_nobody_watches():
    out = io.StringIO()
    with training_display(20, start=9, shown=("reward", "absent", "loss", "more"), stream=out) as display:
        display.update(9, {"more": 3.0, "reward": 0.123456, "loss": 2.0})
        display.note("saved [step 10]")
    first, second = out.getvalue().splitlines()
    assert first == "step 10/20  reward 0.1235  loss 2  left 0s"
    assert second == "saved [step 10]"


def test_a_long_step_is_not_silent_where_nobody_watches(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SILENCE", 0.05)
    monkeypatch.setattr(Lines, "period", 0.01)
    out = io.StringIO()
    with training_display(200, start=2, stream=out) as display:
        display.phase("rollout", 12, 48)
        end = time.monotonic() + 10
        while not out.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
    assert out.getvalue().splitlines()[0] == "step 3/200: rollout, 12 of 48 candidates, 0s"


def test_nobody_knows_the_time_left_before_a_step_is_done(monkeypatch: pytest.MonkeyPatch):
    clock, course = Clock(monkeypatch), Course(10)
    course.enter("rollout", 1, 2)
    clock.sleep(30)
    assert course.left() is None and course.left_of_step() is None
    assert course.time() == "30s so far"


def test_time_left_of_a_step_is_what_its_phases_took_before(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    course = Course(10)
    step(course, clock, history=2, rollout=10, update=5)
    step(course, clock, history=4, rollout=10, update=7)
    course.enter("history")
    assert course.left_of_step() == pytest.approx(3 + 10 + 6)
    clock.sleep(1)
    course.enter("rollout", 0, 4)  # history is over, though it took less than usual
    clock.sleep(2)
    assert course.left_of_step() == pytest.approx(10 - 2 + 6)
    course.enter("rollout", 3, 4)  # three of four are done, sooner than before
    assert course.left_of_step() == pytest.approx(10 / 4 + 6)
    course.enter("update")
    clock.sleep(100)
    assert course.left_of_step() == 0


def test_a_phase_that_is_left_and_entered_again_counts_whole(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    course = Course(10)
    for _ in range(2):
        step_phases = [("rollout", 4.0), ("rewards", 1.0), ("rollout", 4.0), ("rewards", 1.0), ("update", 5.0)]
        for name, seconds in step_phases:
            course.enter(name)
            clock.sleep(seconds)
        course.finish(course.done, {})
    course.enter("rollout")
    clock.sleep(4)
    course.enter("rewards")
    assert course.left_of_step() == pytest.approx(4 + 2 + 5)


def test_time_left_of_a_run_goes_by_its_last_steps(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    course = Course(10, start=4)
    step(course, clock, rollout=10)
    step(course, clock, rollout=20)
    assert course.left() == pytest.approx(15 * 4)
    clock.sleep(6)
    assert course.left() == pytest.approx(15 * 4 - 6)
    assert course.time() == "left 54s"
    for _ in range(4):
        step(course, clock, rollout=1)
    assert course.time() == "in 40s"


def test_an_interrupt_says_in_which_step_it_came():
    with pytest.raises(KeyboardInterrupt) as stop, training_display(200, 12, stream=io.StringIO()):
        raise KeyboardInterrupt
    assert stop.value.__notes__ == ["in step 13 of 200"]


def test_what_works_inside_a_step_is_named_with_it():
    course = Course(200)
    course.enter("update")
    out = io.StringIO()
    from astrolabe.runtime.display import CourseLines

    lines = CourseLines(out, course)
    lines.tasks.append(Task("hashing", 4, "", 1))
    assert lines.state() == "step 1/200: update, 0s; hashing: 1 of 4, 0s"


def test_a_phase_that_counts_nothing_moves_as_it_usually_does(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    course = Course(10)
    course.enter("update")
    assert course.share_of_phase() is None
    clock.sleep(10)
    course.finish(0, {})
    course.enter("update")
    clock.sleep(4)
    assert course.share_of_phase() == pytest.approx(0.4)
    clock.sleep(40)
    assert course.share_of_phase() == 1
    course.enter("update", 3, 4)
    assert course.share_of_phase() == pytest.approx(0.75)
    course.finish(1, {})
    course.enter("update", 0, 4)  # until something is counted
    clock.sleep(2)
    assert course.share_of_phase() == pytest.approx(2 / 27)


def test_a_phase_within_another_says_how_far_that_is():
    course = Course(10)
    course.enter("rollout", 12, 48)
    course.enter("rewards")
    assert str(course) == "step 1/10: rewards, 12 of 48 candidates, 0s"
    course.enter("rollout", 48, 48)
    course.enter("update")
    assert str(course) == "step 1/10: update, 0s"
