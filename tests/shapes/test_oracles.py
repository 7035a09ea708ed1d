"""The oracles: right about rendered videos, and not fooled by anything else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from astrolabe.runtime.errors import UserError
from astrolabe.shapes.oracles import UNREADABLE, judge, measure
from astrolabe.shapes.sheets import contact_sheet
from astrolabe.shapes.world import ALL_SCENES, BACKGROUND, COLOURS, MOTIONS, SHAPES, Scene, render

SOME = ALL_SCENES[::9]  # every colour, shape and motion
CHECKS = ("colour", "shape", "motion", "joint")


def rendered(scenes: tuple[Scene, ...] = SOME, frames: int = 45, **options: float) -> Tensor:
    return render(scenes, frames, torch.Generator().manual_seed(int(options.pop("seed", 0))), **options)  # type: ignore


def noise(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1))


def blank(frames: int = 45) -> Tensor:
    return torch.tensor(BACKGROUND)[:, None, None].expand(1, frames, 3, 64, 64).clone()


@pytest.fixture(scope="module")
def truth() -> dict[str, Tensor]:
    return judge(rendered(), SOME)


@pytest.mark.parametrize("frames, first_frame, jitter", [(45, 0, 6.0), (9, 0, 6.0), (21, 5, 32.0)])
def test_all_224_scenes_score_full_marks(frames: int, first_frame: int, jitter: float) -> None:
    scores = judge(rendered(ALL_SCENES, frames, first_frame=first_frame, jitter=jitter), ALL_SCENES)
    assert all(scores[check].min() == 1 for check in CHECKS)


@pytest.mark.parametrize("frames, first_frame", [(93, 0), (49, 45), (81, 100)])
def test_long_videos_and_windows_that_wrap_around_score_full_marks(frames: int, first_frame: int) -> None:
    scores = judge(rendered(frames=frames, first_frame=first_frame, jitter=32.0, seed=1), SOME)
    assert all(scores[check].min() == 1 for check in CHECKS)


def test_readings_are_the_indices_of_the_scene() -> None:
    readings = measure(rendered())
    assert readings.colour.tolist() == [list(COLOURS).index(scene.colour) for scene in SOME]
    assert readings.shape.tolist() == [SHAPES.index(scene.shape) for scene in SOME]
    assert readings.motion.tolist() == [MOTIONS.index(scene.motion) for scene in SOME]


@pytest.mark.parametrize("wrong", ["colour", "shape", "motion"])
def test_a_wrong_caption_fails_exactly_the_wrong_attribute(wrong: str, truth: dict[str, Tensor]) -> None:
    tables = {"colour": list(COLOURS), "shape": list(SHAPES), "motion": list(MOTIONS)}

    def other(scene: Scene) -> Scene:
        words = {kind: getattr(scene, kind) for kind in tables}
        table = tables[wrong]
        return Scene(**{**words, wrong: table[(table.index(words[wrong]) + 1) % len(table)]})

    scores = judge(rendered(), [other(scene) for scene in SOME])
    for check in ("colour", "shape", "motion"):
        assert (scores[check] == float(check != wrong)).all()
        lower = scores[f"{check}_fit"] < truth[f"{check}_fit"] - 0.3
        assert lower.all() if check == wrong else not lower.any()
    assert scores["joint"].sum() == 0


def test_fits_and_qualities_of_rendered_videos_are_near_their_best(truth: dict[str, Tensor]) -> None:
    for name in ("shape_fit", "colour_fit", "motion_fit", "smoothness"):
        assert truth[name].min() > 0.8 and truth[name].max() <= 1, name
    assert truth["cleanliness"].min() > 0.99 and truth["flicker"].max() < 0.02


def assert_unreadable(video: Tensor) -> None:
    readings = measure(video)
    for reading in (readings.shape, readings.motion):
        assert (reading == UNREADABLE).all()


def test_a_blank_video_shows_nothing_and_fits_nothing() -> None:
    assert_unreadable(blank())
    scores = judge(blank(), [Scene("red", "circle", "still")])
    assert scores["joint"] == 0
    assert max(scores["shape_fit"], scores["colour_fit"], scores["motion_fit"]) < 0.1


def test_static_noise_shows_nothing() -> None:
    assert_unreadable((blank() + 0.5 * noise(blank()).abs()).clamp(0, 1))
    frame = torch.rand(1, 1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    assert_unreadable(frame.expand(-1, 45, -1, -1, -1))


def test_a_canvas_full_of_colour_shows_nothing() -> None:
    assert_unreadable(torch.tensor(COLOURS["red"])[:, None, None].expand(1, 45, 3, 64, 64))


@pytest.mark.parametrize("second", [Scene("red", "circle", "still"), Scene("blue", "circle", "still")])
def test_two_objects_do_not_pass(second: Scene) -> None:
    scene = Scene("red", "circle", "still")
    both = torch.maximum(rendered((scene,), jitter=2.0), rendered((second,), jitter=2.0).roll(30, -1))
    assert judge(both, [scene])["joint"] == 0


def test_an_object_that_vanishes_for_a_part_does_not_pass() -> None:
    video = rendered()
    video[:, 20:26] = blank(6)
    assert_unreadable(video)


def test_an_object_that_changes_its_mind_has_no_motion() -> None:
    there = rendered((Scene("red", "circle", "left"),), 23)
    readings = measure(torch.cat((there, there.flip(1)[:, 1:]), dim=1))
    assert readings.motion == UNREADABLE and readings.shape == SHAPES.index("circle")


def test_an_object_that_changes_its_shape_has_no_shape() -> None:
    parts = [rendered((Scene("red", shape, "still"),), 22) for shape in ("circle", "cross")]
    readings = measure(torch.cat(parts, dim=1))
    assert readings.shape == UNREADABLE and readings.colour == 0


def test_a_smeared_object_has_no_shape() -> None:
    frames = rendered((Scene("red", "cross", "right"),), 90)[:, ::2]
    smear = torch.stack([frames.roll(9 * step - 18, -1) for step in range(5)]).mean(0)
    assert measure(smear).shape == UNREADABLE


@pytest.mark.parametrize("motion, reversed_motion", [("left", "right"), ("up", "down"), ("still", "still")])
def test_a_video_played_backwards_shows_the_opposite_direction(motion: str, reversed_motion: str) -> None:
    video = rendered((Scene("white", "square", motion),)).flip(1)
    assert measure(video).motion == MOTIONS.index(reversed_motion)


def test_faint_noise_is_tolerated_and_lowers_cleanliness(truth: dict[str, Tensor]) -> None:
    video = rendered()
    faint = judge((video + 0.01 * noise(video)).clamp(0, 1), SOME)
    strong = judge((video + 0.04 * noise(video)).clamp(0, 1), SOME)
    assert faint["joint"].min() == 1
    assert (strong["cleanliness"] < faint["cleanliness"]).all()
    assert (faint["cleanliness"] < truth["cleanliness"]).all()


def test_jitter_lowers_smoothness(truth: dict[str, Tensor]) -> None:
    video = rendered()
    for frame in range(1, video.shape[1], 2):
        video[:, frame] = video[:, frame].roll(1, -1)
    assert (judge(video, SOME)["smoothness"] < truth["smoothness"] - 0.2).all()


def test_a_wobble_of_the_brightness_raises_flicker(truth: dict[str, Tensor]) -> None:
    wobble = 0.9 + 0.1 * torch.cos(torch.arange(45) * 2.0)[:, None, None, None]
    assert (judge(rendered() * wobble, SOME)["flicker"] > truth["flicker"] + 0.02).all()


def test_motion_energy_is_zero_exactly_for_still_scenes(truth: dict[str, Tensor]) -> None:
    still = torch.tensor([scene.motion == "still" for scene in SOME])
    assert torch.equal(truth["motion_energy"] == 0, still)


def test_a_pixel_shift_of_a_torus_changes_no_reading() -> None:
    here, there = measure(rendered()), measure(rendered().roll((17, -29), (-2, -1)))
    for name in ("colour", "shape", "motion"):
        assert torch.equal(getattr(here, name), getattr(there, name))
    torch.testing.assert_close(here.motion_error, there.motion_error, atol=1e-2, rtol=0)


def test_videos_are_read_alike_alone_and_in_a_batch() -> None:
    video = rendered()
    torch.testing.assert_close(measure(video[7:8]).overlap[0], measure(video).overlap[7])


@pytest.mark.parametrize("size", [(1, 8, 3, 64, 64), (1, 45, 3, 32, 32), (45, 3, 64, 64)])
def test_videos_of_another_size_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="at least 9 frames"):
        measure(torch.zeros(size))


def test_one_scene_a_video_is_required() -> None:
    with pytest.raises(UserError, match="2 videos came with 1 scenes"):
        judge(torch.zeros(2, 9, 3, 64, 64), SOME[:1])


def test_a_contact_sheet_has_a_row_a_video_and_a_title_at_the_left() -> None:
    sheet = contact_sheet(rendered(SOME[:3], 20), ["one", "two", "three"], columns=4)
    assert sheet.height == 3 * 132 + 4 and sheet.width > 4 * 132


def test_a_contact_sheet_without_a_title_for_each_video_is_refused() -> None:
    with pytest.raises(UserError, match="one title each"):
        contact_sheet(rendered(SOME[:2], 9), ["one"])
