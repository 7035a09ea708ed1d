from __future__ import annotations

import io
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, Group
from rich.text import Text

from astrolabe.runtime.display import Course, training_display
from astrolabe.runtime.progress import Task, progress
from astrolabe.runtime.terminal import Bars, picture, shortened
from tests.runtime.watching import Clock, Terminal

FIVE = ("reward/hpsv3", "reward/videoalign_motion", "reward/clip", "reward/joint", "reward/flow", "loss")


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.delenv("CI", raising=False)
    return Terminal()


def course_of(shown: tuple[str, ...], steps: int = 200) -> Course:
    course = Course(steps, 0, shown)
    for step in range(12):
        course.finish(step, {name: 0.51234 + step for name in shown})
    course.enter("rollout", 12, 48)
    return course


def drawn(course: Course | None, tasks: list[Task], width: int, height: int = 24) -> list[str]:
    out = io.StringIO()
    console = Console(width=width, height=height, force_terminal=True, color_system="truecolor", file=out)
    console.print(Group(*picture(course, tasks, width - 1, height)))
    return Text.from_ansi(out.getvalue()).plain.splitlines()


def bar_in(row: str) -> str:
    return "".join(letter for letter in row if letter in "━╸╺")


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_step_bar_and_time_are_whole_and_two_numbers_behind(width: int, monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    course = course_of(FIVE[1:])
    clock.sleep(3 * 3600)
    course.finish(12, {name: -0.512345 for name in FIVE})
    course.enter("rollout", 12, 48)
    first, second, *table = drawn(course, [], width)
    assert first.startswith("step 13/200  ") and len(bar_in(first)) >= 15
    assert first.split(bar_in(first))[1].strip().startswith("left 2d 08h")
    assert 1 <= first.count("-0.5123") <= 2 and first.count("reward/") + first.count("loss") <= 2
    assert second.startswith("  rollout ") and "12 of 48 candidates" in second and "step: 13m 30s left" in second
    assert [row.split()[0] for row in table[1:]] == list(FIVE[1:])
    assert table[0].split() == ["step", "13", "mean", "of", "10", "step", "1"]
    assert all(row.split()[1:] == ["-0.5123", "6.71", "0.5123"] for row in table[1:])


def test_at_sixty_columns_numbers_go_first_and_time_stays(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    course = course_of(FIVE)
    clock.sleep(5)
    first, second, *_ = drawn(course, [], 60)
    assert first.startswith("step 12/200  ╸━") and "left 0s" in first and bar_in(first)
    assert "12 of 48 candidates" in second and "step: 0s left" in second


def test_a_table_needs_room_and_leaves_some():
    course = course_of(FIVE)
    assert len(drawn(course, [], 80, 24)) == 2 + 1 + len(FIVE)
    assert len(drawn(course, [], 80, 12)) == 2
    assert len(drawn(course_of(FIVE[:2]), [], 80, 24)) == 2  # both stand in the first line already


@given(
    width=st.integers(12, 250), height=st.integers(3, 60), name=st.text(st.characters(categories=["L"]), max_size=90),
    steps=st.integers(13, 100000), total=st.one_of(st.none(), st.floats(1, 1e12)),
)  # fmt: skip
def test_no_row_is_wider_than_the_terminal(width: int, height: int, name: str, steps: int, total: float | None):
    task = Task(f"loading {name}", total, "bytes", 5e8, began=-100.0)
    rows = drawn(course_of((*FIVE, f"reward/{name}"), steps), [task], width, height)
    assert all(cell_len(row) < width for row in rows)
    if width >= 2 + len(f"step 12/{steps}"):
        assert rows[0].startswith(f"step 12/{steps}")
    assert len(rows) <= max(height, 4)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_amount_and_time_of_work_are_whole_and_a_long_name_is_shortened(width: int, monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    task = Task("loading " + "a_very_long_name_" * 8 + "14B.safetensors", 28.6e9, "bytes", 14.3e9)
    clock.sleep(12)
    (row,) = drawn(None, [task], width)
    assert row.startswith("loading ") and "14.3 of 28.6 GB" in row and "left 12s" in row and "rs  " in row
    assert bar_in(row)


def test_a_shortened_text_keeps_both_ends():
    assert shortened("loading model.safetensors", 12) == "loadi..nsors"
    assert shortened("short", 12) == "short"


def test_what_is_not_counted_has_a_moving_bar(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    task = Task("writing merged.safetensors")
    clock.sleep(70)
    (row,) = drawn(None, [task], 80)
    assert "1m 10s" in row and len(bar_in(row)) == 15


def test_without_colour_a_bar_shows_what_is_left_by_other_signs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    Console(width=80, force_terminal=True, file=out).print(Group(*picture(course_of(FIVE), [], 79, 12)))
    assert "  ...............  left 0s" in out.getvalue() and "  ###............  12 of 48" in out.getvalue()


def test_on_a_terminal_the_display_is_a_bar_and_its_last_state_stays(watched: Terminal):
    with training_display(20, stream=watched) as display:
        display.phase("rollout", 1, 2)
        display.update(4, {"reward": 0.5})
    assert "step 5/20" in watched.getvalue() and "reward 0.5" in watched.getvalue()
    assert watched.getvalue().endswith("\x1b[?25h")  # the cursor is back


def test_lines_that_stay_are_as_they_were_said(watched: Terminal):
    said = "step 5: [bold]stop[/bold]: :smile: " + "words and words " * 20
    with training_display(20, stream=watched) as display:
        display.note(said)
    assert said in watched.getvalue()


def test_what_is_printed_beside_a_bar_is_whole_and_above_it(watched: Terminal, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", watched)
    with training_display(20) as display:
        display.update(0, {})
        print("runs/" + "a" * 200 + ".mp4")
        print("\r 10 %\r 90 %\r100 %")
        print("and no end", end="")
    assert sys.stdout is watched
    shown = watched.getvalue()
    assert "runs/" + "a" * 200 + ".mp4\n" in shown and "100 %\n" in shown and "10 %" not in shown.replace("100 %", "")
    assert shown.endswith("and no end")


def test_a_pipe_beside_the_terminal_gets_what_is_printed(watched: Terminal, monkeypatch: pytest.MonkeyPatch):
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    monkeypatch.setattr(sys, "stderr", watched)
    monkeypatch.setattr("astrolabe.runtime.terminal.PATIENCE", 0.0)
    with progress("making", 2) as task:
        end = time.monotonic() + 10
        while "making" not in watched.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
        print("0000.mp4")
        task.advance()
    assert pipe.getvalue() == "0000.mp4\n" and "making" in watched.getvalue()


def test_quick_work_draws_nothing(watched: Terminal, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", watched)
    with progress("hashing", 2):
        time.sleep(0.15)
    assert watched.getvalue() == ""


def test_a_terminal_that_is_gone_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch, watched: Terminal):
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    with training_display(3, stream=Gone()) as display:
        display.update(0, {"loss": 1.0})
        display.note("still here")


def test_a_screen_of_bars_is_drawn_for_the_size_of_the_moment(watched: Terminal, monkeypatch: pytest.MonkeyPatch):
    bars = Bars(watched, course_of(FIVE))
    with bars:
        bars.draw()
        monkeypatch.setattr(bars.console, "_width", 40)
        bars.console.width = 40
        watched.truncate(0)
        watched.seek(0)
        bars.draw()
        rows = Text.from_ansi(watched.getvalue()).plain.splitlines()
    assert rows and all(cell_len(row) < 40 for row in rows)


def test_work_within_a_step_has_a_row_below_its_phase_when_it_takes_a_while(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    course, task = course_of(FIVE), Task("prompt 3 of 8, 6 candidates", 7, "chunks", 2)
    clock.sleep(2)
    assert drawn(course, [task], 80, 12)[2:] == []
    clock.sleep(2)
    (row,) = drawn(course, [task], 80, 12)[2:]
    assert row.startswith("  prompt 3 of 8, 6 candidates  ━") and "2 of 7 chunks  left 10s" in row
