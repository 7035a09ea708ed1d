"""Negative-aware fine-tuning in the forward process (method, section 4): the loss, and the algorithm around it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from astrolabe import flow
from astrolabe.models.base import Generator
from astrolabe.models.wan.config import StreamConfig
from astrolabe.rl import advantages as credit
from astrolabe.rl.advantages import Combine, Std
from astrolabe.rl.policies import Policies
from astrolabe.runtime.config import config, setting
from astrolabe.runtime.errors import UserError
from astrolabe.types import Experience, Latents, PerSample, Rollout, Scores


@config
class NFTSettings:
    """Negative-aware fine-tuning: credit, loss, and how the behavior policy follows."""

    beta: float = setting("how far the implicit positive and negative policies stand from the behavior policy", gt=0)
    levels: Literal["sampler", "unwarped", "uniform"] = setting(
        "noise levels trained at: those the sampler visits, the same list before warping, or uniform in (0, 1)",
        default="sampler",
    )
    levels_per_sample: int = setting("levels drawn (without repetition) for every chunk of a sample", default=1, ge=1)
    common_noise: bool = setting(
        "the candidates of a group share levels and noise, so that their common error cancels",
        default=False,
    )
    combine: Combine = setting("how several rewards become one", default="normalize_then_sum")
    std: Std = setting("what advantages are divided by", default="step")
    a_max: float = setting("advantage at which optimality saturates", unit="standard deviations", default=5.0, gt=0)
    behavior_keep: float = setting("share of itself the behavior policy keeps after a step", ge=0, le=1)


def nft_loss(learner: Latents, behavior: Latents, clean: Latents, optimality: PerSample, beta: float) -> PerSample:
    """r |positive - x0|^2 + (1 - r) |negative - x0|^2, mean over the elements of each sample.

    ``learner`` and ``behavior`` are predictions of x0. At learner = behavior the gradient in the learner's prediction
    is 2 beta (2 r - 1) (behavior - x0) / N.
    """
    step = beta * (learner - behavior)
    positive = (behavior + step - clean).square().mean((1, 2, 3, 4))
    negative = (behavior - step - clean).square().mean((1, 2, 3, 4))
    return optimality * positive + (1 - optimality) * negative


class NFT:
    """``prepare`` assigns credit, ``loss`` trains one micro-batch, ``after_step`` lets the behavior policy follow."""

    def __init__(self, settings: NFTSettings, weights: tuple[float, ...]):
        self.settings, self.weights = settings, weights

    def prepare(self, rollout: Rollout, scores: Scores) -> Experience:
        """Combine the rewards, compare within groups."""
        rewards = credit.combine_rewards(scores.values, self.weights, self.settings.combine)
        advantages = credit.group_advantages(rewards, rollout.group_size, self.settings.std)
        return Experience(rollout, scores, advantages, credit.optimality(advantages, self.settings.a_max))

    def level_table(self, stream: StreamConfig, chunks: int) -> Tensor:
        """The levels [k, chunks] to choose from, those that the sampler visits in each chunk; missing ones are nan.

        Raises UserError when a chunk has fewer than ``levels_per_sample``.
        """
        count = self.settings.levels_per_sample
        columns = [stream.levels_of(chunk) for chunk in range(chunks)]
        if self.settings.levels == "unwarped":
            columns = [torch.tensor(stream.steps_of(c), dtype=torch.float64) / flow.TIMESTEPS for c in range(chunks)]
        fewest = min(len(column) for column in columns)
        if self.settings.levels != "uniform" and count > fewest:
            raise UserError(
                f"algorithm.levels_per_sample={count}: the model has {fewest} levels and none is drawn twice; choose at"
                f" most {fewest}, or algorithm.levels=uniform"
            )
        return pad_sequence(columns, padding_value=torch.nan)

    def draw(self, generator: Generator, shape: torch.Size, seeds: list[int]) -> tuple[Tensor, Tensor]:
        """Levels [s, b, f] and noise [s, b, f, c, h, w] of samples of ``shape`` [f, c, h, w], each from its own seed.

        For every sample and chunk ``s = levels_per_sample`` levels, without repetition. A sample's draw does not depend
        on the micro-batch it comes in.
        """
        chunk, count = generator.stream.chunk_frames, self.settings.levels_per_sample
        table = self.level_table(generator.stream, shape[0] // chunk)
        levels, noises = [], []
        for seed in seeds:
            rng = torch.Generator().manual_seed(seed)
            chance = torch.rand(max(len(table), count), table.shape[1], generator=rng, dtype=torch.float64)
            drawn = chance[:count]
            if self.settings.levels != "uniform":
                drawn = table.gather(0, chance.where(~table.isnan(), torch.inf).argsort(0)[:count])
            levels.append(drawn.repeat_interleave(chunk, 1))
            noises.append(torch.randn(len(drawn), *shape, generator=rng))
        return torch.stack(levels, 1), torch.stack(noises, 1)

    def loss(
        self, generator: Generator, policies: Policies, experience: Experience, rows: Tensor, seeds: list[int]
    ) -> tuple[PerSample, PerSample]:
        """Loss of the samples ``rows`` at freshly drawn levels, and how far learner and behavior differ (mean square).

        The clean context is computed once and held constant.
        The context is the behavior policy's, whose own it was when the clip was streamed; learner and behavior see the
        same one, so that they differ only in what they predict.
        """
        rollout = experience.rollout
        clean = rollout.latents[rows]
        text = rollout.text[rows // rollout.group_size]
        optimality = experience.optimality[rows].to(clean)
        with torch.no_grad(), policies.using("behavior"):
            acting_text = generator.condition(text)
            context = generator.context(clean, acting_text)
        own_text = generator.condition(text)
        losses, drifts = [], []
        levels, noises = self.draw(generator, clean.shape[1:], seeds)
        exact = torch.promote_types(clean.dtype, torch.float32)
        for sigma, noise in zip(levels.to(clean.device, exact), noises.to(clean), strict=True):
            noisy = flow.add_noise(clean, noise, sigma)
            with torch.no_grad(), policies.using("behavior"):
                velocity = generator.velocity_in_context(noisy, sigma, acting_text, context)
                behavior = flow.to_clean(noisy, velocity, sigma)
            learner = flow.to_clean(noisy, generator.velocity_in_context(noisy, sigma, own_text, context), sigma)
            losses.append(nft_loss(learner, behavior, clean, optimality, self.settings.beta))
            drifts.append((learner.detach() - behavior).square().mean((1, 2, 3, 4)))
        return torch.stack(losses).mean(0), torch.stack(drifts).mean(0)

    def after_step(self, policies: Policies) -> None:
        """behavior <- keep behavior + (1 - keep) learner."""
        policies.blend("learner", into="behavior", keep=self.settings.behavior_keep)
