"""Measures of pixels a few frames at a time are those of the whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astrolabe.rewards import flow, pixels
from astrolabe.rewards.pixels import ANY_VIDEO, PixelReward, seamlessness
from astrolabe.runtime.errors import UserError
from astrolabe.types import Video, to_video

REWARDS = [*ANY_VIDEO.values(), seamlessness("pixel_seamlessness", 1)]


def moving(frames: int) -> torch.Tensor:
    """Frames [1, t, 3, 48, 64] of bytes: a texture that goes its way unevenly, and noise."""
    rng = torch.Generator().manual_seed(frames)
    texture = torch.randint(0, 200, (3, 48, 64), generator=rng)
    steps = [texture.roll((number % 3, number * number % 11), (1, 2)) for number in range(frames)]
    return (torch.stack(steps) + torch.randint(0, 50, (frames, 3, 48, 64), generator=rng)).byte()[None]


@given(st.integers(3, 30), st.integers(1, 9))
@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: reward.name)
def test_pieces_measure_as_the_whole_does(reward: PixelReward, frames: int, at_once: int) -> None:
    video = moving(frames)
    whole = reward(to_video(video), ["x"])
    patch = pytest.MonkeyPatch()
    patch.setattr(pixels, "NUMBERS_AT_ONCE", at_once * 3 * 48 * 64)
    patch.setattr(flow, "WAVES_AT_ONCE", 1)
    pieces = reward(to_video(video), ["x"])
    one_by_one = reward.of_frames(iter(video[0].permute(0, 2, 3, 1).contiguous().numpy()))
    patch.undo()
    torch.testing.assert_close(pieces, whole, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(one_by_one, whole, rtol=1e-6, atol=1e-7)


def test_one_piece_is_measured_to_the_last_bit_as_before() -> None:
    video = to_video(moving(13)).repeat(2, 1, 1, 1, 1)
    expected = video.diff(dim=1).abs().mean((1, 2, 3, 4))
    assert torch.equal(ANY_VIDEO["pixel_motion"](video, ["x", "y"]), expected)


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: reward.name)
def test_a_long_video_is_never_held_whole(reward: PixelReward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "NUMBERS_AT_ONCE", 4 * 3 * 48 * 64)
    sizes: list[int] = []
    measure = reward.measure

    def watched(video: Video) -> torch.Tensor:
        sizes.append(video.shape[1])
        return measure(video)

    monkeypatch.setattr(reward, "measure", watched)
    given, most = 0, 0

    def frames() -> Iterator[pixels.Pixels]:
        nonlocal given, most
        for frame in moving(40)[0].permute(0, 2, 3, 1).contiguous().numpy():
            given += 1
            most = max(most, given - sum(size - reward.overlap for size in sizes))
            yield frame

    reward.of_frames(frames())
    assert max(sizes) <= 4 + reward.overlap and most <= 5 + 2 * reward.overlap


@pytest.mark.parametrize("reward", [one for one in REWARDS if one.frames > 1], ids=lambda reward: reward.name)
def test_too_few_and_too_small_frames_are_refused_one_by_one_too(reward: PixelReward) -> None:
    frames = moving(3)[0].permute(0, 2, 3, 1).contiguous().numpy()
    with pytest.raises(
        UserError, match=f"{reward.name}: videos of 1 frames came; it looks at {reward.frames} at least"
    ):
        reward.of_frames(frames[:1])
    with pytest.raises(UserError, match="frames of 2 x 64 pixels came"):
        reward.of_frames(frames[:, :2])


def test_waves_are_transformed_a_few_frames_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    waves_of = flow.waves_of

    def watched(brightness: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(brightness.shape[1])
        return waves_of(brightness, side)

    monkeypatch.setattr(flow, "waves_of", watched)
    flow.displacement(torch.rand(1, 3, 3, 720, 1280))
    assert max(seen) <= 2 and sum(seen) == 3
