"""Every look moves the oracle that is made for it, and leaves what was asked for alone."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from astrolabe.shapes.oracles import WELL_MADE, judge
from astrolabe.shapes.world import ALL_SCENES, GOOD, MIXED, PERFECT, WIDE, Looks, Scene, render

scenes = st.sampled_from(ALL_SCENES)
LOOKS = tuple(field.name for field in fields(Looks))


def judged(scene: Scene, frames: int = 45, **looks: float) -> dict[str, float]:
    """Scores of a scene whose looks are perfect but for those named."""
    ranges = PERFECT | {name: (value, value) for name, value in looks.items()}
    video = render([scene], frames, torch.Generator().manual_seed(3), looks=ranges)
    return {name: values.item() for name, values in judge(video, [scene]).items()}


@settings(max_examples=25, deadline=None)
@given(scenes, st.floats(0.4, 1.0), st.floats(0.0, 0.2))
def test_vividness_is_the_contrast_that_is_left(scene: Scene, vivid: float, haze: float) -> None:
    seen = judged(scene, vivid=vivid, haze=haze)
    assert seen["vividness"] == pytest.approx(vivid * (1 - haze), abs=0.03)
    assert seen["colour"] == seen["shape"] == 1  # dim and hazy, it is what it is


@settings(max_examples=15, deadline=None)
@given(scenes, st.floats(0.0, 0.15))
def test_haze_lowers_cleanliness_and_nothing_else_of_what_is_well_made(scene: Scene, haze: float) -> None:
    clear, hazy = judged(scene, haze=haze), judged(scene, haze=haze + 0.05)
    assert hazy["cleanliness"] < clear["cleanliness"] - 0.03
    assert hazy["smoothness"] == pytest.approx(clear["smoothness"], abs=0.05)
    assert hazy["right"] == clear["right"] == 1


@settings(max_examples=15, deadline=None)
@given(scenes, st.floats(0.0, 1.5))
def test_a_wobble_lowers_smoothness_and_does_not_change_the_motion(scene: Scene, wobble: float) -> None:
    steady, shaky = judged(scene, wobble=wobble), judged(scene, wobble=wobble + 0.5)
    assert shaky["smoothness"] < steady["smoothness"] - 0.05
    assert shaky["right"] == steady["right"] == 1
    assert shaky["vividness"] == pytest.approx(steady["vividness"], abs=0.03)


@pytest.mark.parametrize("motion", ["left", "right", "up", "down", "bounce", "pulse"])
def test_a_motion_without_vigour_is_none(motion: str) -> None:
    scene = Scene("cyan", "circle", motion)
    weak, usual = judged(scene, vigour=0.25), judged(scene)
    assert weak["motion"] == 0 and usual["motion"] == 1
    assert weak["colour"] == weak["shape"] == weak["made"] == 1


@pytest.mark.parametrize("frames", [23, 45, 93, 189])
def test_what_is_right_and_well_made_scores_full_marks(frames: int) -> None:
    some = ALL_SCENES if frames == 45 else ALL_SCENES[::9]
    video = render(some, frames, torch.Generator().manual_seed(frames), looks=GOOD)
    scores = judge(video, some)
    assert scores["joint"].mean() == scores["right"].mean() == scores["made"].mean() == 1


def test_training_videos_are_of_mixed_quality_and_always_of_the_colour_and_shape_that_is_said() -> None:
    scores = judge(render(ALL_SCENES, 45, torch.Generator().manual_seed(5), looks=MIXED), ALL_SCENES)
    assert scores["colour"].mean() == 1 and scores["shape"].mean() > 0.97
    assert 0.1 < scores["made"].mean() < 0.5 and 0.5 < scores["right"].mean() < 0.95


def test_made_is_its_three_bounds_and_joint_is_right_and_made() -> None:
    scores = judge(render(ALL_SCENES, 45, torch.Generator().manual_seed(6), looks=MIXED), ALL_SCENES)
    passed: list[Tensor] = [scores[name] >= least for name, least in WELL_MADE.items()]
    assert torch.equal(scores["made"].bool(), passed[0] & passed[1] & passed[2])
    assert torch.equal(scores["joint"], scores["right"] * scores["made"])
    assert torch.equal(scores["right"], scores["colour"] * scores["shape"] * scores["motion"])


def test_the_codec_meets_more_than_the_models_and_good_looks_lie_inside() -> None:
    for name in LOOKS:
        (low, high), (least, most), (worst, best) = WIDE[name], MIXED[name], GOOD[name]
        assert low <= least < most <= high and low <= worst <= best <= high
        drawn = getattr(Looks.draw(500, torch.Generator().manual_seed(0)), name)
        assert least <= drawn.min() and drawn.max() <= most and drawn.std() > (most - least) / 4
