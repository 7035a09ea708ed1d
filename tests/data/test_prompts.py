"""Prompt lists read strictly and served as a function of the step."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrolabe.data.prompts import Entry, PromptList, read_entries, read_prompts
from astrolabe.runtime.errors import UserError


def test_blank_lines_and_comments_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeff# mine\n a red circle moving left \n\nblue square, up\r\n".encode())
    assert read_prompts(file) == ["a red circle moving left", "blue square, up"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no prompts"),
        (b"# only a comment\n", "no prompts"),
        (b"ok\n\xff\xfe", "not UTF-8"),
        ("a cat".encode("utf-16"), "not UTF-8"),
        (b"a" * 5000, "line 1 has 5000"),
        (b"a cat\n\na bird sings |\n", r"line 3: .*without a prompt.*\\\|"),
        (b"a cat\na dog [0s]\n", "line 2: .*lasts 0 s"),
        (b"ok" * 4000 + b"\n\0\n", "zero bytes"),
        (b"- prompt: a cat\n  seconds: 5\n", "is YAML"),
    ],
)
def test_a_file_that_is_no_prompt_list_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_prompts(file)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_only_newlines_end_a_prompt(end: str, tmp_path: Path) -> None:
    prompts = [
        "a cat\u2028runs",
        "a dog\x85sleeps",
        "a bird\x0bsings",
        "a fox\x0cjumps",
        "an owl\u2029\x1c\x1d\x1ehoots",
    ]
    file = tmp_path / "prompts.txt"
    file.write_bytes(end.join(prompts).encode())
    assert read_prompts(file) == prompts


def test_a_comment_has_a_blank_after_its_sign_and_what_is_left_out_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# mine\n#\n## more\n#1 dog runs\n#sunset\n\\# a plain sign\na cat\n", encoding="utf-8")
    assert read_prompts(file) == ["#1 dog runs", "#sunset", "# a plain sign", "a cat"]
    said = capsys.readouterr().err
    assert f"{file}: 3 comments beginning with # left out" in said and "2 prompts beginning with #" in said
    read_prompts(file)
    assert not capsys.readouterr().err  # once is enough


def test_every_prompt_knows_its_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n# no\na dog [5s] | a bird\n", encoding="utf-8")
    assert read_entries(file) == [Entry("a cat", f"{file}: line 1"), Entry("a dog [5s] | a bird", f"{file}: line 4")]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "nowhere.txt")


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 40))
def test_every_pass_shows_every_prompt_once_and_any_step_can_be_asked_alone(total: int, count: int, seed: int) -> None:
    prompts = [str(i) for i in range(total)]
    listed = PromptList(prompts, count, seed)
    served = [prompt for step in range(total * 2) for prompt in listed.batch(step)]
    for lap in range(count * 2):
        assert sorted(served[lap * total : (lap + 1) * total]) == sorted(prompts)
    assert PromptList(prompts, count, seed).batch(3) == listed.batch(3)
