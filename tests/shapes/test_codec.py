"""The codec: its geometry, its causality, and streaming that equals decoding at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from astrolabe.pretrain.codec import psnr, train_codec
from astrolabe.runtime.errors import UserError
from astrolabe.shapes.codec import Codec
from astrolabe.shapes.world import ALL_SCENES, render


@pytest.fixture(scope="module")
def codec() -> Codec:
    torch.manual_seed(0)
    return Codec(width=32).eval()


def some_video(frames: int) -> torch.Tensor:
    return render(ALL_SCENES[::75], frames, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("frames, latent_frames", [(1, 1), (5, 2), (45, 12)])
@torch.no_grad()
def test_sizes_follow_the_geometry_both_ways(codec: Codec, frames: int, latent_frames: int) -> None:
    video = some_video(frames)
    latents = codec.encode(video)
    assert latents.shape == (3, latent_frames, 16, 8, 8) and latents.dtype == torch.float32
    decoded, state = codec.decode(latents)
    assert decoded.shape == video.shape and decoded.min() >= 0 and decoded.max() <= 1
    assert torch.equal(state.previous, latents[:, -1])


@torch.no_grad()
def test_canvases_need_not_be_square(codec: Codec) -> None:
    video = torch.rand(2, 5, 3, 16, 40)
    assert codec.encode(video).shape == (2, 2, 16, 2, 5)
    assert codec.decode(codec.encode(video))[0].shape == video.shape


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
@settings(deadline=None, max_examples=25)
def test_decoding_chunk_by_chunk_equals_decoding_at_once(codec: Codec, chunks: list[int]) -> None:
    latents = torch.randn(2, sum(chunks), 16, 8, 8, generator=torch.Generator().manual_seed(len(chunks)))
    with torch.no_grad():
        at_once, final = codec.decode(latents)
        state, parts = None, []
        for chunk in latents.split(chunks, dim=1):
            part, state = codec.decode(chunk, state)
            parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=1), at_once, atol=1e-6, rtol=0)
    assert state is not None and torch.equal(state.previous, final.previous)


@torch.no_grad()
def test_the_future_changes_neither_latents_nor_frames(codec: Codec) -> None:
    video = some_video(13)
    changed = video.clone()
    changed[:, 9:] = 0.5
    before, after = codec.encode(video), codec.encode(changed)
    torch.testing.assert_close(before[:, :3], after[:, :3], atol=1e-6, rtol=0)
    assert not torch.allclose(before[:, 3], after[:, 3])
    torch.testing.assert_close(codec.decode(before)[0][:, :9], codec.decode(after)[0][:, :9], atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_latent_reaches_its_own_frames_and_the_next_four_only(codec: Codec) -> None:
    latents = torch.randn(1, 5, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = latents.clone()
    changed[:, 1] += 1
    difference = (codec.decode(latents)[0] - codec.decode(changed)[0]).abs().amax((0, 2, 3, 4))
    assert (difference > 1e-4).tolist() == [False] + [True] * 8 + [False] * 8


@torch.no_grad()
def test_it_runs_under_bfloat16_autocast_and_returns_float32(codec: Codec) -> None:
    video = some_video(9)
    exact = codec.decode(codec.encode(video))[0]
    with torch.autocast("cpu", torch.bfloat16):
        latents = codec.encode(video)
        decoded, _ = codec.decode(latents)
    assert latents.dtype == decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, exact, atol=0.05, rtol=0)


def test_gradients_flow_from_frames_to_latents(codec: Codec) -> None:
    latents = torch.randn(1, 3, 16, 8, 8, requires_grad=True)
    codec.decode(latents)[0].sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0


@pytest.mark.parametrize("frames, advice", [(44, "use 41 or 45"), (2, "use 1 or 5"), (4, "use 1 or 5")])
def test_frame_counts_that_do_not_fit_are_refused_with_the_nearest(codec: Codec, frames: int, advice: str) -> None:
    with pytest.raises(UserError, match=advice):
        codec.encode(torch.zeros(1, frames, 3, 64, 64))


def test_canvases_that_do_not_fit_are_refused(codec: Codec) -> None:
    with pytest.raises(UserError, match="multiples of 8"):
        codec.encode(torch.zeros(1, 1, 3, 60, 64))


def test_the_full_codec_is_small() -> None:
    assert sum(weights.numel() for weights in Codec().parameters()) < 1_600_000


def test_a_few_steps_of_training_already_beat_an_empty_picture() -> None:
    codec = train_codec(seed=0, steps=40, batch=8)
    video = some_video(9)
    with torch.no_grad():
        decoded, _ = codec.decode(codec.encode(video))
    assert not codec.training
    assert psnr(decoded, video) > psnr(video.median().expand_as(video), video)
