"""What every algorithm does with an experience: credit, a loss on each part of a clip, and what follows a step.

``ForwardProcess`` is the family that trains in the forward process: it adds noise to the clean clip and compares what
the policies predict of it. NFT is one; its rivals differ in one function. GRPO goes back along the sampler's own steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from astrolabe import flow
from astrolabe.models.wan.config import StreamConfig
from astrolabe.rl.advantages import combine_rewards, contributions, group_advantages
from astrolabe.rl.forward import Forward
from astrolabe.rl.policies import Policies
from astrolabe.rl.regularisation import Regulariser, drift
from astrolabe.rl.settings import AlgorithmSettings, ForwardSettings
from astrolabe.rl.signal import advantage_signal
from astrolabe.runtime.errors import UserError
from astrolabe.types import Experience, Latents, Metrics, PerSample, Rollout, Scores, Sigmas, Trajectory

Shared = TypeVar("Shared", bound=AlgorithmSettings)
Noised = TypeVar("Noised", bound=ForwardSettings)


@dataclass(frozen=True)
class Samples:
    """Candidates of one stretch: clean frames [b f c h w], their credit, a seed each, whether they are anchored, and
    the sampler's trajectory to those frames, where it is kept."""

    clean: Latents
    credit: PerSample
    seeds: Sequence[int]
    anchored: bool = False
    trajectory: Trajectory | None = None


class LossPart(NamedTuple):
    """A part of each sample's loss, with gradient; the square distance of learner and behavior, without; and for
    anchored samples that of learner and reference, with gradient."""

    loss: PerSample
    old_gap: PerSample
    drift_reference: PerSample | None


class Algorithm(ABC, Generic[Shared]):
    """``prepare`` assigns credit, ``losses`` trains one micro-batch, ``after_step`` lets the other policies follow."""

    needs_trajectory = False

    def __init__(self, settings: Shared, weights: Sequence[float], regulariser: Regulariser | None = None):
        """``weights`` of the rewards that are trained on: the first columns of the scores; judges come after them."""
        self.settings, self.weights = settings, tuple(weights)
        self.regulariser = regulariser or Regulariser.off()

    @abstractmethod
    def credit(self, advantages: PerSample) -> PerSample:
        """What the loss needs to know of a sample."""

    @abstractmethod
    def level_table(self, stream: StreamConfig, chunks: int, first: int = 0) -> Tensor:
        """The levels [k, chunks] to choose from, nan where a chunk has fewer; ``first``: the number of the first chunk
        in its video. UserError when a chunk has fewer than ``levels_per_sample``."""

    @abstractmethod
    def losses(self, forward: Forward, samples: Samples, chunks: int) -> Iterator[LossPart]:
        """Parts of the loss, ``chunks`` chunks at one level in each; all together are the sample's loss."""

    def prepare(self, rollout: Rollout, scores: Scores, rng: torch.Generator) -> tuple[Experience, Metrics]:
        """Combine the rewards, compare within groups, mark samples to anchor. Samples without a score are left out."""
        values, size = scores.values[:, : len(self.weights)], rollout.group_size
        rewards = combine_rewards(values, self.weights, self.settings.combine)
        advantages = group_advantages(rewards, size, self.settings.std)
        marked, metrics = self.regulariser.mark(scores, size, rng)
        shares = contributions(values, self.weights, self.settings.combine, size)
        trained = scores.names[: len(self.weights)]
        metrics |= {f"contribution/{name}": share.item() for name, share in zip(trained, shares, strict=True)}
        metrics |= advantage_signal(scores, self.weights, self.settings.combine, size)
        metrics["dropped"] = (~scores.valid).float().mean().item()
        return Experience(rollout, scores, advantages, self.credit(advantages), marked), metrics

    def after_step(self, policies: Policies, step: int, metrics: Metrics) -> Metrics:
        """behavior <- keep behavior + (1 - keep) learner; the reference moves when it is due."""
        policies.blend("learner", into="behavior", keep=self.settings.keep(step))
        return self.regulariser.after_step(policies, metrics.get("drift_reference"))

    def tensors(self) -> dict[str, Tensor]:
        """All that decides how it goes on."""
        return self.regulariser.tensors()

    def restore(self, parts: Mapping[str, Tensor]) -> None:
        """The inverse of ``tensors``."""
        self.regulariser.restore(parts)

    def distance(
        self, forward: Forward, samples: Samples, learner: Latents, noisy: Latents, sigma: Sigmas, run: slice
    ) -> PerSample | None:
        """How far anchored samples have drifted from the reference."""
        if not samples.anchored:
            return None
        reference = forward.reference(noisy, sigma, run)
        return drift(learner, reference, sigma, self.regulariser.settings.space)


class ForwardProcess(Algorithm[Noised]):
    """Algorithms that learn from noise added to the clean clip."""

    @abstractmethod
    def loss(self, learner: Latents, behavior: Latents, clean: Latents, credit: PerSample) -> PerSample:
        """One number a sample, from predictions of x0."""

    def level_table(self, stream: StreamConfig, chunks: int, first: int = 0) -> Tensor:
        """See ``Algorithm``: by default the levels that the sampler visits."""
        settings = self.settings
        count, numbers = settings.levels_per_sample, range(first, first + chunks)
        columns = [stream.levels_of(chunk) for chunk in numbers]
        if settings.levels == "unwarped":
            columns = [torch.tensor(stream.steps_of(c), dtype=torch.float64) / flow.TIMESTEPS for c in numbers]
        fewest = min(len(column) for column in columns)
        if settings.levels != "uniform" and count > fewest:
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

    def losses(self, forward: Forward, samples: Samples, chunks: int) -> Iterator[LossPart]:
        """See ``Algorithm``; every part at a freshly drawn level a chunk."""
        stream, clean = forward.generator.stream, samples.clean
        levels, noises = self.draw(stream, clean.shape[1:], samples.seeds, forward.stretch.before)
        exact = torch.promote_types(clean.dtype, torch.float32)
        for sigma, noise in zip(levels.to(clean.device, exact), noises.to(clean), strict=True):
            whole = flow.add_noise(clean, noise, sigma)
            facing = forward.facing_noise(whole, sigma) if self.settings.context == "noisy" else forward
            for run, place in runs(stream, clean.shape[1], chunks):
                noisy, level = whole[:, place], sigma[:, place]
                learner, behavior = facing.predict(noisy, level, run)
                share = noisy.shape[1] / clean.shape[1] / len(levels)
                moved = (learner.detach() - behavior).square().mean((1, 2, 3, 4))
                away = self.distance(facing, samples, learner, noisy, level, run)
                yield LossPart(
                    share * self.loss(learner, behavior, clean[:, place], samples.credit),
                    share * moved,
                    None if away is None else share * away,
                )


def runs(stream: StreamConfig, frames: int, chunks: int) -> Iterator[tuple[slice, slice]]:
    """``frames`` frames, ``chunks`` chunks at a time: numbers of chunks, and the frames they are."""
    size = stream.chunk_frames
    for first in range(0, frames // size, chunks):
        run = slice(first, min(first + chunks, frames // size))
        yield run, slice(run.start * size, run.stop * size)
