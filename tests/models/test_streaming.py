"""The cache, the memories and the one rule of visibility agree with each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from astrolabe.models.attention import attention
from astrolabe.models.cache import RollingCache
from astrolabe.models.rope import rotate, rotation, shift
from astrolabe.models.visibility import visible
from astrolabe.models.wan.config import WanConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.runtime.errors import UserError
from astrolabe.types import per_frame
from tests.conftest import LATENT, tiny_stream, tiny_wan


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    """Equal to 1e-9."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def draw(batch: int, frames: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy and clean latents and text, float64."""
    rng = torch.Generator().manual_seed(seed)
    noisy, clean = torch.randn(2, batch, frames, *LATENT, generator=rng, dtype=torch.float64)
    return noisy, clean, torch.randn(batch, 5, 8, generator=rng, dtype=torch.float64)


@torch.no_grad()
def stream_velocities(model: WanGenerator, noisy: Tensor, clean: Tensor, text: Tensor, sigma: float) -> Tensor:
    """Velocities of every noisy chunk when the history is ``clean``, by streaming with the cache."""
    condition, cache = model.condition(text), model.new_cache(len(noisy), noisy.shape[1])
    out = []
    for first, end in model.stream.chunks(noisy.shape[1]):
        part = noisy[:, first:end]
        model.velocity(torch.randn_like(part), per_frame(1.0, part), condition, cache)  # an earlier denoising step
        out.append(model.velocity(part, per_frame(sigma, part), condition, cache))
        model.commit(clean[:, first:end], condition, cache)
    return torch.cat(out, 1)


STREAMS = st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(0, 7), st.sampled_from(("absolute", "relative")))


@settings(max_examples=30, deadline=None)
@given(STREAMS, st.integers(1, 5))
def test_streaming_with_the_cache_equals_one_teacher_forced_forward(
    shape: tuple[int, int, int, str], chunks: int
) -> None:
    chunk, sink, extra, positions = shape
    model = tiny_wan(tiny_stream(chunk, sink + chunk + extra, sink, positions))
    noisy, clean, text = draw(2, chunk * chunks)
    condition = model.condition(text)
    forward = model.velocity_in_context(noisy, per_frame(0.7, noisy), condition, model.context(clean, condition))
    assert_equal(stream_velocities(model, noisy, clean, text, 0.7), forward)


def test_streaming_without_a_window_equals_one_teacher_forced_forward_whatever_was_reserved() -> None:
    model = tiny_wan(tiny_stream(2))
    noisy, clean, text = draw(1, 10)
    condition = model.condition(text)
    forward = model.velocity_in_context(noisy, per_frame(0.7, noisy), condition, model.context(clean, condition))
    reserve = model.new_cache
    model.new_cache = lambda batch, frames: reserve(batch, 3)  # type: ignore[method-assign]
    assert_equal(stream_velocities(model, noisy, clean, text, 0.7), forward)


def test_a_batch_element_equals_the_same_sample_alone(wan: WanGenerator) -> None:
    noisy, clean, text = draw(3, 6)
    together = stream_velocities(wan, noisy, clean, text, 0.9)
    for i in range(3):
        alone = stream_velocities(wan, noisy[i : i + 1], clean[i : i + 1], text[i : i + 1], 0.9)
        assert_equal(together[i : i + 1], alone)


def test_no_chunk_sees_the_future(wan: WanGenerator) -> None:
    noisy, clean, text = draw(1, 9)
    before = stream_velocities(wan, noisy, clean, text, 0.8)
    forward = wan.velocity_block_causal(noisy, per_frame(0.8, noisy), wan.condition(text))
    noisy[:, 6:] += 1
    clean[:, 6:] += 1
    assert_equal(stream_velocities(wan, noisy, clean, text, 0.8)[:, :6], before[:, :6])
    changed = wan.velocity_block_causal(noisy, per_frame(0.8, noisy), wan.condition(text))
    assert_equal(changed[:, :6], forward[:, :6])
    assert (changed[:, 6:] - forward[:, 6:]).abs().max() > 1e-3


def test_every_chunk_sees_its_past(wan: WanGenerator) -> None:
    noisy, clean, text = draw(1, 6)
    before = stream_velocities(wan, noisy, clean, text, 0.8)
    clean[:, 0] += 1
    assert (stream_velocities(wan, noisy, clean, text, 0.8)[:, 3:] - before[:, 3:]).abs().max() > 1e-3


def test_frames_outside_of_window_and_sink_are_forgotten() -> None:
    model = tiny_wan(tiny_stream(1, window=3, sink=1))
    noisy, clean, text = draw(1, 6)
    one_layer = model.transformer.blocks[:1]
    model.transformer.blocks = one_layer  # one block: no memory of memories
    before = stream_velocities(model, noisy, clean, text, 0.8)[:, 5]
    for frame, remembered in ((0, True), (1, False), (3, False), (4, True)):
        changed = clean.clone()
        changed[:, frame] += 1
        moved = (stream_velocities(model, noisy, changed, text, 0.8)[:, 5] - before).abs().max().item()
        assert (moved > 1e-6) is remembered, f"frame {frame}"


@given(st.integers(0, 30), st.integers(1, 4), st.integers(0, 5), st.integers(0, 9))
def test_a_window_holds_the_sink_and_the_most_recent_frames(first: int, chunk: int, sink: int, extra: int) -> None:
    window = sink + chunk + extra
    kept, recent = visible(first, first + chunk, window, sink)
    seen = set(kept) | set(recent)
    assert seen == {f for f in range(first) if f < sink or f >= first + chunk - (window - sink)}
    assert len(seen) + chunk <= window and not set(kept) & set(recent)


@torch.no_grad()
def test_the_cache_accounts_for_its_memory_exactly_and_does_not_grow() -> None:
    model = tiny_wan(tiny_stream(3, window=9))
    noisy, clean, text = draw(2, 30)
    cache, condition = model.new_cache(2, 30), model.condition(text)
    assert cache.nbytes == 0
    places = set()
    for first in range(0, 30, 3):
        model.velocity(noisy[:, first : first + 3], per_frame(1.0, noisy[:, :3]), condition, cache)
        model.commit(clean[:, first : first + 3], condition, cache)
        places.add(tuple(buffer.data_ptr() for buffer in (*cache.keys, *cache.values)))
    assert len(places) == 1
    expected = model.transformer.config.cache_bytes(2, 9, model.frame_tokens, itemsize=8)
    assert cache.nbytes == expected == sum(b.numel() * 8 for b in (*cache.keys, *cache.values))


def test_a_frame_of_wan_1_3b_takes_287_and_a_half_megabytes() -> None:
    wan = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, freq_dim=256, text_dim=4096)
    assert wan.cache_bytes(1, 1, 30 * 52, itemsize=2) == 287_539_200


@torch.no_grad()
def test_forks_continue_alike_and_independently(wan: WanGenerator) -> None:
    noisy, clean, text = draw(2, 6)
    condition, cache = wan.condition(text), wan.new_cache(2, 6)
    wan.commit(clean[:, :3], condition, cache)
    twin = cache.fork(2)
    doubled = [(k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)) for k, v in condition]
    level = per_frame(0.8, noisy[:, 3:])
    alone = wan.velocity(noisy[:, 3:], level, condition, cache)
    forked = wan.velocity(
        noisy[:, 3:].repeat_interleave(2, 0), per_frame(0.8, noisy[:, 3:].repeat(2, 1, 1, 1, 1)), doubled, twin
    )
    assert_equal(forked[::2], alone)
    assert_equal(forked[1::2], alone)
    wan.commit(clean[:, 3:] + 5, condition, cache)
    again = wan.velocity(
        noisy[:, 3:].repeat_interleave(2, 0), per_frame(0.8, noisy[:, 3:].repeat(2, 1, 1, 1, 1)), doubled, twin
    )
    assert_equal(again, forked)
    assert twin.frames == 3 and cache.frames == 6


def test_a_streamed_chunk_has_the_gradient_of_the_forward_with_constant_context() -> None:
    model = tiny_wan(tiny_stream(2, window=6, sink=1))
    noisy, clean, text = draw(1, 10)
    weight = model.transformer.get_parameter("blocks.0.self_attn.k.weight")
    condition = model.condition(text)
    forward = model.velocity_in_context(noisy, per_frame(0.7, noisy), condition, model.context(clean, condition))
    (expected,) = torch.autograd.grad(forward.square().sum(), weight)
    condition, cache, total = model.condition(text), model.new_cache(1, 10), torch.zeros((), dtype=torch.float64)
    for first in range(0, 10, 2):
        part = noisy[:, first : first + 2]
        total = total + model.velocity(part, per_frame(0.7, part), condition, cache).square().sum()
        model.commit(clean[:, first : first + 2], condition, cache)
    (streamed,) = torch.autograd.grad(total, weight)
    torch.testing.assert_close(streamed, expected, rtol=1e-9, atol=1e-9)
    assert not any(buffer.requires_grad for buffer in (*cache.keys, *cache.values))


@given(st.integers(0, 100_000), st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_moving_rotated_keys_equals_rotating_them_elsewhere(frame: int, moved: int) -> None:
    device = torch.device("cpu")
    keys = torch.randn(1, 8, 2, 24, dtype=torch.float64)
    here = rotate(keys, rotation(frame, 2, 2, 2, 24, torch.float64, device))
    there = rotate(keys, rotation(frame + moved, 2, 2, 2, 24, torch.float64, device))
    assert_equal(shift(here, moved), there)


def test_plain_and_fused_attention_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = torch.randn(3, 2, 8, 2, 16, dtype=torch.float64)
    plain = attention(query, key, value)
    monkeypatch.setattr("astrolabe.models.attention.FEW_KEYS", 0)
    assert_equal(plain, attention(query, key, value))


@pytest.mark.parametrize(("frames", "words"), [(7, "the nearest are 6 and 9"), (2, "the nearest is 3"), (0, "is 3")])
def test_frames_that_no_chunking_fits_are_refused_with_the_nearest(frames: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny_stream(3).chunks(frames)


def test_a_window_that_cannot_hold_sink_and_chunk_is_refused() -> None:
    with pytest.raises(UserError, match="at least 6"):
        tiny_stream(3, window=5, sink=3)


def test_the_cache_grows_only_up_to_its_window() -> None:
    model = tiny_wan(tiny_stream(3, window=9))
    cache = RollingCache(model.transformer.config, model.stream, 1, 6, 3, torch.float64)
    _, clean, text = draw(1, 15)
    condition = model.condition(text)
    for first in range(0, 15, 3):
        model.commit(clean[:, first : first + 3], condition, cache)
    assert cache.slots == 9


@pytest.mark.parametrize(("latent", "video"), [(1, 1), (3, 9), (21, 81), (12, 45)])
def test_a_stream_knows_how_long_its_latent_frames_are(latent: int, video: int) -> None:
    stream = tiny_stream()
    assert stream.video_frames(latent) == video and stream.seconds(latent) == video / 16
    assert (stream.latent_frames(video), stream.latent_frames(video - 1)) == (latent, latent - 1)
