from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from astrolabe.runtime import progress as module
from astrolabe.runtime.display import training_display
from astrolabe.runtime.interrupts import graceful_interrupt
from astrolabe.runtime.progress import Lines, Task, duration, is_terminal, progress, silence
from tests.runtime.watching import Clock, Terminal


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "SILENCE", 0.05)
    monkeypatch.setattr(Lines, "period", 0.01)
    yield


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "_silent", False)
    yield


def work_until(found: str, stream: io.StringIO) -> None:
    end = time.monotonic() + 10
    while found not in stream.getvalue() and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Task("a", 48, "candidates", 12), "12 of 48 candidates"),
        (Task("a", 28.6e9, "bytes", 1.24e9), "1.2 of 28.6 GB"),
        (Task("a", 3e6, "bytes", 5e5), "0.5 of 3.0 MB"),
        (Task("a", None, "prompts", 3), "3 prompts"),
        (Task("a", 4, "", 3), "3 of 4"),
        (Task("a", None, "prompts"), ""),
        (Task("a", 0, "prompts"), ""),
    ],
)
def test_an_amount_is_said_in_its_unit(task: Task, said: str):
    assert task.amount == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0s"), (59.7, "1m 00s"), (245, "4m 05s"), (7625, "2h 07m"), (3 * 86400 + 4 * 3600, "3d 04h")],
)
def test_a_duration_has_its_two_largest_units(seconds: float, said: str):
    assert duration(seconds) == said


def test_time_left_goes_by_the_speed_so_far(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    task = Task("a", 10)
    assert task.left() is None
    clock.sleep(6)
    task.advance(2)
    assert task.left() == pytest.approx(24)


def test_quick_work_says_nothing_where_nobody_watches(capfd: pytest.CaptureFixture[str]):
    with progress("hashing", 10) as task:
        task.advance(10)
    assert capfd.readouterr() == ("", "")


def test_slow_work_says_a_line_now_and_then_beside_the_output_and_never_in_it(
    impatient: None, monkeypatch: pytest.MonkeyPatch
):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with progress("loading a.pt", 4e9, "bytes") as task:
        task.advance(1e9)
        work_until("\n", err)
    assert err.getvalue().splitlines()[0] == "loading a.pt: 1.0 of 4.0 GB, 0s"
    assert "\r" not in err.getvalue() and out.getvalue() == ""


def test_a_log_that_speaks_is_not_spoken_into(impatient: None, monkeypatch: pytest.MonkeyPatch):
    clock, out = Clock(monkeypatch), io.StringIO()
    lines = Lines(out)
    lines.tasks.append(Task("hashing"))
    lines.say("a step")
    clock.sleep(0.04)
    lines.draw()
    assert out.getvalue() == "a step\n"
    clock.sleep(0.02)
    lines.draw()
    assert out.getvalue() == "a step\nhashing: 0s\n"


def test_letters_that_an_output_lacks_are_escaped():
    raw = io.BytesIO()
    lines = Lines(io.TextIOWrapper(raw, encoding="ascii"))
    lines.say("loading mödel")
    assert raw.getvalue() == b"loading m\\xf6del\n"


def test_work_inside_other_work_shares_its_screen():
    with progress("outer"), progress("inner"):
        (screen,) = module._screens
        assert [task.name for task in screen.tasks] == ["outer", "inner"]
    assert module._screens == []


def test_a_silenced_process_shows_nothing_and_works_on(
    impatient: None, alone: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    silence()
    monkeypatch.setattr(sys, "stdout", Terminal())
    with graceful_interrupt() as interrupt, training_display(3) as display, progress("hashing") as task:
        display.phase("rollout", 1, 2)
        display.update(0, {"loss": 1.0})
        display.note("a note")
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        task.advance()
    assert interrupt.requested and task.done == 1
    assert isinstance(sys.stdout, Terminal) and sys.stdout.getvalue() == ""
    assert capfd.readouterr().err == ""


def test_an_interrupt_says_what_it_interrupted():
    with pytest.raises(KeyboardInterrupt) as stop, progress("loading a.pt", 4e9, "bytes") as task:
        task.advance(1e9)
        raise KeyboardInterrupt
    assert stop.value.__notes__ == ["while loading a.pt, 1.0 of 4.0 GB"]
    assert module._screens == []


@pytest.mark.parametrize(
    ("stream", "environment", "watched"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (Terminal(), {"TERM": "xterm", "CI": "true"}, False),
        (Terminal(), {"TERM": "xterm", "CI": "false"}, True),
        (io.StringIO(), {"TERM": "xterm"}, False),
        (io.StringIO(), {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
    ],
)
def test_bars_are_for_terminals_that_somebody_watches(
    stream: io.StringIO, environment: dict[str, str], watched: bool, monkeypatch: pytest.MonkeyPatch
):
    for name in ("TERM", "CI", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_terminal(stream) == watched


def test_what_a_signal_is_answered_with_stays_on_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch):
    out = io.StringIO()
    with graceful_interrupt("chunk"), training_display(3, stream=out):
        os.kill(os.getpid(), signal.SIGINT)
        work_until("\n", out)
    assert out.getvalue() == "stopping after this chunk; once more stops at once\n"


def test_work_that_draws_its_own_bar_is_left_to_draw_it(impatient: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress("downloading", own_bar=True):
        assert module._screens == []
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    with progress("downloading", own_bar=True):
        work_until("\n", out)
    assert out.getvalue().startswith("downloading: 0s\n")
