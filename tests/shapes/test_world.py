"""The renderer: sizes, places and motions are what they say."""

from __future__ import annotations

import math

import pytest
import torch

from astrolabe.runtime.errors import UserError
from astrolabe.shapes.settings import CANVAS
from astrolabe.shapes.world import ALL_SCENES, BACKGROUND, COLOURS, SHAPES, Scene, Start, coverage, render, render_from


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start_at(x: float, y: float, radius: float = 10.0) -> Start:
    return Start(torch.tensor([x]), torch.tensor([y]), torch.tensor([radius]))


def test_there_are_224_different_scenes() -> None:
    assert len(set(ALL_SCENES)) == 224


def test_videos_have_the_promised_shape_type_and_range() -> None:
    video = render(ALL_SCENES[:5], 7, seeded())
    assert video.shape == (5, 7, 3, CANVAS, CANVAS) and video.dtype == torch.float32
    assert video.min() >= 0 and video.max() <= 1


def test_the_same_generator_state_gives_the_same_videos() -> None:
    assert torch.equal(render(ALL_SCENES[:4], 5, seeded(3)), render(ALL_SCENES[:4], 5, seeded(3)))


def test_a_window_is_a_part_of_the_whole_video() -> None:
    whole = render(ALL_SCENES[::9], 40, seeded(1))
    assert torch.equal(render(ALL_SCENES[::9], 10, seeded(1), first_frame=30), whole[:, 30:])


def test_how_videos_are_grouped_does_not_change_them() -> None:
    together = render_from(ALL_SCENES[::7], Start.draw(32, seeded(), 32.0), 100)
    start = Start.draw(32, seeded(), 32.0)
    alone = render_from([ALL_SCENES[7 * 5]], Start(start.x[5:6], start.y[5:6], start.radius[5:6]), 100)
    torch.testing.assert_close(together[5], alone[0])


@pytest.mark.parametrize("index", range(len(SHAPES)), ids=SHAPES)
@pytest.mark.parametrize("radius", [9.0, 12.0, 15.0])
def test_every_shape_has_the_area_of_the_circle_of_its_radius(index: int, radius: float) -> None:
    places = torch.rand(20, 2, generator=seeded()) * CANVAS
    areas = coverage(index, places, torch.full((20,), radius)).sum((1, 2))
    torch.testing.assert_close(areas, torch.full((20,), math.pi * radius**2), rtol=0.01, atol=0)


@pytest.mark.parametrize("index", range(len(SHAPES)), ids=SHAPES)
def test_the_centre_is_the_centroid(index: int) -> None:
    cover = coverage(index, torch.tensor([[31.2, 30.6]]), torch.tensor([11.0]))[0]
    pixels = torch.arange(CANVAS).float()
    assert (cover.sum(0) @ pixels / cover.sum()).item() == pytest.approx(31.2, abs=0.1)
    assert (cover.sum(1) @ pixels / cover.sum()).item() == pytest.approx(30.6, abs=0.1)


@pytest.mark.parametrize("index", range(len(SHAPES)), ids=SHAPES)
def test_the_canvas_is_a_torus(index: int) -> None:
    radius = torch.tensor([10.0])
    middle = coverage(index, torch.tensor([[32.0, 32.0]]), radius)
    corner = coverage(index, torch.tensor([[64.0, -64.0]]), radius)
    assert torch.equal(middle.roll((32, 32), (1, 2)), corner)


def test_object_and_background_have_exactly_their_colours() -> None:
    video = render_from([Scene("orange", "square", "still")], start_at(32, 32), 1)[0, 0]
    torch.testing.assert_close(video[:, 32, 32], torch.tensor(COLOURS["orange"]))
    torch.testing.assert_close(video[:, 2, 2], torch.tensor(BACKGROUND))


@pytest.mark.parametrize("motion, shift", [("left", (0, -8)), ("right", (0, 8)), ("up", (-8, 0)), ("down", (8, 0))])
def test_directions_move_eight_pixels_in_twenty_frames(motion: str, shift: tuple[int, int]) -> None:
    video = render_from([Scene("red", "triangle", motion)], start_at(20, 30), 21)[0]
    torch.testing.assert_close(video[0].roll(shift, (1, 2)), video[20], atol=1e-4, rtol=0)


@pytest.mark.parametrize("motion", ["bounce", "pulse", "still"])
def test_motions_in_place_repeat_every_sixteen_frames(motion: str) -> None:
    video = render_from([Scene("red", "cross", motion)], start_at(30, 30), 40)[0]
    torch.testing.assert_close(video[:24], video[16:], atol=1e-4, rtol=0)
    assert (motion == "still") == torch.equal(video[0], video[5])


def test_a_bounce_goes_ten_pixels_up_from_where_it_starts() -> None:
    video = render_from([Scene("red", "circle", "bounce")], start_at(30, 40), 9)[0]
    torch.testing.assert_close(video[0].roll(-10, 1), video[8], atol=1e-4, rtol=0)


def test_a_word_the_world_does_not_know_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'gren' is not a colour.*green"):
        Scene("gren", "circle", "up")


def test_a_video_without_frames_is_refused() -> None:
    with pytest.raises(UserError, match="frames is 0"):
        render(ALL_SCENES[:1], 0, seeded())
