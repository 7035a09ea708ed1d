"""Rivals behind the same rollout, and the pull to the reference: each against its formula, however work is split."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal

from astrolabe import flow
from astrolabe.data.scripts import parse_script
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rl.algorithm import Algorithm, Samples
from astrolabe.rl.forward import Forward, PromptText
from astrolabe.rl.grpo import GRPO, clipped, log_ratio
from astrolabe.rl.nft import NFT, nft_loss, squared
from astrolabe.rl.policies import Policies
from astrolabe.rl.positive import Positive
from astrolabe.rl.regularisation import Regulariser
from astrolabe.rl.reward_weighted import RewardWeighted
from astrolabe.rl.settings import (
    GRPOSettings,
    NFTSettings,
    OptimizerSettings,
    PositiveSettings,
    RegularisationSettings,
    RewardWeightedSettings,
)
from astrolabe.rl.update import make_optimizer, update
from astrolabe.rollout.settings import RolloutSettings, WindowSettings
from astrolabe.rollout.window import Windows
from astrolabe.runtime.errors import UserError
from astrolabe.types import Experience, Scores, Trajectory
from tests.conftest import tiny_stream, tiny_world
from tests.rl.test_forward import PLAIN, SCRIPTS, policies_of, watched

EXACT = torch.float64


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    """Everything in float64."""
    torch.set_default_dtype(EXACT)
    yield
    torch.set_default_dtype(torch.float32)


def algorithms(samples: str = "none") -> dict[str, Algorithm[Any]]:
    """One of each, with the pull of ``samples``."""
    held: Any = {"samples": samples, "strength": 0.3}
    held = [Regulariser(RegularisationSettings(**held), 0, (1,)) for _ in range(4)]
    return {
        "nft": NFT(NFTSettings(beta=0.3, behavior_keep=0.5, levels_per_sample=2), (1.0, 1.0), held[0]),
        "positive": Positive(PositiveSettings(beta=0.3, behavior_keep=0.5), (1.0, 1.0), held[1]),
        "reward_weighted": RewardWeighted(RewardWeightedSettings(behavior_keep=0.5), (1.0, 1.0), held[2]),
        "grpo": GRPO(GRPOSettings(behavior_keep=0.5, levels_per_sample=2), (1.0, 1.0), held[3]),
    }


NAMES = tuple(algorithms())


def experience_of(
    model: WanGenerator, policies: Policies, algorithm: Algorithm[Any], anchored: tuple[int, ...] = (),
    prompts: tuple[str, ...] = PLAIN, start: int = 6,
) -> Experience:  # fmt: skip
    """Candidates with their trajectory, credit at random."""
    rollout = RolloutSettings(prompts=len(prompts), group_size=3, micro_batch=2)
    windows = Windows(model, rollout, WindowSettings(frames=6, video_frames=18), trajectory=True)
    with policies.using("behavior"):
        windows.begin(prompts, [parse_script(line) for line in prompts], 1, start)
        made = windows.candidates(7)
    advantages = torch.randn(len(made.latents), generator=torch.Generator().manual_seed(3))
    marked = torch.zeros(len(advantages), dtype=torch.bool)
    marked[list(anchored)] = True
    return Experience(made, Scores(("a",), advantages[:, None]), advantages, algorithm.credit(advantages), marked)


def gradients(
    model: WanGenerator, policies: Policies, algorithm: Algorithm[Any], data: Experience, micro_batch: int = 3,
    chunks: int | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """What one update leaves in the learner's gradients, before they are clipped."""
    options = OptimizerSettings(lr=1e-30, max_grad_norm=1e9, micro_batch=micro_batch, chunks=chunks)
    update(model, policies, algorithm, data, make_optimizer(policies, options), options, 0.0,
           torch.Generator().manual_seed(5))  # fmt: skip
    return {name: tensor.grad.clone() for name, tensor in policies.trainable().items() if tensor.grad is not None}


@examples(max_examples=24, deadline=None)
@given(st.sampled_from(NAMES), st.integers(1, 3), st.integers(1, 2), st.booleans(), st.sampled_from(("x0", "velocity")),
       st.sampled_from(("clean", "noisy")))  # fmt: skip
def test_how_the_work_is_split_changes_nothing(
    name: str, micro_batch: int, chunks: int, scripted: bool, space: Any, context: Any
) -> None:
    model = tiny_world(tiny_stream(3, 9, 3))
    policies, algorithm = policies_of(model), algorithms("uniform")[name]
    algorithm.regulariser.settings = replace(algorithm.regulariser.settings, space=space)
    if isinstance(algorithm, NFT):
        algorithm.settings = replace(algorithm.settings, context=context)
    data = experience_of(model, policies, algorithm, (0, 2, 4), SCRIPTS if scripted else PLAIN)
    whole = gradients(model, policies, algorithm, data)
    parts = gradients(model, policies, algorithm, data, micro_batch, chunks)
    assert whole.keys() == parts.keys() and whole
    for key, gradient in whole.items():
        torch.testing.assert_close(parts[key], gradient, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("prompts", [PLAIN, SCRIPTS])
@pytest.mark.parametrize("start", [0, 6])
def test_the_trajectory_is_the_samplers_and_training_sees_it_again(prompts: tuple[str, ...], start: int) -> None:
    model = tiny_world(tiny_stream(3, 9, 3, "relative"))
    policies, algorithm = policies_of(model, alike=True), algorithms()["grpo"]
    rollout = experience_of(model, policies, algorithm, prompts=prompts, start=start).rollout
    trajectory = rollout.trajectory
    assert trajectory is not None and trajectory.noisy.shape == trajectory.clean.shape == (4, *rollout.latents.shape)
    assert torch.equal(trajectory.clean[-1], rollout.latents)
    levels = model.stream.levels_of(1)
    for stretch in rollout.stretches:
        rows, span = slice(3 * stretch.group, 3 * stretch.group + 3), slice(stretch.first, stretch.end)
        text = PromptText(model, policies, stretch.text)
        forward = Forward(model, policies, stretch, text, rollout.latents[rows, : stretch.end])
        for level, sigma in enumerate(levels.tolist()):
            noisy = trajectory.noisy[level, rows, span]
            seen = forward.learner(noisy, torch.full(noisy.shape[:2], sigma), slice(None))
            torch.testing.assert_close(seen, trajectory.clean[level, rows, span], rtol=0, atol=1e-9)


def test_a_sampler_step_reaches_what_it_says_by_gaussian_noise() -> None:
    model = tiny_world(tiny_stream(3))
    policies, algorithm = policies_of(model), algorithms()["grpo"]
    trajectory = experience_of(model, policies, algorithm, start=0).rollout.trajectory
    assert trajectory is not None
    for level, sigma in enumerate(model.stream.levels_of(0).tolist()[1:]):
        noise = (trajectory.noisy[level + 1] - (1 - sigma) * trajectory.clean[level]) / sigma
        assert abs(noise.mean().item()) < 0.1 and abs(noise.std().item() - 1) < 0.1


@given(st.integers(0, 99))
def test_the_log_ratio_is_that_of_the_samplers_own_gaussians(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    learner, behavior, reached = torch.randn(3, 2, 6, 2, 2, 2, generator=rng, dtype=EXACT)
    sigma = torch.tensor([0.9375, 0.625], dtype=EXACT).repeat_interleave(3).expand(2, 6)
    level = sigma[:, :, None, None, None]
    chances = [Normal((1 - level) * clean, level).log_prob(reached) for clean in (learner, behavior)]
    expected = (chances[0] - chances[1]).unflatten(1, (2, 3)).mean((2, 3, 4, 5))
    torch.testing.assert_close(log_ratio(learner, behavior, reached, sigma, 3), expected)


def test_a_ratio_beyond_the_clip_no_longer_counts_where_it_helps() -> None:
    ratio = torch.tensor([[1.2, 0.8], [1.2, 0.8]], requires_grad=True)
    clipped(ratio, torch.tensor([1.0, -1.0]), 0.1).sum().backward()
    assert ratio.grad is not None
    assert ratio.grad.tolist() == [[0.0, -0.5], [0.5, 0.0]]


def test_at_learner_equal_behavior_grpo_follows_the_score_function() -> None:
    """-A (1 - s) (x' - (1 - s) x0) / s^2 / N in the learner's prediction."""
    learner = torch.randn(2, 3, 2, 2, 2, requires_grad=True)
    reached, advantage, s = torch.randn(2, 3, 2, 2, 2), torch.tensor([2.0, -0.5]), 0.8333
    ratio = log_ratio(learner, learner.detach(), reached, torch.full((2, 3), s), 3).exp()
    clipped(ratio, advantage, 1e-3).sum().backward()
    expected = -advantage.view(2, 1, 1, 1, 1) * (1 - s) * (reached - (1 - s) * learner.detach()) / s**2 / 24
    torch.testing.assert_close(learner.grad, expected)


def test_grpo_asks_the_behavior_policy_for_nothing_again() -> None:
    model = tiny_world(tiny_stream(3, 9))
    policies, algorithm = policies_of(model), algorithms()["grpo"]
    data = experience_of(model, policies, algorithm)
    calls = watched(model, policies)
    gradients(model, policies, algorithm, data)
    assert set(calls) == {"learner"}


@pytest.mark.parametrize("levels", [4, 7])
def test_more_steps_than_the_sampler_takes_at_random_are_refused(levels: int) -> None:
    with pytest.raises(UserError, match="choose at most 3"):
        GRPO(GRPOSettings(behavior_keep=0.0, levels_per_sample=levels), (1.0,)).level_table(tiny_stream(3), 2)


@given(st.integers(0, 50))
def test_rivals_in_the_forward_process_are_their_formulas(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    learner, behavior, clean = torch.randn(3, 4, 3, 2, 2, 2, generator=rng, dtype=EXACT)
    advantages = 3 * torch.randn(4, generator=rng, dtype=EXACT)
    made = algorithms()
    positive, weighted = made["positive"], made["reward_weighted"]
    assert isinstance(positive, Positive) and isinstance(weighted, RewardWeighted)
    r = positive.credit(advantages)
    best = nft_loss(learner, behavior, clean, torch.ones(4, dtype=EXACT), 0.3)
    torch.testing.assert_close(positive.loss(learner, behavior, clean, r), r * best)
    weight = advantages.exp().clamp(max=20)
    expected = weight * (learner - clean).square().mean((1, 2, 3, 4))
    torch.testing.assert_close(weighted.loss(learner, behavior, clean, weighted.credit(advantages)), expected)


@pytest.mark.parametrize("name", NAMES)
def test_only_anchored_samples_ask_for_the_reference_and_only_they_feel_it(name: str) -> None:
    model = tiny_world(tiny_stream(3, 9, 3))
    policies, algorithm = policies_of(model), algorithms("selective")[name]
    free, held = (experience_of(model, policies, algorithm, rows) for rows in ((), (1, 3)))
    calls = watched(model, policies)
    without = gradients(model, policies, algorithm, free)
    assert "reference" not in calls
    calls.clear()
    pulled = gradients(model, policies, algorithm, held)
    levels = algorithm.settings.levels_per_sample
    assert calls.count("reference") == 2 * levels  # one micro-batch in each of two groups has an anchored sample
    credit = torch.zeros(6)
    alone = replace(held, advantages=credit)
    calls.clear()
    only = gradients(model, policies, algorithm, alone)
    for key, gradient in pulled.items():
        torch.testing.assert_close(gradient, without[key] + only[key], rtol=1e-8, atol=1e-12)
    assert max(gradient.abs().max() for gradient in only.values()) > 1e-6


def test_the_pull_is_lambda_times_the_mean_drift_of_the_anchored() -> None:
    model = tiny_world(tiny_stream(3, 9))
    policies, algorithm = policies_of(model), algorithms("selective")["nft"]
    assert isinstance(algorithm, NFT)
    algorithm.settings = replace(algorithm.settings, levels_per_sample=1)
    data = replace(experience_of(model, policies, algorithm, (1, 2)), advantages=torch.zeros(6))
    mine = gradients(model, policies, algorithm, data)
    rollout, rng = data.rollout, torch.Generator().manual_seed(5)
    seeds = torch.randint(2**62, (6,), generator=rng)
    clean, stretch = rollout.latents[1:3], rollout.stretches[0]
    levels, noises = algorithm.draw(model.stream, clean.shape[1:], seeds[1:3].tolist(), stretch.before)
    noisy = flow.add_noise(clean, noises[0].double(), levels[0])
    text = PromptText(model, policies, stretch.text)
    forward = Forward(model, policies, stretch, text, clean)
    for tensor in policies.trainable().values():
        tensor.grad = None
    learner = forward.learner(noisy, levels[0], slice(None))
    away = (learner - forward.reference(noisy, levels[0], slice(None))).square().mean((1, 2, 3, 4))
    (0.3 * away.mean()).backward()
    text.backward()
    for name, tensor in policies.trainable().items():
        torch.testing.assert_close(mine[name], tensor.grad, rtol=1e-8, atol=1e-12)


def test_noisy_context_is_the_block_causal_pass_over_noisy_frames() -> None:
    model = tiny_world(tiny_stream(3))
    policies, algorithm = policies_of(model, alike=True), algorithms()["nft"]
    data = experience_of(model, policies, algorithm, start=0)
    stretch, clean = data.rollout.stretches[0], data.rollout.latents[:3]
    sigma = torch.tensor([0.9375, 0.625]).repeat_interleave(3).expand(3, 6)
    noisy = flow.add_noise(clean, torch.randn(clean.shape), sigma)
    forward = Forward(model, policies, stretch, PromptText(model, policies, stretch.text), clean)
    facing = forward.facing_noise(noisy, sigma).learner(noisy, sigma, slice(None))
    velocity = model.velocity_block_causal(noisy, sigma, model.condition(stretch.text))
    torch.testing.assert_close(facing, flow.to_clean(noisy, velocity, sigma), rtol=0, atol=1e-9)
    again = forward.learner(noisy, sigma, slice(None))
    assert (again[:, 3:] - facing[:, 3:]).abs().max() > 1e-4  # the clean context is another


def test_adaptive_weighting_divides_each_error_by_its_own_size_without_gradient() -> None:
    learner = torch.randn(2, 3, 2, 2, 2, requires_grad=True)
    behavior, clean = torch.randn(2, 2, 3, 2, 2, 2)
    r = torch.tensor([1.0, 0.0])
    loss = nft_loss(learner, behavior, clean, r, 1.0, "adaptive")
    error = torch.stack([(learner - clean)[0], (2 * behavior - learner - clean)[1]]).detach()
    size = error.abs().mean((1, 2, 3, 4))
    torch.testing.assert_close(loss.detach(), error.square().mean((1, 2, 3, 4)) / size)
    loss.sum().backward()
    sign = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(learner.grad, sign * 2 * error / 24 / size.view(2, 1, 1, 1, 1))


def test_a_step_without_finite_scores_is_dropped_and_counted() -> None:
    model = tiny_world(tiny_stream(3, 9))
    policies, algorithm = policies_of(model), algorithms("selective")["nft"]
    rollout = experience_of(model, policies, algorithm).rollout
    values = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    values[2, 1], values[4, 2] = torch.nan, torch.nan  # the third reward is a judge
    made, metrics = algorithm.prepare(rollout, Scores(("a", "b", "j"), values, trained=2), torch.Generator())
    assert metrics["dropped"] == pytest.approx(1 / 6)
    assert made.advantages[2] == 0 and made.advantages[4] != 0 and not made.anchored[2]
    assert {f"contribution/{name}" for name in "ab"} <= metrics.keys() and "contribution/j" not in metrics


def test_credit_rises_with_the_advantage_as_the_settings_say() -> None:
    advantages = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0])
    shared: Any = {"beta": 0.1, "behavior_keep": 0.5, "a_max": 2.0}
    for one in (NFT(NFTSettings(**shared), (1.0,)), Positive(PositiveSettings(**shared), (1.0,))):
        assert one.credit(advantages).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    grpo = GRPO(GRPOSettings(behavior_keep=0.0, max_advantage=2.0), (1.0,))
    assert grpo.credit(advantages).tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]
    weighted = RewardWeighted(RewardWeightedSettings(behavior_keep=0.5, temperature=2.0, max_weight=3.0), (1.0,))
    assert weighted.credit(advantages).tolist() == pytest.approx([math.exp(a / 2) for a in (-9, -1, 0, 1)] + [3.0])


def test_grpo_compares_the_step_that_the_sampler_took() -> None:
    model = tiny_world(tiny_stream(3))
    policies = policies_of(model)
    algorithm = GRPO(GRPOSettings(behavior_keep=0.0, levels_per_sample=2, clip=0.5), (1.0,))
    made = experience_of(model, policies, algorithm, start=0).rollout
    trajectory, stretch, clean = made.trajectory, made.stretches[0], made.latents[:3]
    assert trajectory is not None
    own = Trajectory(trajectory.noisy[:, :3], trajectory.clean[:, :3])
    gain, seeds = torch.tensor([2.0, -0.5, 1.0]), [4, 5, 6]
    forward = Forward(model, policies, stretch, PromptText(model, policies, stretch.text), clean)
    parts = list(algorithm.losses(forward, Samples(clean, gain, seeds, trajectory=own), 9))
    levels, expected = model.stream.levels_of(0), torch.zeros(3)
    for level in algorithm.draw(algorithm.level_table(model.stream, 2), seeds).unbind(0):
        for row, chunk in ((r, c) for r in range(3) for c in range(2)):
            k, span = int(level[row, chunk]), slice(3 * chunk, 3 * chunk + 3)
            now, after = torch.full((3, 3), levels[k].item()), levels[k + 1]
            learner = forward.learner(own.noisy[k, :, span], now, slice(chunk, chunk + 1))[row]
            chance = [
                Normal((1 - after) * x0, after).log_prob(own.noisy[k + 1, row, span]).mean()
                for x0 in (learner, own.clean[k, row, span])
            ]
            ratio = (chance[0] - chance[1]).exp()
            expected[row] -= torch.minimum(ratio * gain[row], ratio.clamp(0.5, 1.5) * gain[row]) / 4
    torch.testing.assert_close(sum(part.loss for part in parts), expected, rtol=1e-9, atol=1e-9)


def test_grpo_draws_from_the_steps_that_a_chunk_takes_at_random() -> None:
    stream = replace(tiny_stream(3), denoising_steps=(1000, 500), first_chunk_steps=(1000, 750, 500, 250))
    algorithm = GRPO(GRPOSettings(behavior_keep=0.0), (1.0,))
    table = algorithm.level_table(stream, 2)
    torch.testing.assert_close(table[:, 0], stream.levels_of(0)[:-1])
    drawn = algorithm.draw(table, list(range(32)))
    assert set(drawn[0, :, 0].tolist()) == {0, 1, 2} and set(drawn[0, :, 1].tolist()) == {0}
    every = GRPO(GRPOSettings(behavior_keep=0.0, levels_per_sample=3), (1.0,))
    assert every.level_table(tiny_stream(3), 2).shape == (3, 2)
    with pytest.raises(UserError, match="at least 2 levels"):
        algorithm.level_table(replace(tiny_stream(3), denoising_steps=(1000,)), 2)


def test_the_algorithm_weighs_errors_as_its_settings_say() -> None:
    learner, behavior, clean = torch.randn(3, 2, 3, 2, 2, 2)
    r, nft = torch.tensor([0.9, 0.2]), NFT(NFTSettings(beta=0.3, behavior_keep=0.5, weighting="adaptive"), (1.0,))
    expected = nft_loss(learner, behavior, clean, r, 0.3, "adaptive")
    torch.testing.assert_close(nft.loss(learner, behavior, clean, r), expected)
    assert squared(torch.zeros(1, 3, 2, 2, 2), "adaptive").tolist() == [0.0]
