"""How a scene is put into words, how words are read back, and which scenes are trained on."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from itertools import combinations
from typing import NamedTuple

from astrolabe.runtime.errors import UserError, nearest
from astrolabe.shapes.world import ALL_SCENES, COLOURS, MOTIONS, SHAPES, Scene


class _Wording(NamedTuple):
    """A sentence with three gaps and the word forms that fill two of them (a colour has one form)."""

    sentence: str
    shapes: tuple[str, ...]  # in the order of SHAPES
    motions: tuple[str, ...]  # in the order of MOTIONS


_PLAIN = ("circle", "square", "triangle", "cross")
_VARIED = ("disc", "box", "triangle", "plus")

_WORDINGS = (
    _Wording(
        "a {colour} {shape} {motion}",
        _PLAIN,
        ("moving left", "moving right", "moving up", "moving down", "bouncing", "pulsing", "staying still"),
    ),
    _Wording(
        "the {colour} {shape} {motion}",
        _VARIED,
        (
            "drifts to the left",
            "drifts to the right",
            "drifts to the top",
            "drifts to the bottom",
            "bounces again and again",
            "pulses again and again",
            "stays motionless",
        ),
    ),
    _Wording(
        "a {motion} {colour} {shape}",
        _PLAIN,
        ("leftward moving", "rightward moving", "rising", "falling", "bouncing", "pulsing", "motionless"),
    ),
    _Wording(
        "a {colour} {shape} that {motion}",
        _PLAIN,
        ("glides left", "glides right", "rises", "falls", "hops in place", "throbs in place", "rests in place"),
    ),
    _Wording(
        "one {colour} {shape}, {motion}",
        _VARIED,
        ("heading left", "heading right", "heading up", "heading down", "hopping", "throbbing", "at rest"),
    ),
    _Wording(
        "a video of a {colour} {shape} which {motion}",
        _PLAIN,
        (
            "travels leftward",
            "travels rightward",
            "travels upward",
            "travels downward",
            "bounces",
            "pulses",
            "remains still",
        ),
    ),
    _Wording("{colour} {shape}, {motion}", _PLAIN, MOTIONS),
)
WORDINGS = len(_WORDINGS)

_MOTION_WORDS = {
    "left": ("left", "leftward"),
    "right": ("right", "rightward"),
    "up": ("up", "upward", "rises", "rising", "top"),
    "down": ("down", "downward", "falls", "falling", "bottom"),
    "bounce": ("bounce", "bounces", "bouncing", "hops", "hopping"),
    "pulse": ("pulse", "pulses", "pulsing", "throbs", "throbbing"),
    "still": ("still", "motionless", "rest", "rests"),
}
_SHAPE_WORDS = {plain: {plain, varied} for plain, varied in zip(_PLAIN, _VARIED, strict=True)}
_MEANINGS: dict[str, tuple[str, str]] = {
    **{word: ("colour", word) for word in COLOURS},
    **{word: ("shape", shape) for shape, words in _SHAPE_WORDS.items() for word in words},
    **{word: ("motion", motion) for motion, words in _MOTION_WORDS.items() for word in words},
}


def words_of(text: str) -> list[str]:
    """The lower-case words of ``text`` without punctuation."""
    return re.findall(r"[^\s.,;:!?\"'()\-]+", text.lower())


def caption(scene: Scene, wording: int) -> str:
    """``scene`` in the given wording; a :class:`UserError` when it is not in 0 .. WORDINGS - 1."""
    if not 0 <= wording < WORDINGS:
        raise UserError(f"wording {wording} does not exist, use 0 to {WORDINGS - 1}")
    sentence, shapes, motions = _WORDINGS[wording]
    text = sentence.format(
        colour=scene.colour, shape=shapes[SHAPES.index(scene.shape)], motion=motions[MOTIONS.index(scene.motion)]
    )
    return re.sub(r"\ba(?= [aeiou])", "an", text)


SAME_WORDS = {"an": "a"}  # forms of a word that are one word to the text encoder
VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        set(_MEANINGS)
        | {word for scene in ALL_SCENES for wording in range(WORDINGS) for word in words_of(caption(scene, wording))}
        - set(SAME_WORDS)
    )
)


def check_words(text: str) -> list[str]:
    """The words of ``text``, each in its one form; a :class:`UserError` names the first outside :data:`VOCABULARY`."""
    words = [SAME_WORDS.get(word, word) for word in words_of(text)]
    for word in words:
        if word not in VOCABULARY:
            raise UserError(
                f"unknown word {word!r} in the prompt {text!r}{nearest(word, VOCABULARY)}; "
                f"a prompt of the shapes world reads like {caption(ALL_SCENES[0], 0)!r}"
            )
    return words


def parse(text: str) -> Scene:
    """The scene that ``text`` describes, in any wording and any order of words.

    Raises a :class:`UserError` for an unknown word, a missing attribute, or two values of one attribute.
    """
    found: dict[str, str] = {}
    for word in check_words(text):
        attribute, value = _MEANINGS.get(word, ("", ""))
        if attribute and found.setdefault(attribute, value) != value:
            raise UserError(f"the prompt {text!r} names two {attribute}s, {found[attribute]} and {value}; keep one")
    for attribute, known in (("colour", COLOURS), ("shape", SHAPES), ("motion", MOTIONS)):
        if attribute not in found:
            raise UserError(f"the prompt {text!r} names no {attribute}; add one of {', '.join(known)}")
    return Scene(**found)


_SPLIT_SIZES = {"test": 44, "validation": 28, "train": 152}


def split(name: str) -> tuple[Scene, ...]:
    """The scenes of ``"train"`` (152), ``"validation"`` (28) or ``"test"`` (44): disjoint, balanced, always the same.

    Every colour, shape and motion occurs about equally often in each, and every pair of attributes of a test scene
    also occurs in train: what is held out is the combination. Raises a :class:`UserError` for another name.
    """
    if name not in _SPLIT_SIZES:
        raise UserError(f"unknown split {name!r}, use one of {', '.join(_SPLIT_SIZES)}{nearest(name, _SPLIT_SIZES)}")
    return _splits()[name]


@cache
def _splits() -> dict[str, tuple[Scene, ...]]:
    # 89 has no factor in common with 224: the order visits every scene and neighbours share little
    remaining = [ALL_SCENES[(89 * step) % len(ALL_SCENES)] for step in range(len(ALL_SCENES))]
    chosen: dict[str, tuple[Scene, ...]] = {}
    for name in ("test", "validation"):
        chosen[name] = _balanced(remaining, _SPLIT_SIZES[name])
        remaining = [scene for scene in remaining if scene not in chosen[name]]
    return {**chosen, "train": tuple(sorted(remaining))}


def _balanced(scenes: list[Scene], count: int) -> tuple[Scene, ...]:
    """``count`` of ``scenes``, each time the one whose words and pairs of words were chosen least often."""
    uses: Counter[tuple[str, ...]] = Counter()
    chosen: list[Scene] = []

    def crowding(scene: Scene) -> tuple[int, int]:
        words = (scene.colour, scene.shape, scene.motion)
        singles = 8 * uses[words[:1]] + 4 * uses[words[1:2]] + 7 * uses[words[2:]]
        return singles, sum(uses[pair] for pair in combinations(words, 2))

    for _ in range(count):
        best = min((scene for scene in scenes if scene not in chosen), key=crowding)
        chosen.append(best)
        words = (best.colour, best.shape, best.motion)
        uses.update([words[:1], words[1:2], words[2:], *combinations(words, 2)])
    return tuple(sorted(chosen))
