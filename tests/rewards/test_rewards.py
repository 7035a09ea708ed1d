"""Rewards are checked when they are used, and the oracles judge as rewards what they judge alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from astrolabe.rewards.base import Member, score
from astrolabe.rewards.opening import Opening
from astrolabe.rewards.pixels import ANY_VIDEO
from astrolabe.rewards.settings import RewardSettings
from astrolabe.rewards.shapes import OracleReward, Oracles, RandomReward
from astrolabe.runtime.errors import UserError
from astrolabe.shapes.captions import caption
from astrolabe.shapes.oracles import judge
from astrolabe.shapes.world import Scene, render
from astrolabe.types import Footage, Rollout, to_frames, to_video
from astrolabe.words import Span

RED, BLUE = Scene("red", "circle", "left"), Scene("blue", "square", "still")


def evenly(share: float) -> dict[Span, float]:
    """A share that is the same whatever is judged."""
    return {"mixed": share, "clip": share, "video": share}


def rollout() -> Rollout:
    """Ground truth of a prompt, and of another in its place."""
    video = render([RED, BLUE], 45, torch.Generator().manual_seed(0))
    footage = Footage(torch.arange(2), to_frames(video), (caption(RED, 0),) * 2, evenly(1.0))
    return Rollout((caption(RED, 0),), 2, torch.zeros(2, 12, 16, 8, 8), (footage,), ())


def test_the_right_video_scores_above_the_wrong_one_on_every_oracle() -> None:
    names = ("joint", "colour", "shape", "motion", "colour_fit", "shape_fit", "motion_fit")
    oracles = Oracles()
    scores = score([Member(OracleReward(name, name, oracles)) for name in names], rollout())
    assert scores.names == names and scores.values.shape == (2, 7)
    assert (scores.values[0] > scores.values[1]).all()


def test_the_oracles_read_videos_with_larger_pixels_too() -> None:
    video = render([RED, BLUE], 45, torch.Generator().manual_seed(0))
    reward, prompts = OracleReward("motion_fit", "motion_fit", Oracles()), [caption(RED, 0), caption(BLUE, 0)]
    large = video.repeat_interleave(4, 3).repeat_interleave(4, 4)
    torch.testing.assert_close(reward(large, prompts), reward(video, prompts), rtol=1e-4, atol=1e-4)


def test_the_oracles_look_once_at_the_same_videos_and_again_at_others(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def counted(video: Tensor, scenes: Sequence[Scene]) -> dict[str, Tensor]:
        looks.append(len(video))
        return judge(video, scenes)

    monkeypatch.setattr("astrolabe.rewards.shapes.judge", counted)
    oracles, given = Oracles(), rollout()
    rewards = [OracleReward(name, name, oracles) for name in ("joint", "colour", "shape")]
    suite = [Member(reward) for reward in rewards]
    before = score(suite, given).values
    assert looks == [2]
    given.footage[0].frames[0].zero_()
    after = score(suite, given).values
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
    with pytest.raises(UserError, match="broken"):
        score([Member(Broken(values))], rollout())


def test_pixel_rewards_tell_motion_from_flicker_and_need_no_prompt() -> None:
    still = torch.full((1, 9, 3, 8, 8), 0.5)
    steady = torch.linspace(0, 1, 9).view(1, 9, 1, 1, 1).expand(1, 9, 3, 8, 8)
    flicker = torch.tensor([0.4, 0.6] * 4 + [0.4]).view(1, 9, 1, 1, 1).expand(1, 9, 3, 8, 8)
    video = torch.cat((still, steady, flicker))
    motion, steadiness = (ANY_VIDEO[name](video, ["x"] * 3) for name in ("pixel_motion", "pixel_steadiness"))
    torch.testing.assert_close(motion, torch.tensor([0.0, 0.125, 0.2]))
    torch.testing.assert_close(steadiness, torch.tensor([0.0, 0.0, -0.2]))


def test_seamlessness_knows_the_chunks_of_the_model() -> None:
    steps = (torch.arange(33) >= 21).float()  # a jump where the second chunk of three latent frames ends
    video = (0.01 * torch.arange(33) + 0.3 * steps).view(1, 33, 1, 1, 1).expand(1, 33, 3, 8, 8)
    seamless = [
        Opening(chunk_frames=chunk).reward(RewardSettings(name="pixel_seamlessness"))(video, ["x"]).item()
        for chunk in (3, 4)
    ]
    assert seamless == pytest.approx([-0.16 / 0.01, -0.01 / 0.02], rel=1e-3)


def test_the_score_of_a_clip_is_that_of_its_parts_each_under_its_own_prompt() -> None:
    video = to_frames(render([RED, BLUE], 45, torch.Generator().manual_seed(0)))
    motion = ANY_VIDEO["pixel_motion"]
    parts = (
        Footage(torch.tensor([1, 0]), video.flip(0)[:, :9], ("x", "x"), evenly(0.25)),
        Footage(torch.tensor([0, 1]), video[:, 9:], ("y", "y"), evenly(0.75)),
    )
    given = Rollout(("x",), 2, torch.zeros(2, 12, 16, 8, 8), parts, ())
    expected = 0.25 * motion(to_video(video[:, :9]), ["x"] * 2) + 0.75 * motion(to_video(video[:, 9:]), ["y"] * 2)
    torch.testing.assert_close(score([Member(motion)], given).values[:, 0], expected)


def test_a_reward_may_judge_the_clip_the_video_so_far_or_both_mixed() -> None:
    video = to_frames(render([RED, BLUE], 45, torch.Generator().manual_seed(0)))
    captions = ("x", "x")
    parts = (
        Footage(torch.arange(2), video[:, 20:], captions, {"clip": 1.0, "video": 0.0, "mixed": 0.25}),
        Footage(torch.arange(2), video, captions, {"clip": 0.0, "video": 1.0, "mixed": 0.75}, clip=False),
    )
    motion = ANY_VIDEO["pixel_motion"]
    given = Rollout(("x",), 2, torch.zeros(2, 12, 16, 8, 8), parts, ())
    spans: tuple[Span, ...] = ("clip", "video", "mixed")
    clip, whole, mixed = score([Member(motion, span=span) for span in spans], given).values.T
    torch.testing.assert_close(clip, motion(to_video(video[:, 20:]), captions))
    torch.testing.assert_close(whole, motion(to_video(video), captions))
    torch.testing.assert_close(mixed, 0.25 * clip + 0.75 * whole)


class Counting:
    """Its score is the number of frames it saw; it doubts half of that."""

    name = "counting"

    def __call__(self, video: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.judge(video, prompts)[0]

    def judge(self, video: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        seen = torch.full((len(video),), float(video.shape[1]))
        return seen, seen / 2


def test_a_reward_may_see_a_few_frames_evenly_spread_with_both_ends() -> None:
    seen: list[Tensor] = []

    class Looking(Counting):
        def judge(self, video: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
            seen.append(video)
            return super().judge(video, prompts)

    given = rollout()
    assert score([Member(Looking(), frames=4), Member(Looking(), frames=99)], given).values[0].tolist() == [4.0, 45.0]
    torch.testing.assert_close(seen[0], to_video(given.footage[0].frames)[:, [0, 15, 29, 44]])


def test_a_rewards_own_uncertainty_stands_beside_its_score() -> None:
    scores = score([Member(Counting()), Member(ANY_VIDEO["pixel_motion"])], rollout())
    assert scores.uncertainty is not None and scores.uncertainty.tolist() == [[22.5, 0.0]] * 2


def test_a_few_samples_without_a_score_are_dropped_and_more_stop_the_run() -> None:
    broken = Member(Broken(torch.tensor([1.0, float("inf")])))
    scores = score([broken], rollout(), max_dropped=0.5)
    assert scores.values[0].item() == 1.0 and bool(scores.values[1].isnan())
    with pytest.raises(UserError, match=r"1 of 2 samples got no finite score \(broken 1\), more than max_dropped=0\.4"):
        score([broken], rollout(), max_dropped=0.4)
    judge = Member(Broken(torch.tensor([1.0, float("nan")])), role="judge")
    score([Member(ANY_VIDEO["pixel_motion"]), judge], rollout())  # what is not trained on drops nobody
