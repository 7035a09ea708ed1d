"""Rewards are checked when they are used, and the oracles judge as rewards what they judge alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from astrolabe.rewards.base import score
from astrolabe.rewards.pixels import PixelMotion, PixelSteadiness
from astrolabe.rewards.shapes import OracleReward, Oracles, RandomReward
from astrolabe.runtime.errors import UserError
from astrolabe.shapes.captions import caption
from astrolabe.shapes.oracles import judge
from astrolabe.shapes.world import Scene, render
from astrolabe.types import Footage, Rollout, to_frames, to_video

RED, BLUE = Scene("red", "circle", "left"), Scene("blue", "square", "still")


def rollout() -> Rollout:
    """Ground truth of a prompt, and of another in its place."""
    video = render([RED, BLUE], 45, torch.Generator().manual_seed(0))
    footage = Footage(torch.arange(2), to_frames(video), (caption(RED, 0),) * 2, 1.0)
    return Rollout((caption(RED, 0),), 2, torch.zeros(2, 12, 16, 8, 8), (footage,), ())


def test_the_right_video_scores_above_the_wrong_one_on_every_oracle() -> None:
    names = ("joint", "colour", "shape", "motion", "colour_fit", "shape_fit", "motion_fit")
    oracles = Oracles()
    scores = score([OracleReward(name, name, oracles) for name in names], rollout())
    assert scores.names == names and scores.values.shape == (2, 7)
    assert (scores.values[0] > scores.values[1]).all()


def test_the_oracles_look_once_at_the_same_videos_and_again_at_others(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def counted(video: Tensor, scenes: Sequence[Scene]) -> dict[str, Tensor]:
        looks.append(len(video))
        return judge(video, scenes)

    monkeypatch.setattr("astrolabe.rewards.shapes.judge", counted)
    oracles, given = Oracles(), rollout()
    rewards = [OracleReward(name, name, oracles) for name in ("joint", "colour", "shape")]
    before = score(rewards, given).values
    assert looks == [2]
    given.footage[0].frames[0].zero_()
    after = score(rewards, given).values
    assert len(looks) == 2 and after[0].sum() == 0 and torch.equal(after[1], before[1])
    video = to_video(given.footage[0].frames)
    rewards[0](video, [caption(BLUE, 0)] * 2)
    rewards[0](video.clone(), [caption(BLUE, 0)] * 2)
    assert len(looks) == 4


def test_steadiness_is_the_opposite_of_flicker() -> None:
    video = to_video(rollout().footage[0].frames)
    flickering = video * (1 + 0.2 * (torch.arange(45) % 2)[None, :, None, None, None])
    reward = OracleReward("steadiness", "flicker", Oracles(), sign=-1.0)
    prompts = [caption(RED, 0), caption(BLUE, 0)]
    assert (reward(video, prompts) > reward(flickering.clamp(0, 1), prompts)).all()


def test_the_random_control_repeats_itself_and_knows_nothing() -> None:
    video, prompts = to_video(rollout().footage[0].frames), ["x", "y"]
    assert torch.equal(RandomReward(0)(video, prompts), RandomReward(0)(video, prompts))
    assert RandomReward(0)(video, prompts)[0] != RandomReward(0)(video, prompts)[1]


class Broken:
    """A reward that returns what it is given."""

    name = "broken"

    def __init__(self, values: Tensor):
        self.values = values

    def __call__(self, video: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.values


@pytest.mark.parametrize(
    "values", [torch.tensor([1.0, float("nan")]), torch.ones(3), torch.tensor([float("inf"), 0.0])]
)
def test_a_reward_that_returns_no_finite_score_a_video_is_named(values: Tensor) -> None:
    with pytest.raises(UserError, match="'broken'"):
        score([Broken(values)], rollout())


def test_pixel_rewards_tell_motion_from_flicker_and_need_no_prompt() -> None:
    still = torch.full((1, 9, 3, 8, 8), 0.5)
    steady = torch.linspace(0, 1, 9).view(1, 9, 1, 1, 1).expand(1, 9, 3, 8, 8)
    flicker = torch.tensor([0.4, 0.6] * 4 + [0.4]).view(1, 9, 1, 1, 1).expand(1, 9, 3, 8, 8)
    video = torch.cat((still, steady, flicker))
    motion, steadiness = PixelMotion()(video, ["x"] * 3), PixelSteadiness()(video, ["x"] * 3)
    torch.testing.assert_close(motion, torch.tensor([0.0, 0.125, 0.2]))
    torch.testing.assert_close(steadiness, torch.tensor([0.0, 0.0, -0.2]))


def test_the_score_of_a_clip_is_that_of_its_parts_each_under_its_own_prompt() -> None:
    video = to_frames(render([RED, BLUE], 45, torch.Generator().manual_seed(0)))
    motion = PixelMotion()
    parts = (
        Footage(torch.tensor([1, 0]), video.flip(0)[:, :9], ("x", "x"), 0.25),
        Footage(torch.tensor([0, 1]), video[:, 9:], ("y", "y"), 0.75),
    )
    given = Rollout(("x",), 2, torch.zeros(2, 12, 16, 8, 8), parts, ())
    expected = 0.25 * motion(to_video(video[:, :9]), ["x"] * 2) + 0.75 * motion(to_video(video[:, 9:]), ["y"] * 2)
    torch.testing.assert_close(score([motion], given).values[:, 0], expected)
