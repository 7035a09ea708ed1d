"""The training forward against a reference that masks one full sequence; and however the work is split, one result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from astrolabe import flow
from astrolabe.data.scripts import parse_script
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rl.advantages import optimality
from astrolabe.rl.algorithm import Samples
from astrolabe.rl.forward import Forward, PromptText
from astrolabe.rl.nft import NFT, nft_loss
from astrolabe.rl.policies import Policies
from astrolabe.rl.settings import LoraSettings, NFTSettings, OptimizerSettings
from astrolabe.rl.update import make_optimizer, update
from astrolabe.rollout.settings import RolloutSettings, WindowSettings
from astrolabe.rollout.window import Windows
from astrolabe.types import Experience, Rollout, Scores, Stretch
from tests.conftest import tiny_stream, tiny_world

PLAIN, SCRIPTS = ("a cat", "a dog"), ("a cat | a bird", "a dog || a fish")


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    """Everything in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def policies_of(model: WanGenerator, alike: bool = False) -> Policies:
    """Adapters in float64 that do something, each something else unless ``alike``."""
    policies = Policies(model.transformer, LoraSettings(rank=2, alpha=2.0), torch.Generator().manual_seed(0))
    for number, slot in enumerate(policies.names):
        rng = torch.Generator().manual_seed(0 if alike else number)
        for tensor in policies.tensors(slot).values():
            tensor.data = 0.2 * torch.randn(tensor.shape, generator=rng, dtype=torch.float64)
    return policies


def experience_of(
    model: WanGenerator, policies: Policies, start: int, group: int = 3, prompts: tuple[str, ...] = PLAIN
) -> Experience:
    """Candidates of a window at ``start``, with random credit."""
    rollout = RolloutSettings(prompts=len(prompts), group_size=group, micro_batch=group)
    video = 18 if model.stream.chunk_frames != 2 else 24
    windows = Windows(model, rollout, WindowSettings(frames=6, video_frames=video))
    with policies.using("behavior"):
        windows.begin(prompts, [parse_script(line) for line in prompts], 1, start)
        made = windows.candidates(7)
    credit = torch.randn(len(made.latents), generator=torch.Generator().manual_seed(3))
    nobody = torch.zeros_like(credit, dtype=torch.bool)
    return Experience(made, Scores(("a",), credit[:, None]), credit, optimality(credit, 5.0), nobody)


class Masked:
    """Dense attention over one long sequence under an explicit mask: earlier keys are constants (``models.Memory``)."""

    def __init__(self, mask: Tensor, tokens: int, past: list[tuple[Tensor, Tensor]] | None = None):
        self.mask = mask.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        self.past, self.made = past, []  # type: ignore[var-annotated]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.made.append((key.detach(), value.detach()))
        if self.past:
            key, value = (torch.cat([old, new], 1) for old, new in zip(self.past[layer], (key, value), strict=True))
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
        shares = scores.masked_fill(~self.mask, -torch.inf).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", shares, value)


def sees(first: int, end: int, other: int, window: int | None, sink: int) -> bool:
    """Whether the chunk [first, end) sees the earlier frame ``other``: said anew, in other words than the models'."""
    return other < first and (other < sink or window is None or other >= end - (window - sink))


def masks(frames: int, start: int, stream: Any) -> tuple[Tensor, Tensor]:
    """Who sees whom among clean frames [f, f], and the noisy clip [w, f + w] over clean and noisy frames."""
    size = stream.chunk_frames
    clean, noisy = torch.zeros(frames, frames, dtype=torch.bool), torch.zeros(frames, 2 * frames, dtype=torch.bool)
    for frame in range(frames):
        first, end = frame // size * size, frame // size * size + size
        for other in range(frames):
            earlier, own = sees(first, end, other, stream.window_frames, stream.sink_frames), first <= other < end
            clean[frame, other] = earlier or own
            noisy[frame, other], noisy[frame, frames + other] = earlier, own
    return clean, torch.cat([noisy[start:, :frames], noisy[start:, frames + start :]], 1)


def reference_loss(
    model: WanGenerator, policies: Policies, text: Tensor, history: Tensor, clip: Tensor, noisy: Tensor, sigma: Tensor,
    credit: Tensor, beta: float,
) -> Tensor:  # fmt: skip
    """The loss of candidates from the whole sequence [history, clip, noisy clip] under one mask."""
    start, tokens = history.shape[1], model.frame_tokens
    whole = torch.cat([history.expand(len(clip), *history.shape[1:]), clip], 1)
    over_clean, over_noisy = masks(whole.shape[1], start, model.stream)
    network = model.transformer
    with torch.no_grad(), policies.using("behavior"):
        acting, context = model.condition(text), Masked(over_clean, tokens)
        network(whole, whole.new_zeros(whole.shape[:2]), acting, context, 0)
        velocity = network(noisy, sigma * 1000, acting, Masked(over_noisy, tokens, context.made), start)
        behavior = flow.to_clean(noisy, velocity, sigma)
    velocity = network(noisy, sigma * 1000, model.condition(text), Masked(over_noisy, tokens, context.made), start)
    return nft_loss(flow.to_clean(noisy, velocity, sigma), behavior, clip, credit, beta)


STREAMS = (tiny_stream(3), tiny_stream(3, 9), tiny_stream(3, 9, 3), tiny_stream(1, 5, 2), tiny_stream(2, 6, 1))


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("start", [0, 6, 12])
def test_the_gradient_is_that_of_one_masked_sequence_and_none_reaches_the_past(stream: Any, start: int) -> None:
    model = tiny_world(stream)
    policies = policies_of(model)
    rollout = RolloutSettings(prompts=1, group_size=3, micro_batch=3)
    windows = Windows(model, rollout, WindowSettings(frames=6, video_frames=18))
    with policies.using("behavior"):
        windows.open(["a cat"], [parse_script("a cat")], 1)
        chunks = [windows.tracks[0].stream.step().latents for _ in range(start // stream.chunk_frames)]
        seen = windows.candidates(7)
    history = torch.cat([seen.latents[:1, :0], *chunks], 1)
    credit, seeds = torch.tensor([0.1, 0.5, 0.9]), [4, 5, 6]
    algorithm = NFT(NFTSettings(beta=0.3, behavior_keep=0.5), (1.0,))
    text = PromptText(model, policies, seen.stretches[0].text)
    forward = Forward(model, policies, seen.stretches[0], text, seen.latents)
    parts = list(algorithm.losses(forward, Samples(seen.latents, credit, seeds), 1))
    sum(part.loss for part in parts).sum().backward()  # type: ignore[union-attr]
    text.backward()
    mine = {name: tensor.grad for name, tensor in policies.tensors("learner").items()}
    for slot in ("behavior", "reference"):
        assert all(tensor.grad is None for tensor in policies.tensors(slot).values())
    past: Any = windows.tracks[0].stream.cache
    seen_frames = [frame for layer in forward.context.keys for frame in layer]
    assert seen_frames and not any(kept.requires_grad for kept in (*past.keys, *past.values, *seen_frames))
    for tensor in policies.trainable().values():
        tensor.grad = None
    levels, noises = algorithm.draw(model.stream, seen.latents.shape[1:], seeds, start)
    sigma, noise = levels[0].double(), noises[0].double()
    noisy = flow.add_noise(seen.latents, noise, sigma)
    expected = reference_loss(model, policies, seen.stretches[0].text, history, seen.latents, noisy, sigma, credit, 0.3)
    torch.testing.assert_close(sum(part.loss for part in parts), expected, rtol=1e-9, atol=1e-12)
    expected.sum().backward()
    for name, tensor in policies.trainable().items():
        torch.testing.assert_close(mine[name], tensor.grad, rtol=1e-8, atol=1e-12)


def gradients(
    model: WanGenerator, policies: Policies, data: Experience, micro_batch: int, chunks: int | None,
    checkpointing: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """What one update leaves in the learner's gradients, before they are clipped."""
    options = OptimizerSettings(lr=1e-30, max_grad_norm=1e9, micro_batch=micro_batch, chunks=chunks)
    algorithm = NFT(NFTSettings(beta=0.3, behavior_keep=0.5, levels_per_sample=2), (1.0,))
    model.transformer.gradient_checkpointing = checkpointing
    update(model, policies, algorithm, data, make_optimizer(policies, options), options, 0.0,
           torch.Generator().manual_seed(5))  # fmt: skip
    model.transformer.gradient_checkpointing = False
    return {name: tensor.grad.clone() for name, tensor in policies.trainable().items() if tensor.grad is not None}


@settings(max_examples=20, deadline=None)
@given(st.sampled_from((1, 2, 3)), st.integers(0, 3), st.sampled_from((None, 0, 2)), st.sampled_from((0, 1, 2)),
       st.sampled_from(("absolute", "relative")), st.integers(2, 4), st.integers(1, 4), st.integers(1, 3),
       st.booleans())  # fmt: skip
@example(3, 3, 0, 2, "relative", 4, 3, 1, True)
def test_how_the_work_is_split_changes_nothing(
    chunk: int, sink: int, extra: int | None, before: int, positions: str, group: int, micro_batch: int, chunks: int,
    scripted: bool,
) -> None:  # fmt: skip
    window = None if extra is None else sink + chunk + extra
    model = tiny_world(tiny_stream(chunk, window, sink if window else 0, positions))
    if scripted and model.stream.sink_frames % chunk:
        model.stream = replace(model.stream, sink_frames=0)
    policies = policies_of(model)
    data = experience_of(model, policies, before * 6, group, SCRIPTS if scripted else PLAIN)
    whole = gradients(model, policies, data, group, None)
    parts = gradients(model, policies, data, min(micro_batch, group), chunks, checkpointing=True)
    assert whole.keys() == parts.keys() and whole
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-7, atol=1e-12)


def watched(model: WanGenerator, policies: Policies) -> list[str | None]:
    """Who acts in every training forward from now on."""
    calls: list[str | None] = []
    velocity = model.velocity_in_context

    def counted(*args: Any) -> Tensor:
        calls.append(policies.active)
        return velocity(*args)

    model.velocity_in_context = counted  # type: ignore[method-assign,assignment]
    return calls


def test_alike_policies_are_forwarded_once_to_the_same_result() -> None:
    model = tiny_world(tiny_stream(3, 9, 3))
    policies = policies_of(model, alike=True)
    data = experience_of(model, policies, 6)
    calls = watched(model, policies)
    once = gradients(model, policies, data, 3, None)
    assert set(calls) == {"learner"}
    policies.compare = lambda: setattr(policies, "alike", False)  # type: ignore[method-assign]
    calls.clear()
    twice = gradients(model, policies, data, 3, None)
    assert calls.count("behavior") == calls.count("learner") > 0
    for name, gradient in once.items():
        torch.testing.assert_close(twice[name], gradient, rtol=1e-9, atol=1e-14)


def test_text_and_past_are_computed_once_a_prompt_whatever_the_split() -> None:
    model = tiny_world(tiny_stream(3, 9))
    policies = policies_of(model)
    data = experience_of(model, policies, 6, group=4)
    rows: list[tuple[str | None, int]] = []
    condition = model.condition

    def counted(text: Tensor) -> Any:
        rows.append((policies.active, len(text)))
        return condition(text)

    model.condition = counted  # type: ignore[method-assign]
    gradients(model, policies, data, 1, 1)
    assert sorted(rows) == sorted([("learner", 1), ("behavior", 1)] * 2)


def test_a_sample_of_no_credit_is_never_forwarded() -> None:
    model = tiny_world(tiny_stream(3, 9))
    policies = policies_of(model)
    data = experience_of(model, policies, 6)
    credit = data.advantages.clone()
    credit[:3], credit[4] = 0, 0
    seen: list[int] = []
    context = model.context

    def counted(clean: Tensor, *rest: Any) -> Any:
        seen.append(len(clean))
        return context(clean, *rest)

    model.context = counted  # type: ignore[method-assign,assignment]
    gradients(model, policies, replace(data, advantages=credit), 3, None)
    assert seen == [2]


def test_at_learner_equal_behavior_the_whole_forward_has_the_analytic_gradient() -> None:
    """2 beta (2 r - 1) (behavior - x0) / N in the learner's prediction, through the real forward."""
    model = tiny_world(tiny_stream(3, 9, 3, "relative"))
    policies = policies_of(model, alike=True)
    data = experience_of(model, policies, 6)
    rollout, r = data.rollout, data.credit[:3]
    stretch: Stretch = rollout.stretches[0]
    made: list[Tensor] = []
    velocity = model.velocity_in_context

    def kept(*args: Any) -> Tensor:
        out = velocity(*args)
        if out.requires_grad:
            out.retain_grad()
            made.append(out)
        return out

    model.velocity_in_context = kept  # type: ignore[method-assign,assignment]
    policies.compare()
    forward = Forward(model, policies, stretch, PromptText(model, policies, stretch.text), rollout.latents[:3])
    algorithm = NFT(NFTSettings(beta=0.7, behavior_keep=0.5), (1.0,))
    clean = rollout.latents[:3]
    ((loss, drift, _),) = algorithm.losses(forward, Samples(clean, r, [1, 2, 3]), 9)
    loss.sum().backward()
    assert drift.abs().max() == 0
    levels, noises = algorithm.draw(model.stream, clean.shape[1:], [1, 2, 3], stretch.before)
    sigma = levels[0][..., None, None, None]
    noisy = flow.add_noise(clean, noises[0].double(), levels[0].double())
    behavior = flow.to_clean(noisy, made[0].detach(), levels[0].double())
    elements = clean[0].numel()
    expected = 2 * 0.7 * (2 * r - 1).view(-1, 1, 1, 1, 1) * (behavior - clean) / elements
    assert made[0].grad is not None
    torch.testing.assert_close(made[0].grad, -sigma * expected, rtol=1e-10, atol=1e-14)  # x0 = noisy - sigma v


def test_a_switch_trains_each_part_of_a_clip_under_its_own_prompt() -> None:
    model = tiny_world(tiny_stream(3, 9))
    policies = policies_of(model)
    rollout: Rollout = experience_of(model, policies, 6, prompts=SCRIPTS).rollout
    assert [(s.group, s.first, s.end, s.before) for s in rollout.stretches] == [
        (0, 0, 3, 6), (0, 3, 6, 9), (1, 0, 3, 6), (1, 3, 6, 0),
    ]  # fmt: skip
    expected = model.encode_text(["a cat", "a bird", "a dog", "a fish"])
    assert torch.equal(torch.cat([stretch.text for stretch in rollout.stretches]), expected)


def test_behavior_is_forwarded_again_once_the_learner_has_moved() -> None:
    model = tiny_world(tiny_stream(3, 9))
    policies = policies_of(model, alike=True)
    data = experience_of(model, policies, 6)
    calls = watched(model, policies)
    options = OptimizerSettings(lr=1e-2, micro_batch=3, minibatches=2)
    algorithm = NFT(NFTSettings(beta=0.3, behavior_keep=0.5), (1.0,))
    update(model, policies, algorithm, data, make_optimizer(policies, options), options, 1e-2, torch.Generator())
    assert calls == ["learner", "learner", "behavior"]


@pytest.mark.parametrize("prompts", [PLAIN, SCRIPTS])
def test_every_frame_of_every_sample_counts_alike(prompts: tuple[str, ...]) -> None:
    """The reported loss is the plain mean over all elements, whatever stretches a clip has; each row keeps its own."""
    model = tiny_world(tiny_stream(3, 9))
    policies = policies_of(model)
    data = experience_of(model, policies, 6, prompts=prompts)
    rollout, algorithm = data.rollout, NFT(NFTSettings(beta=0.3, behavior_keep=0.5), (1.0,))
    options = OptimizerSettings(lr=1e-30, micro_batch=2)
    metrics = update(model, policies, algorithm, data, make_optimizer(policies, options), options, 0.0,
                     torch.Generator().manual_seed(5))  # fmt: skip
    seeds = torch.randint(2**62, (6,), generator=torch.Generator().manual_seed(5)).tolist()
    total = 0.0
    for stretch in rollout.stretches:
        for row in range(stretch.group * 3, stretch.group * 3 + 3):
            clip, text = rollout.latents[row : row + 1], PromptText(model, policies, stretch.text)
            forward = Forward(model, policies, stretch, text, clip[:, : stretch.end])
            own = clip[:, stretch.first : stretch.end]
            drawn = [(seeds[row] + stretch.first) % 2**62]
            samples = Samples(own, data.credit[row : row + 1], drawn)
            ((loss, _, _),) = algorithm.losses(forward, samples, 9)
            total += loss.item() * own.shape[1] / 6
    assert metrics["loss"] == pytest.approx(total / 6, rel=1e-6)


def test_a_window_inside_a_video_is_trained_at_the_levels_of_later_chunks() -> None:
    stream = replace(tiny_stream(3, 9), denoising_steps=(1000, 500), first_chunk_steps=(1000, 750, 500, 250))
    model = tiny_world(stream)
    policies = policies_of(model)
    data = experience_of(model, policies, 6)
    seen: set[float] = set()
    velocity = model.velocity_in_context

    def kept(noisy: Tensor, sigma: Tensor, *args: Any) -> Tensor:
        seen.update(sigma.flatten().tolist())
        return velocity(noisy, sigma, *args)

    model.velocity_in_context = kept  # type: ignore[method-assign,assignment]
    gradients(model, policies, data, 3, None)
    assert seen == set(stream.levels_of(1).tolist())


def test_gradient_checkpointing_runs_every_block_again() -> None:
    model = tiny_world(tiny_stream(3, 9))
    policies = policies_of(model)
    data = experience_of(model, policies, 6)
    runs: list[bool] = []
    model.transformer.blocks[0].register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    gradients(model, policies, data, 3, None)
    once = sum(runs)
    runs.clear()
    gradients(model, policies, data, 3, None, checkpointing=True)
    assert sum(runs) == 2 * once
