"""Candidates that share a frozen history see what they would see with a copy of it each."""

from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from astrolabe.models.cache import RollingCache
from astrolabe.models.candidates import ClipContext
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.models.wan.transformer import Conditioning
from astrolabe.types import per_frame
from tests.conftest import LATENT, tiny_stream, tiny_wan

PROMPTS, SIGMA = 2, 0.8333
STREAMS = st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(0, 7), st.sampled_from(("absolute", "relative")))


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def history_of(model: WanGenerator, text: Tensor, chunks: int, skipped: int = 0) -> RollingCache:
    """A cache with so many clean chunks of a video a prompt; ``skipped`` frames are left out behind the sink."""
    condition, size = model.condition(text), model.stream.chunk_frames
    cache = model.new_cache(len(text), size)
    for chunk in range(chunks):
        if chunk * size == model.stream.sink_frames:
            cache.skip(skipped)
        model.commit(draw(chunk, len(text), size, *LATENT), condition, cache)
    return cache


@torch.no_grad()
def streamed(model: WanGenerator, condition: object, cache: object, noisy: Tensor, clean: Tensor) -> Tensor:
    """What the sampler computes of every noisy chunk while the clips' clean chunks are committed one by one."""
    out, frame = [], 0
    for first, end in model.stream.chunks(noisy.shape[1]):
        part = noisy[:, first:end]
        out.append(model.velocity(part, per_frame(SIGMA, part), condition, cache))  # type: ignore[arg-type]
        model.commit(clean[:, first:end], condition, cache)  # type: ignore[arg-type]
        frame = end
    assert frame == noisy.shape[1]
    return torch.cat(out, 1)


def in_one_pass(
    model: WanGenerator, condition: Conditioning, history: RollingCache, noisy: Tensor, clean: Tensor
) -> tuple[Tensor, ClipContext]:
    """The training forward: clean clips first, as the context, without gradient."""
    context = model.context(clean, condition, history)
    assert isinstance(context, ClipContext)
    return model.velocity_in_context(noisy, per_frame(SIGMA, noisy), condition, context), context


@settings(max_examples=40, deadline=None)
@given(STREAMS, st.integers(0, 4), st.integers(1, 3), st.integers(1, 3), st.sampled_from((0, 6)))
@example((1, 2, 0, "relative"), 0, 5, 2, 0)  # a sink of the clip's own, which moves
def test_a_shared_history_equals_a_copy_each_streamed_and_in_one_pass(
    shape: tuple[int, int, int, str], before: int, chunks: int, group: int, skipped: int
) -> None:
    chunk, sink, extra, positions = shape
    model = tiny_wan(tiny_stream(chunk, sink + chunk + extra, sink, positions))
    text = draw(90, PROMPTS, 5, 8)
    noisy, clean = (draw(seed, PROMPTS * group, chunk * chunks, *LATENT) for seed in (91, 92))
    history = history_of(model, text, before, skipped)
    copied = streamed(model, model.condition(text.repeat_interleave(group, 0)), history.fork(group), noisy, clean)
    condition = model.condition(text)
    own = model.new_candidates(history, group, chunk * chunks)
    shared = streamed(model, condition, own, noisy, clean)
    torch.testing.assert_close(shared, copied, rtol=0, atol=1e-9)
    with torch.no_grad():
        whole, _ = in_one_pass(model, condition, history, noisy, clean)
    torch.testing.assert_close(whole, copied, rtol=0, atol=1e-9)
    assert own.position == history.position + chunk * chunks


@settings(max_examples=15, deadline=None)
@given(STREAMS, st.integers(0, 3), st.integers(1, 3))
def test_a_candidate_does_not_depend_on_which_others_are_run_beside_it(
    shape: tuple[int, int, int, str], before: int, chunks: int
) -> None:
    chunk, sink, extra, positions = shape
    model = tiny_wan(tiny_stream(chunk, sink + chunk + extra, sink, positions))
    text = draw(90, 1, 5, 8)
    noisy, clean = (draw(seed, 4, chunk * chunks, *LATENT) for seed in (91, 92))
    history, condition = history_of(model, text, before), model.condition(text)
    together, _ = in_one_pass(model, condition, history, noisy, clean)
    for first in range(0, 4, 2):
        rows = slice(first, first + 2)
        part, _ = in_one_pass(model, condition, history, noisy[rows], clean[rows])
        torch.testing.assert_close(part, together[rows], rtol=0, atol=1e-9)


def test_no_gradient_reaches_the_history_or_the_context() -> None:
    model = tiny_wan(tiny_stream(2, 6, 2, "relative"))
    text = draw(90, PROMPTS, 5, 8)
    history = history_of(model, text, 4)
    noisy, clean = (draw(seed, PROMPTS * 3, 4, *LATENT).requires_grad_() for seed in (91, 92))
    velocity, context = in_one_pass(model, model.condition(text), history, noisy, clean)
    velocity.sum().backward()
    assert noisy.grad is not None and noisy.grad.abs().max() > 0 and clean.grad is None
    for buffer in (*history.keys, *history.values, *context.keys, *context.values):
        assert isinstance(buffer, torch.Tensor) and not buffer.requires_grad
    assert any(parameter.grad is not None for parameter in model.transformer.parameters())


def test_the_history_is_held_once_and_the_clips_hold_only_themselves() -> None:
    model = tiny_wan(tiny_stream(3, 12, 3))
    history = history_of(model, draw(90, 1, 5, 8), 4)
    before = [buffer.clone() for buffer in (*history.keys, *history.values)]
    few, many = model.new_candidates(history, 2, 6), model.new_candidates(history, 8, 6)
    assert many.nbytes == 4 * few.nbytes and few.nbytes == 2 * 6 * history.nbytes // 12
    streamed(model, model.condition(draw(90, 1, 5, 8)), many, draw(91, 8, 6, *LATENT), draw(92, 8, 6, *LATENT))
    assert all(torch.equal(*pair) for pair in zip(before, (*history.keys, *history.values), strict=True))
