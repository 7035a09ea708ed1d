"""The loss is the method's, and its gradient says so to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from astrolabe import flow
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rl.advantages import combine_rewards, group_advantages, optimality
from astrolabe.rl.algorithm import LossPart, Samples
from astrolabe.rl.forward import Forward, PromptText
from astrolabe.rl.nft import NFT, nft_loss
from astrolabe.rl.policies import Policies
from astrolabe.rl.settings import LoraSettings, NFTSettings, OptimizerSettings
from astrolabe.rl.update import clip_gradients, learning_rate, make_optimizer, update
from astrolabe.runtime.errors import UserError
from astrolabe.types import Experience, Rollout, Scores, Stretch
from tests.conftest import LATENT, tiny_stream, tiny_wan

SHAPE = (3, 4, 2, 2, 2)


@given(beta=st.floats(0.05, 2.0), seed=st.integers(0, 50))
def test_at_learner_equal_behavior_the_gradient_is_the_papers(beta: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    behavior, clean = torch.randn(2, *SHAPE, generator=rng, dtype=torch.float64)
    r = torch.rand(SHAPE[0], generator=rng, dtype=torch.float64)
    learner = behavior.clone().requires_grad_()
    nft_loss(learner, behavior, clean, r, beta).sum().backward()
    elements = behavior[0].numel()
    expected = 2 * beta * (2 * r - 1).view(-1, 1, 1, 1, 1) * (behavior - clean) / elements
    assert learner.grad is not None
    torch.testing.assert_close(learner.grad, expected, rtol=1e-12, atol=1e-14)


def test_good_samples_pull_and_bad_samples_push() -> None:
    behavior, clean = torch.ones(2, 1, 1, 1, 1, dtype=torch.float64), torch.zeros(2, 1, 1, 1, 1, dtype=torch.float64)
    learner = behavior.clone().requires_grad_()
    nft_loss(learner, behavior, clean, torch.tensor([1.0, 0.0], dtype=torch.float64), 1.0).sum().backward()
    assert learner.grad is not None
    towards = -learner.grad.flatten()  # a descent step on a prediction that is too large
    assert towards[0] < 0 < towards[1]


def test_an_indifferent_sample_leaves_the_prediction_where_it_is() -> None:
    behavior, clean = torch.randn(2, *SHAPE, dtype=torch.float64)
    learner = behavior.clone().requires_grad_()
    nft_loss(learner, behavior, clean, torch.full((3,), 0.5, dtype=torch.float64), 1.0).sum().backward()
    assert learner.grad is not None and learner.grad.abs().max() < 1e-15


@given(st.integers(0, 99))
def test_equal_weights_mean_equal_influence_whatever_the_scales(seed: int) -> None:
    values = torch.randn(24, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scaled = values * torch.tensor([1.0, 1000.0]) + torch.tensor([5.0, -3.0])
    torch.testing.assert_close(
        combine_rewards(scaled, (1.0, 1.0), "normalize_then_sum"),
        combine_rewards(values, (1.0, 1.0), "normalize_then_sum"),
    )


def test_a_constant_reward_adds_nothing() -> None:
    values = torch.stack([torch.randn(8), torch.full((8,), 3.0)], 1)
    alone = combine_rewards(values[:, :1], (1.0,), "normalize_then_sum")
    torch.testing.assert_close(combine_rewards(values, (1.0, 5.0), "normalize_then_sum"), alone)


def test_a_weighted_sum_uses_raw_scores() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    torch.testing.assert_close(combine_rewards(values, (1.0, 0.5), "weighted_sum"), torch.tensor([2.0, 5.0]))


@given(st.sampled_from(("step", "group", "none")), st.integers(0, 99))
def test_advantages_of_a_group_sum_to_zero_and_keep_its_order(std: str, seed: int) -> None:
    rewards = torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    advantages = group_advantages(rewards, 4, std)  # type: ignore[arg-type]
    groups = advantages.view(3, 4)
    assert groups.sum(1).abs().max() < 1e-9
    assert torch.equal(groups.argsort(1), rewards.view(3, 4).argsort(1))


def test_a_group_of_equal_rewards_contributes_nothing() -> None:
    rewards = torch.tensor([1.0, 1.0, 0.0, 2.0])
    for std in ("step", "group", "none"):
        advantages = group_advantages(rewards, 2, std)
        assert advantages[:2].tolist() == [0.0, 0.0] and advantages[2] < 0 < advantages[3]


def test_optimality_saturates_at_a_max() -> None:
    r = optimality(torch.tensor([-10.0, -2.5, 0.0, 2.5, 10.0]), 5.0)
    torch.testing.assert_close(r, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))


def experience(prompts: int = 2, group: int = 4, frames: int = 6, dtype: torch.dtype = torch.float32) -> Experience:
    """Random clips with random credit."""
    rng = torch.Generator().manual_seed(3)
    rows = prompts * group
    text = torch.randn(prompts, 5, 8, generator=rng, dtype=dtype)
    rollout = Rollout(
        prompts=tuple(str(i) for i in range(prompts)),
        group_size=group,
        latents=torch.randn(rows, frames, *LATENT, generator=rng, dtype=dtype),
        footage=(),
        stretches=tuple(Stretch(i, 0, frames, 0, text[i : i + 1], lambda clean: None) for i in range(prompts)),
    )
    advantages = torch.randn(rows, generator=rng, dtype=dtype)
    nobody = torch.zeros_like(advantages, dtype=torch.bool)
    return Experience(rollout, Scores(("a",), advantages[:, None]), advantages, optimality(advantages, 5.0), nobody)


SETTINGS = OptimizerSettings(lr=1e-3, micro_batch=3)


def learner_after(micro_batch: int, levels: str = "sampler") -> dict[str, torch.Tensor]:
    """The learner's tensors after one update in float64."""
    generator = tiny_wan(dtype=torch.float64)
    policies = Policies(generator.transformer, LoraSettings(rank=2, alpha=2.0), torch.Generator().manual_seed(0))
    for tensor in policies.tensors("learner").values():
        tensor.data = tensor.data.double()
    algorithm = NFT(NFTSettings(beta=1.0, behavior_keep=0.5, levels=levels, levels_per_sample=2), (1.0,))  # type: ignore[arg-type]
    optimizer = make_optimizer(policies, SETTINGS)
    for step in range(2):
        rng = torch.Generator().manual_seed(step)
        update(generator, policies, algorithm, experience(dtype=torch.float64), optimizer,
               OptimizerSettings(lr=1e-3, micro_batch=micro_batch), 1e-3, rng)  # fmt: skip
    return {key: value.detach().clone() for key, value in policies.tensors("learner").items()}


def test_the_micro_batch_changes_nothing_but_memory() -> None:
    whole, parts = learner_after(8), learner_after(3)
    for key in whole:
        torch.testing.assert_close(whole[key], parts[key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("levels", ["unwarped", "uniform"])
def test_other_levels_train_something_else(levels: str) -> None:
    sampler, other = learner_after(8), learner_after(8, levels)
    assert any(not torch.allclose(sampler[key], other[key], atol=1e-7) for key in sampler)


def test_levels_are_the_samplers_one_a_chunk_and_never_twice() -> None:
    generator = tiny_wan(dtype=torch.float32)
    algorithm = NFT(NFTSettings(beta=1.0, behavior_keep=0.5, levels_per_sample=4), (1.0,))
    levels, noise = algorithm.draw(generator.stream, torch.Size((6, *LATENT)), [1, 2])
    assert levels.shape == (4, 2, 6) and noise.shape == (4, 2, 6, *LATENT)
    table = generator.stream.levels
    torch.testing.assert_close(levels.sort(0, descending=True).values, table[:, None, None].expand(4, 2, 6))
    assert torch.equal(levels[..., 0::3], levels[..., 1::3]) and torch.equal(levels[..., 0::3], levels[..., 2::3])


def test_a_first_chunk_with_steps_of_its_own_is_trained_at_them() -> None:
    stream = replace(tiny_stream(), denoising_steps=(1000, 500), first_chunk_steps=(1000, 750, 500, 250))
    generator = tiny_wan(stream, dtype=torch.float32)
    algorithm = NFT(NFTSettings(beta=1.0, behavior_keep=0.5, levels_per_sample=2), (1.0,))
    levels, _ = algorithm.draw(generator.stream, torch.Size((9, *LATENT)), list(range(64)))
    seen = [set(levels[..., frame].flatten().tolist()) for frame in (0, 3, 6)]
    assert seen == [set(stream.levels_of(chunk).tolist()) for chunk in (0, 1, 2)]
    assert [len(levels_of_chunk) for levels_of_chunk in seen] == [4, 2, 2]
    with pytest.raises(UserError, match="choose at most 2"):
        NFT(NFTSettings(beta=1.0, behavior_keep=0.5, levels_per_sample=3), (1.0,)).level_table(stream, 3)


def test_only_the_learner_is_trained_and_behavior_follows() -> None:
    generator = tiny_wan(dtype=torch.float32)
    policies = Policies(generator.transformer, LoraSettings(rank=2, alpha=2.0), torch.Generator().manual_seed(0))
    before = {slot: {k: v.detach().clone() for k, v in policies.tensors(slot).items()} for slot in policies.names}
    base = {k: v.clone() for k, v in generator.transformer.state_dict().items() if "lora_" not in k}
    algorithm = NFT(NFTSettings(beta=1.0, behavior_keep=0.75), (1.0,))
    update(generator, policies, algorithm, experience(), make_optimizer(policies, SETTINGS), SETTINGS, 1e-3,
           torch.Generator().manual_seed(0))  # fmt: skip
    algorithm.after_step(policies, 0, {})
    learner, behavior = policies.tensors("learner"), policies.tensors("behavior")
    assert any(not torch.equal(learner[k], before["learner"][k]) for k in learner)
    for key in behavior:
        torch.testing.assert_close(behavior[key], 0.75 * before["behavior"][key] + 0.25 * learner[key])
        assert torch.equal(policies.tensors("reference")[key], before["reference"][key])
    assert all(torch.equal(generator.transformer.state_dict()[k], v) for k, v in base.items())


def test_who_acts_is_a_scope_even_when_it_fails() -> None:
    generator = tiny_wan(dtype=torch.float32)
    policies = Policies(generator.transformer, LoraSettings(rank=2, alpha=2.0), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for tensor in policies.tensors("learner").values():
            tensor.normal_()
    x, text = torch.randn(1, 3, *LATENT), torch.randn(1, 5, 8)

    def velocity() -> torch.Tensor:
        with torch.no_grad():
            return generator.velocity_block_causal(x, torch.ones(1, 3), generator.condition(text))

    acting = velocity()
    with policies.using(None):
        bare = velocity()
    with pytest.raises(ZeroDivisionError), policies.using("behavior"):
        torch.testing.assert_close(velocity(), bare)  # B = 0: a fresh slot changes nothing
        1 / 0  # noqa: B018
    assert policies.active == "learner"
    torch.testing.assert_close(velocity(), acting)
    assert not torch.allclose(acting, bare, atol=1e-3)


def test_the_loss_is_the_streams_learner_against_behavior_in_the_behaviors_context() -> None:
    """One sample by hand: every chunk streamed with the cache, at its level, under each policy."""
    generator = tiny_wan(tiny_stream(2, window=5, sink=1), dtype=torch.float64)
    policies = Policies(generator.transformer, LoraSettings(rank=2, alpha=2.0), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for slot in policies.names:
            for tensor in policies.tensors(slot).values():
                tensor.data = 0.1 * torch.randn(tensor.shape, dtype=torch.float64)
    seen = experience(prompts=2, group=2, frames=6, dtype=torch.float64)
    algorithm = NFT(NFTSettings(beta=0.3, behavior_keep=0.5), (1.0,))
    for row in (1, 2):
        stretch, seeds = seen.rollout.stretches[row // 2], [5 + row]
        text = PromptText(generator, policies, stretch.text)
        clean = seen.rollout.latents[row : row + 1]
        forward = Forward(generator, policies, stretch, text, clean)
        samples = Samples(clean, seen.credit[row : row + 1], seeds)
        ((loss, drift, _),) = algorithm.losses(forward, samples, 3)
        levels, noises = algorithm.draw(generator.stream, clean.shape[1:], seeds)
        sigma = levels[0].double()
        noisy = flow.add_noise(clean, noises[0].double(), sigma)
        behavior, learner = stream_predictions(generator, policies, stretch.text, clean, noisy, sigma)
        expected = nft_loss(learner, behavior, clean, seen.credit[row : row + 1], 0.3)
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(drift[0], (learner - behavior).square().mean(), rtol=1e-9, atol=1e-12)


@torch.no_grad()
def stream_predictions(
    generator: WanGenerator, policies: Policies, text: Tensor, clean: Tensor, noisy: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """x0 of every chunk under behavior and learner, the cache filled by the behavior policy."""
    with policies.using("behavior"):
        acting, cache = generator.condition(text), generator.new_cache(1, clean.shape[1])
    own, behaviors, learners = generator.condition(text), [], []
    for first, end in generator.stream.chunks(clean.shape[1]):
        part, level = noisy[:, first:end], sigma[:, first:end]
        learners.append(flow.to_clean(part, generator.velocity(part, level, own, cache), level))
        with policies.using("behavior"):
            behaviors.append(flow.to_clean(part, generator.velocity(part, level, acting, cache), level))
            generator.commit(clean[:, first:end], acting, cache)
    return torch.cat(behaviors, 1), torch.cat(learners, 1)


def test_a_step_in_which_every_group_ties_changes_nothing_and_goes_on() -> None:
    generator = tiny_wan(dtype=torch.float32)
    policies = Policies(generator.transformer, LoraSettings(rank=2, alpha=2.0), torch.Generator().manual_seed(0))
    before = {key: value.detach().clone() for key, value in policies.tensors("learner").items()}
    tied = replace(experience(), advantages=torch.zeros(8))
    algorithm = NFT(NFTSettings(beta=1.0, behavior_keep=0.5), (1.0,))
    optimizer = make_optimizer(policies, SETTINGS)
    assert update(generator, policies, algorithm, tied, optimizer, SETTINGS, 1e-3, torch.Generator()) == {}
    assert all(torch.equal(value, before[key]) for key, value in policies.tensors("learner").items())


def test_the_learning_rate_warms_up_and_stays_or_falls_as_a_cosine() -> None:
    settings = OptimizerSettings(lr=2.0, warmup=3, micro_batch=1)
    assert [learning_rate(settings, step, 7) for step in range(7)] == pytest.approx([0.5, 1.0, 1.5, 2, 2, 2, 2])
    falling = replace(settings, schedule="cosine")
    rates = [learning_rate(falling, step, 7) for step in range(7)]
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5])


class Watched(NFT):
    """Notes which samples are trained on, and from which seeds."""

    def __init__(self, settings: NFTSettings, data: Experience):
        super().__init__(settings, (1.0,))
        self.rows = {clip.sum().item(): row for row, clip in enumerate(data.rollout.latents)}
        self.seen: list[dict[int, int]] = []

    def losses(self, forward: Forward, samples: Samples, chunks: int) -> Iterator[LossPart]:
        rows = [self.rows[clip.sum().item()] for clip in samples.clean]
        self.seen.append(dict(zip(rows, samples.seeds, strict=True)))
        return super().losses(forward, samples, chunks)


def watched_update(settings: OptimizerSettings, common_noise: bool = False) -> tuple[Experience, list[dict[int, int]]]:
    """The experience of one update, and what was trained on in every micro-batch."""
    generator, data = tiny_wan(dtype=torch.float32), experience()
    policies = Policies(generator.transformer, LoraSettings(rank=2, alpha=2.0), torch.Generator().manual_seed(0))
    algorithm = Watched(NFTSettings(beta=1.0, behavior_keep=0.5, common_noise=common_noise), data)
    rng = torch.Generator().manual_seed(0)
    update(generator, policies, algorithm, data, make_optimizer(policies, settings), settings, 1e-3, rng)
    return data, algorithm.seen


def test_only_the_share_of_largest_advantages_is_trained_on() -> None:
    data, seen = watched_update(OptimizerSettings(lr=1e-3, share=0.6, micro_batch=8))
    rows = [row for part in seen for row in part]
    assert sorted(rows) == sorted(data.advantages.abs().topk(5).indices.tolist())  # 0.6 of 8, rounded up


def test_a_group_stays_in_one_mini_batch() -> None:
    data, seen = watched_update(OptimizerSettings(lr=1e-3, minibatches=2, micro_batch=8))
    groups = [{row // data.rollout.group_size for row in part} for part in seen]
    assert sorted(groups, key=min) == [{0}, {1}]


@pytest.mark.parametrize("common", [True, False])
def test_common_noise_gives_the_candidates_of_a_group_one_seed(common: bool) -> None:
    data, seen = watched_update(OptimizerSettings(lr=1e-3, micro_batch=8), common_noise=common)
    together = seen[0] | seen[1]
    seeds = [together[row] for row in range(8)]
    assert len(set(seeds)) == (2 if common else 8)
    assert not common or len(set(seeds[: data.rollout.group_size])) == 1


def test_an_update_trains_at_the_rate_it_is_given() -> None:
    generator = tiny_wan(dtype=torch.float32)
    policies = Policies(generator.transformer, LoraSettings(rank=2, alpha=2.0), torch.Generator().manual_seed(0))
    algorithm = NFT(NFTSettings(beta=1.0, behavior_keep=0.5), (1.0,))
    optimizer = make_optimizer(policies, SETTINGS)
    update(generator, policies, algorithm, experience(), optimizer, SETTINGS, 0.125, torch.Generator())
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_a_gradient_that_is_not_finite_is_named_and_not_taken() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([float("inf"), 1.0])
    with pytest.raises(UserError, match="diverged"):
        clip_gradients([parameter], 1.0)
