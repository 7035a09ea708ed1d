"""Negative-aware fine-tuning in the forward process (method, section 4): the loss, and the algorithm around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from astrolabe import flow
from astrolabe.models.wan.config import StreamConfig
from astrolabe.rl import advantages as credit
from astrolabe.rl.advantages import Combine, Std
from astrolabe.rl.forward import Forward
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

    def level_table(self, stream: StreamConfig, chunks: int, first: int = 0) -> Tensor:
        """The levels [k, chunks] to choose from: those that the sampler visits in each chunk; missing ones are nan.

        ``first`` is the number, in their video, of the first of the chunks. Raises UserError when a chunk has fewer
        than ``levels_per_sample``.
        """
        count, numbers = self.settings.levels_per_sample, range(first, first + chunks)
        columns = [stream.levels_of(chunk) for chunk in numbers]
        if self.settings.levels == "unwarped":
            columns = [torch.tensor(stream.steps_of(c), dtype=torch.float64) / flow.TIMESTEPS for c in numbers]
        fewest = min(len(column) for column in columns)
        if self.settings.levels != "uniform" and count > fewest:
            raise UserError(
                f"algorithm.levels_per_sample={count}: the model has {fewest} levels and none is drawn twice; choose at"
                f" most {fewest}, or algorithm.levels=uniform"
            )
        return pad_sequence(columns, padding_value=torch.nan)

    def draw(
        self, stream: StreamConfig, shape: torch.Size, seeds: Sequence[int], before: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Levels [s, b, f] and noise [s, b, f, c, h, w] of samples of ``shape`` [f, c, h, w], each from its own seed.

        For every sample and chunk ``s = levels_per_sample`` levels, without repetition; ``before`` frames of the video
        came earlier. A sample's draw does not depend on the micro-batch it comes in.
        """
        chunk, count = stream.chunk_frames, self.settings.levels_per_sample
        table = self.level_table(stream, shape[0] // chunk, before // chunk)
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

    def losses(
        self, forward: Forward, clean: Latents, optimality: PerSample, seeds: Sequence[int], chunks: int
    ) -> Iterator[tuple[PerSample, PerSample]]:
        """Parts of the loss of samples ``clean`` at freshly drawn levels, and how far learner and behavior differ (mean
        square, without gradient): ``chunks`` chunks at one level in each. All parts together are the sample's loss.
        """
        stream, frames = forward.generator.stream, clean.shape[1]
        levels, noises = self.draw(stream, clean.shape[1:], seeds, forward.stretch.before)
        exact = torch.promote_types(clean.dtype, torch.float32)
        for sigma, noise in zip(levels.to(clean.device, exact), noises.to(clean), strict=True):
            for first in range(0, frames // stream.chunk_frames, chunks):
                run = slice(first, min(first + chunks, frames // stream.chunk_frames))
                place = slice(run.start * stream.chunk_frames, run.stop * stream.chunk_frames)
                noisy = flow.add_noise(clean[:, place], noise[:, place], sigma[:, place])
                learner, behavior = forward.predict(noisy, sigma[:, place], run)
                share = noisy.shape[1] / frames / len(levels)
                loss = nft_loss(learner, behavior, clean[:, place], optimality, self.settings.beta)
                drift = (learner.detach() - behavior).square().mean((1, 2, 3, 4))
                yield share * loss, share * drift

    def after_step(self, policies: Policies) -> None:
        """behavior <- keep behavior + (1 - keep) learner."""
        policies.blend("learner", into="behavior", keep=self.settings.behavior_keep)
