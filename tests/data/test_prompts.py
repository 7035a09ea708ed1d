"""Prompt lists read strictly and served as a function of the step."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrolabe.data.prompts import PromptList, read_prompts
from astrolabe.runtime.errors import UserError


def test_blank_lines_and_comments_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeff# mine\n a red circle moving left \n\nblue square, up\r\n".encode())
    assert read_prompts(file) == ["a red circle moving left", "blue square, up"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "no prompts"), (b"# only a comment\n", "no prompts"), (b"ok\n\xff\xfe", "not UTF-8"), (b"a" * 5000, "5000")],
)
def test_a_file_that_is_no_prompt_list_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_prompts(file)


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
