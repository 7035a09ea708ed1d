"""Captions: every wording can be read back, and the splits are fair."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrolabe.runtime.errors import UserError
from astrolabe.shapes.captions import SAME_WORDS, VOCABULARY, WORDINGS, caption, parse, split, words_of
from astrolabe.shapes.world import ALL_SCENES, Scene

SPLITS = ("train", "validation", "test")
scenes = st.sampled_from(ALL_SCENES)
wordings = st.integers(0, WORDINGS - 1)


@given(scenes, wordings)
def test_every_wording_is_read_back(scene: Scene, wording: int) -> None:
    assert parse(caption(scene, wording)) == scene


@given(scenes, wordings)
def test_case_and_punctuation_do_not_matter(scene: Scene, wording: int) -> None:
    assert parse(f"  {caption(scene, wording).upper().replace(' ', ', ')}! ") == scene


@given(scenes, wordings, st.randoms())
def test_the_order_of_the_words_does_not_matter(scene: Scene, wording: int, random: object) -> None:
    words = words_of(caption(scene, wording))
    random.shuffle(words)  # type: ignore[attr-defined]
    assert parse(" ".join(words)) == scene


def test_every_word_of_every_caption_is_in_the_vocabulary() -> None:
    words = {word for scene in ALL_SCENES for index in range(WORDINGS) for word in words_of(caption(scene, index))}
    assert {SAME_WORDS.get(word, word) for word in words} <= set(VOCABULARY)


def test_no_two_captions_are_the_same() -> None:
    texts = [caption(scene, index) for scene in ALL_SCENES for index in range(WORDINGS)]
    assert WORDINGS >= 6 and len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("a red cirle moving left", "unknown word 'cirle'.*circle"),
        ("a circle moving left", "names no colour"),
        ("a red thing", "unknown word 'thing'"),
        ("a red circle", "names no motion"),
        ("", "names no colour"),
        ("a red blue circle moving left", "two colours, red and blue"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        parse(text)


def test_the_article_fits_the_word_after_it() -> None:
    assert caption(Scene("orange", "circle", "left"), 0) == "an orange circle moving left"
    assert caption(Scene("orange", "circle", "up"), 2) == "a rising orange circle"


def test_a_wording_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="use 0 to"):
        caption(ALL_SCENES[0], WORDINGS)


def test_splits_are_disjoint_and_complete() -> None:
    assert [len(split(name)) for name in SPLITS] == [152, 28, 44]
    assert sorted(scene for name in SPLITS for scene in split(name)) == sorted(ALL_SCENES)


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("attribute", ["colour", "shape", "motion"])
def test_splits_are_balanced(name: str, attribute: str) -> None:
    counts = Counter(getattr(scene, attribute) for scene in split(name))
    values = {getattr(scene, attribute) for scene in ALL_SCENES}
    assert set(counts) == values and max(counts.values()) - min(counts.values()) <= 2


def test_what_is_held_out_is_the_combination_not_its_pairs() -> None:
    def pairs(scenes: tuple[Scene, ...]) -> set[tuple[str, ...]]:
        return {pair for scene in scenes for pair in combinations((scene.colour, scene.shape, scene.motion), 2)}

    assert pairs(split("test")) <= pairs(split("train"))


def test_an_unknown_split_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean train"):
        split("trian")
