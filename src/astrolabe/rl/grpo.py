"""GRPO on the few-step sampler's own kernel. A rival that goes back along the sampler's steps.

After each level but the last, the sampler re-noises its clean prediction to the next one, sigma':
x' ~ N((1 - sigma') x0, sigma'^2). That is a Gaussian policy whose log-probability is known, without any change to the
sampler. An action is one such step of one chunk. Source: GRPO (arXiv 2402.03300); on a flow model's steps, Flow-GRPO
(arXiv 2505.05470), which like this takes the mean of the log-probability over elements.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from astrolabe.models.wan.config import StreamConfig
from astrolabe.rl.algorithm import Algorithm, LossPart, Samples, runs
from astrolabe.rl.forward import Forward
from astrolabe.rl.settings import GRPOSettings
from astrolabe.runtime.errors import UserError
from astrolabe.types import Latents, PerSample


def log_ratio(
    learner: Latents, behavior: Latents, reached: Latents, sigma: Float[Tensor, "b f"], chunk: int
) -> Float[Tensor, "b chunks"]:
    """log N(x'; (1 - sigma') learner, sigma'^2) - log N(x'; (1 - sigma') behavior, sigma'^2), mean over the elements of
    each chunk. ``reached`` is x', ``sigma`` its level."""
    level = sigma[:, :, None, None, None]
    errors = [(reached - (1 - level) * clean).square() for clean in (learner, behavior)]
    difference = (errors[1] - errors[0]) / (2 * level.square())
    return difference.unflatten(1, (-1, chunk)).mean((2, 3, 4, 5))


def clipped(ratio: Float[Tensor, "b chunks"], advantage: PerSample, clip: float) -> PerSample:
    """-min(ratio A, clip(ratio) A), mean over chunks."""
    gain = advantage[:, None]
    return -torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain).mean(1)


class GRPO(Algorithm[GRPOSettings]):
    """Learns from the steps that the sampler took; it needs the trajectory, and no forward of the behavior policy."""

    needs_trajectory = True

    def credit(self, advantages: PerSample) -> PerSample:
        """The advantage itself, cut."""
        return advantages.clamp(-self.settings.max_advantage, self.settings.max_advantage)

    def level_table(self, stream: StreamConfig, chunks: int, first: int = 0) -> Tensor:
        """See ``Algorithm``: the sampler's levels but the last, from which nothing random follows."""
        columns = [stream.levels_of(chunk)[:-1] for chunk in range(first, first + chunks)]
        fewest = min(len(column) for column in columns)
        if self.settings.levels_per_sample > fewest:
            raise UserError(
                f"algorithm.levels_per_sample={self.settings.levels_per_sample}: the sampler takes {fewest} random "
                f"steps from one level to the next and none is drawn twice; choose at most {fewest}"
                if fewest
                else "algorithm.name=grpo needs a sampler of at least 2 levels: one step from noise is not random"
            )
        return pad_sequence(columns, padding_value=torch.nan)

    def draw(self, table: Tensor, seeds: list[int]) -> Tensor:
        """Numbers of levels [s, b, chunks] to learn from, without repetition, of each sample from its own seed."""
        drawn = []
        for seed in seeds:
            chance = torch.rand(table.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            drawn.append(chance.where(~table.isnan(), torch.inf).argsort(0)[: self.settings.levels_per_sample])
        return torch.stack(drawn, 1)

    def losses(self, forward: Forward, samples: Samples, chunks: int) -> Iterator[LossPart]:
        """See ``Algorithm``; every part at one of the sampler's steps a chunk."""
        stream, clean, way = forward.generator.stream, samples.clean, samples.trajectory
        assert way is not None, "the rollout kept no trajectory"
        size, before = stream.chunk_frames, forward.stretch.before // stream.chunk_frames
        count = clean.shape[1] // size
        table = self.level_table(stream, count, before)
        following = pad_sequence([stream.levels_of(before + i)[1:] for i in range(count)], padding_value=torch.nan)
        rows = torch.arange(len(clean))[:, None]
        frames = torch.arange(clean.shape[1])
        exact = torch.promote_types(clean.dtype, torch.float32)
        drawn = self.draw(table, list(samples.seeds)).repeat_interleave(size, 2)
        for level in drawn:  # [b, f]
            number = frames // size
            sigma, reached_sigma = (levels[level, number].to(clean.device, exact) for levels in (table, following))
            index = level.to(clean.device)
            noisy, behavior = way.noisy[index, rows, frames], way.clean[index, rows, frames]
            reached = way.noisy[index + 1, rows, frames]
            for run, place in runs(stream, clean.shape[1], chunks):
                learner = forward.learner(noisy[:, place], sigma[:, place], run)
                ratio = log_ratio(learner, behavior[:, place], reached[:, place], reached_sigma[:, place], size).exp()
                share = (place.stop - place.start) / clean.shape[1] / len(drawn)
                moved = (learner.detach() - behavior[:, place]).square().mean((1, 2, 3, 4))
                away = self.distance(forward, samples, learner, noisy[:, place], sigma[:, place], run)
                yield LossPart(
                    share * clipped(ratio, samples.credit, self.settings.clip),
                    share * moved,
                    None if away is None else share * away,
                )
