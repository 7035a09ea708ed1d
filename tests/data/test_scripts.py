"""Scripts of timed prompts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from astrolabe.data.scripts import Shot, escaped, frames_of, parse_script, plan, read_script, script_line
from astrolabe.runtime.errors import UserError
from tests.conftest import tiny_stream


def test_the_line_of_the_documentation() -> None:
    assert parse_script("a cat[5s] | a dog[8 s] || a bird") == (
        Shot("a cat", 5.0), Shot("a dog", 8.0, "switch"), Shot("a bird", None, "cut"),
    )  # fmt: skip


def test_a_plain_prompt_is_one_shot() -> None:
    assert parse_script("a cat on a mat") == (Shot("a cat on a mat"),)


def test_bars_and_brackets_can_be_plain_characters() -> None:
    assert parse_script(r"a \| b \[5s]") == (Shot("a | b [5s]"),)


words = st.text(st.characters(codec="utf-8", exclude_characters="|[]\\", exclude_categories=("C", "Z")), min_size=1)


shots_of_any_kind = st.tuples(words, st.none() | st.integers(1, 900), st.sampled_from(["|", "||"]))


@given(st.lists(shots_of_any_kind, min_size=1, max_size=5))
def test_what_is_written_is_read(shots: list[tuple[str, int | None, str]]) -> None:
    text = ""
    for number, (prompt, seconds, bar) in enumerate(shots):
        text += (f" {bar} " if number else "") + prompt + (f"[{seconds}s]" if seconds else "")
    expected = tuple(
        Shot(prompt, seconds, "cut" if number and bar == "||" else "switch")
        for number, (prompt, seconds, bar) in enumerate(shots)
    )
    assert parse_script(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "a cat [film stills]",
        "a [red|blue] cat",
        "[a|b]",
        "a cat [xs]",
        "a cat [infs]",
        "a [5s] in the middle",
        "[a|[b|c]]",
    ],
)
def test_brackets_that_are_no_length_are_text_and_so_are_bars_in_them(text: str) -> None:
    assert parse_script(text) == (Shot(text),)


def test_a_bracket_that_is_not_closed_holds_no_bar() -> None:
    assert parse_script("a [b | c[2.5 s]") == (Shot("a [b"), Shot("c", 2.5))


plain = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(lambda text: text.strip())
signs = st.text(st.sampled_from("ab |[]\\5.s\n"), min_size=1).filter(lambda text: text.strip())


@given(plain | signs)
def test_text_without_bars_and_lengths_is_a_prompt_as_it_stands(text: str) -> None:
    text = text.replace("|", "").replace("\\", "")
    assume(text.strip() and not re.search(r"[0-9.]\s*s\s*\]\s*$", text))
    assert parse_script(text) == (Shot(text.strip()),)


@given(st.lists(plain | signs, min_size=1, max_size=3))
def test_escaped_prompts_are_read_back_alone_and_in_a_script(prompts: list[str]) -> None:
    assert parse_script(escaped(prompts[0])) == (Shot(prompts[0].strip()),)
    assert parse_script(script_line(prompts)) == tuple(Shot(prompt.strip()) for prompt in prompts)


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("a cat[0s] | a dog", "lasts 0 s"),
        ("a cat[-3s]", "lasts -3 s"),
        ("a cat[1e999s]", "lasts inf s"),
        ("a cat[1e9s]", "a day"),
        ("a bird sings |", "without a prompt.*for a plain bar"),
        ("a cat\udcff", "not valid Unicode"),
        ("a cat | ", "without a prompt"),
        ("a cat ||| a dog", "without a prompt"),
        ("", "without a prompt"),
    ],
)
def test_a_line_that_is_no_script_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        parse_script(text)


@pytest.mark.parametrize("name", ["script.yaml", "script.json"])
def test_a_file_is_read(name: str, tmp_path: Path) -> None:
    text = {
        "script.yaml": "- prompt: a cat\n  seconds: 5\n- prompt: a bird\n  enter: cut\n",
        "script.json": '[{"prompt": "a cat", "seconds": 5}, {"prompt": "a bird", "enter": "cut"}]',
    }
    (tmp_path / name).write_text(text[name])
    assert read_script(tmp_path / name) == (Shot("a cat", 5), Shot("a bird", None, "cut"))


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"", "expected a list"),
        (b"a: 1", "expected a list"),
        (b"- seconds: 3", "shot 1 has no prompt"),
        (b"- prompt: x\n  length: 3", "shot 1 has length"),
        (b"- prompt: x\n  seconds: long", "lasts 'long'"),
        (b"- prompt: x\n  seconds: -1", "lasts -1 s"),
        (b"- prompt: x\n  enter: fade", r"script\.yaml: .*enters by 'fade'"),
        (b"- prompt: x\n  seconds: .inf", "lasts inf s"),
        (b"- prompt: x\n  seconds: 1" + b"0" * 400, "script.yaml"),
        (b"- [", "not YAML or JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"- !!python/object/apply:os.system ['true']", "not YAML or JSON"),
    ],
)
def test_a_file_that_is_no_script_is_refused(content: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "script.yaml").write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        read_script(tmp_path / "script.yaml")


LENGTHS = [(5.0625, 3, 21), (30, 3, 120), (600, 3, 2400), (0.1, 1, 1), (1, 1, 5)]


@pytest.mark.parametrize("seconds, chunk, frames", LENGTHS)
def test_lengths_become_whole_chunks(seconds: float, chunk: int, frames: int) -> None:
    assert frames_of(seconds, tiny_stream(chunk)) == frames


@pytest.mark.parametrize("seconds", [0, -1, 0.01, 1e308, float("nan"), float("inf")])
def test_lengths_that_no_chunking_fits_are_refused(seconds: float) -> None:
    with pytest.raises(UserError, match="seconds="):
        frames_of(seconds, tiny_stream())


def test_open_shots_share_what_is_left_and_the_whole_is_exact() -> None:
    script = parse_script("a[5s] | b | c")
    lengths = plan(script, 30, tiny_stream())
    assert sum(lengths) == frames_of(30, tiny_stream()) and all(length % 3 == 0 for length in lengths)
    assert abs(lengths[1] - lengths[2]) <= 3
    with pytest.raises(UserError, match="leave nothing"):
        plan(parse_script("a[5s] | b"), 5, tiny_stream())
    with pytest.raises(UserError, match="shorter than a chunk"):
        plan(parse_script("a[5s] | b[0.1s] | c"), 9, tiny_stream())
