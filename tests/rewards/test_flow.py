"""Displacement is what was displaced."""

from __future__ import annotations

import pytest
import torch

from astrolabe.rewards.flow import displacement, dynamic_degree, flow_smoothness
from astrolabe.rewards.pixels import ANY_VIDEO
from astrolabe.runtime.errors import UserError
from astrolabe.types import Video


def moving(steps: list[tuple[int, int]], side: int = 64) -> Video:
    """A textured picture that moves by each of the steps (down, right) in turn."""
    texture = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    frames = [texture]
    for step in steps:
        frames.append(frames[-1].roll(step, (2, 3)))
    return torch.stack(frames, 1)


@pytest.mark.parametrize("step", [(0, 0), (2, 3), (-4, 1), (0, -6)])
def test_every_part_moves_as_the_picture_does(step: tuple[int, int]) -> None:
    found = displacement(moving([step] * 3))
    assert bool((found == torch.tensor(step)).all())


def test_where_there_is_nothing_to_follow_nothing_moves() -> None:
    video = torch.full((1, 4, 3, 64, 64), 0.3) + torch.rand(1, 4, 3, 64, 64) / 100
    assert not displacement(video).any() and dynamic_degree(video) == 0 and flow_smoothness(video) == 0


def test_what_moves_further_is_livelier_at_any_size() -> None:
    slow, fast = moving([(0, 2)] * 3), moving([(0, 6)] * 3)
    assert dynamic_degree(slow).item() == pytest.approx(100 * 2 / 64)
    assert dynamic_degree(fast).item() == pytest.approx(100 * 6 / 64)
    double = fast.repeat_interleave(2, 3).repeat_interleave(2, 4)
    assert dynamic_degree(double).item() == pytest.approx(dynamic_degree(fast).item(), rel=0.05)


def test_a_small_thing_that_moves_counts() -> None:
    video = torch.zeros(1, 4, 3, 128, 128)
    for frame in range(4):
        video[0, frame, :, 20:30, 20 + 5 * frame : 30 + 5 * frame] = 1
    assert dynamic_degree(video).item() > 100 * 2 / 128


def test_jerks_are_less_smooth_than_a_steady_pace() -> None:
    steady, jerky = moving([(0, 3)] * 6), moving([(0, 0), (0, 6)] * 3)
    assert flow_smoothness(steady) == 0 and flow_smoothness(jerky).item() == pytest.approx(-100 * 6 / 64)
    with pytest.raises(UserError, match="videos of 2 frames came; it looks at 3"):  # too short to tell
        ANY_VIDEO["flow_smoothness"](steady[:, :2], ["x"])
