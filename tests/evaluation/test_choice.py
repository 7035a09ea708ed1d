"""Which videos are shown is decided by a rule that lets no failure be left out."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from astrolabe.evaluation.choice import PAIRS, choose
from astrolabe.evaluation.decomposition import CONDITIONS, passes
from astrolabe.shapes.captions import split

SCENES = split("validation")


def scores(seed: int, luck: float) -> dict[str, Tensor]:
    """Scores of any policy on SCENES, each under two noises; every condition is met with probability ``luck``."""
    generator = torch.Generator().manual_seed(seed)
    made = {name: (torch.rand(len(SCENES), 2, generator=generator) < luck).float() for name in CONDITIONS}
    return made | {"joint": passes(made).prod(0).view(len(SCENES), 2).float()}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.5, 0.8, 0.95, 1.0]), st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_what_is_shown_is_what_the_rule_says(seed: int, before: float, after: float) -> None:
    base, aligned = scores(seed, before), scores(seed + 1, after)
    shown = choose(base, aligned, SCENES)
    assert len(shown) == PAIRS and len({(one.row, one.noise) for one in shown}) == PAIRS
    for one in shown:
        change = aligned["joint"][one.row, one.noise] - base["joint"][one.row, one.noise]
        assert one.kind == {1: "mended", 0: "same", -1: "broken"}[int(change)]
        assert one.base == {name: bool(base[name][one.row, one.noise]) for name in CONDITIONS}
        assert one.aligned == {name: bool(aligned[name][one.row, one.noise]) for name in CONDITIONS}
    ways = {name for one in shown if one.kind == "broken" for name, holds in one.aligned.items() if not holds}
    lost = (base["joint"] - aligned["joint"]) > 0
    assert ways == {name for name in CONDITIONS if (lost & (aligned[name] < 0.5)).any()}
    colours = [SCENES[one.row].colour for one in shown if one.kind == "mended"]
    unchanged = int((aligned["joint"] == base["joint"]).sum())
    assert len(set(colours)) == len(colours) or unchanged == sum(one.kind == "same" for one in shown)


def test_the_first_come_first_and_what_did_not_change_only_fills_up() -> None:
    base, aligned = scores(0, 1.0), scores(0, 1.0)
    base["shape"][2, 0] = base["joint"][2, 0] = 0  # mended
    aligned["motion"][5, 1] = aligned["joint"][5, 1] = 0  # broken, and in the same way as a later one
    aligned["motion"][6, 1] = aligned["joint"][6, 1] = 0
    shown = [(one.kind, one.row, one.noise) for one in choose(base, aligned, SCENES)]
    assert shown[:2] == [("mended", 2, 0), ("broken", 5, 1)]
    assert shown[2:] == [("same", row, 0) for row in (0, 1, 3, 4, 5, 6)]
