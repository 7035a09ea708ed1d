"""One optimisation phase: every sample of an experience once, in shuffled mini-batches of micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from astrolabe.models.base import Generator
from astrolabe.rl.algorithm import Algorithm, LossPart, Samples
from astrolabe.rl.forward import Forward, PromptText
from astrolabe.rl.policies import Policies
from astrolabe.rl.settings import OptimizerSettings
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.world import ALONE, World
from astrolabe.types import Experience, Metrics, Stretch, Trajectory


def make_optimizer(policies: Policies, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW over the learner's adapter."""
    return torch.optim.AdamW(
        list(policies.trainable().values()),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


def move_moments(optimizer: torch.optim.Optimizer, device: torch.device | str) -> None:
    """Keep the moments of the gradients on ``device``: elsewhere than the parameters, while no step is taken."""
    for state in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = state[name].to(device)


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """The rate of ``step``, counted from 0, of ``steps``."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / (settings.warmup + 1)
    if settings.schedule == "constant":
        return settings.lr
    done = (step - settings.warmup) / max(steps - settings.warmup, 1)
    return settings.lr * (1 + math.cos(math.pi * done)) / 2


def update(
    generator: Generator, policies: Policies, algorithm: Algorithm[Any], experience: Experience,
    optimizer: torch.optim.Optimizer, settings: OptimizerSettings, lr: float, rng: torch.Generator,
    world: World = ALONE, reach: Callable[[int, int], None] = lambda done, total: None,
) -> Metrics:  # fmt: skip
    """Train the learner at the rate ``lr`` on the ``share`` of the samples whose advantages are largest, once each, and
    hold the anchored ones near the reference.

    Samples that neither have an advantage nor are anchored are never forwarded. A group stays in one mini-batch, where
    its advantages sum to about zero. An anchored sample weighs the same in whichever mini-batch it is. The processes of
    a ``world`` share the micro-batches, and all take the same step. ``reach`` is told how many samples of all are done.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    rollout, anchored = experience.rollout, experience.anchored
    seeds = torch.randint(2**62, anchored.shape, generator=rng)
    if algorithm.settings.common_noise:
        seeds = seeds[:: rollout.group_size].repeat_interleave(rollout.group_size)
    used = chosen(experience.advantages.abs(), settings.share)
    dealt = torch.randperm(len(rollout.prompts), generator=rng).chunk(settings.minibatches)
    lesson = Lesson(generator, policies, algorithm, experience, settings, used, seeds, len(dealt))
    batches = [list(lesson.units(groups.tolist())) for groups in dealt]
    collected: dict[str, list[float]] = {"loss": [], "grad_norm": [], "old_gap": [], "drift_reference": []}
    total, done = sum(len(unit.rows) for units in batches for unit in units), 0
    policies.compare()
    for groups, units in zip(dealt, batches, strict=True):
        if not units:
            continue
        optimizer.zero_grad(set_to_none=True)
        losses, gaps, distances = torch.zeros(3, len(used)).unbind()
        gradient = Sum(list(policies.trainable().values()), world.size > 1 or generator.device.type == "cpu")
        batch = MiniBatch(lesson, len(groups) * rollout.group_size, gradient)
        for unit, learned in zip(units, world.shared(units, batch.learn, [u.cost for u in units]), strict=True):
            losses[unit.rows] += learned.losses
            gaps[unit.rows] += learned.gaps
            distances[unit.rows] += learned.distances
            gradient.add(learned.gradient)
            done += len(unit.rows)
            reach(done, total)
        own = torch.isin(torch.arange(len(used)) // rollout.group_size, groups)
        collected["loss"].extend(losses[own & used].tolist())
        collected["old_gap"].extend(gaps[own & used].tolist())
        collected["drift_reference"].extend(distances[own & anchored].tolist())
        collected["grad_norm"].append(clip_gradients(gradient.whole(), settings.max_grad_norm))
        optimizer.step()
        policies.alike = False
    return {name: sum(values) / len(values) for name, values in collected.items() if values}


def chosen(strength: Tensor, share: float) -> Tensor:
    """The samples that are trained on: the ``share`` of the largest strengths, unless they are nothing."""
    used = torch.zeros_like(strength, dtype=torch.bool)
    used[strength.topk(math.ceil(share * len(strength))).indices] = True
    return used & (strength > 0)


class Unit(NamedTuple):
    """Candidates ``rows`` of one prompt over one stretch, forwarded together."""

    stretch: Stretch
    rows: Tensor
    anchored: bool

    @property
    def cost(self) -> float:
        """About how long it takes, by the frames that are run: anchored ones once more, under the reference."""
        return len(self.rows) * self.stretch.end * (1.3 if self.anchored else 1.0)


class Learned(NamedTuple):
    """What came of a unit: its gradient, unless that was added up where it arose, and what its rows [n] say."""

    gradient: list[Tensor | None] | None
    losses: Tensor
    gaps: Tensor
    distances: Tensor


class Sum:
    """The gradient of a mini-batch: those of its units, each whole before they are added, in the order of the units.

    So it is the same to the bit, whichever process computed which. That takes memory for one more; on a GPU in one
    process units are added where they arise, since there bits depend on more than the order.
    """

    def __init__(self, parameters: list[Tensor], apart: bool):
        self.parameters, self.apart = parameters, apart
        self.total: list[Tensor | None] | None = None

    def taken(self) -> list[Tensor | None] | None:
        """The gradient that has arisen since the last time, unless it stays where it is."""
        if not self.apart:
            return None
        found = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        return found

    def add(self, gradient: list[Tensor | None] | None) -> None:
        """One more unit."""
        if gradient is None or self.total is None:
            self.total = gradient
            return
        for place, (total, more) in enumerate(zip(self.total, gradient, strict=True)):
            if total is None:
                self.total[place] = more
            elif more is not None:
                total += more

    def whole(self) -> list[Tensor]:
        """The parameters with the sum as their gradient."""
        if self.total is not None:
            for parameter, total in zip(self.parameters, self.total, strict=True):
                parameter.grad = None if total is None else total.to(parameter.device)  # others' come to the CPU
        return self.parameters


@dataclass(frozen=True)
class Lesson:
    """What one update learns from, cut into units. ``seeds`` and ``used`` have an entry a sample."""

    generator: Generator
    policies: Policies
    algorithm: Algorithm[Any]
    experience: Experience
    settings: OptimizerSettings
    used: Tensor
    seeds: Tensor
    minibatches: int

    def units(self, groups: Sequence[int]) -> Iterator[Unit]:
        """What is forwarded of some groups, in order."""
        rollout, anchored = self.experience.rollout, self.experience.anchored
        for stretch in (stretch for group in groups for stretch in rollout.stretches if stretch.group == group):
            for rows in micro_batches(stretch, rollout.group_size, self.used, anchored, self.settings.micro_batch):
                yield Unit(stretch, rows, bool(anchored[rows[0]]))


class MiniBatch:
    """Forward and backward of the units of one mini-batch of so many ``samples``."""

    def __init__(self, lesson: Lesson, samples: int, gradient: Sum):
        self.lesson, self.samples, self.gradient = lesson, samples, gradient
        self.text: tuple[Stretch, PromptText] | None = None  # of the prompt in hand

    def text_of(self, stretch: Stretch) -> PromptText:
        """The text of a stretch: units of one follow one another."""
        if self.text is None or self.text[0] is not stretch:
            self.text = None  # before the next is made
            self.text = stretch, PromptText(self.lesson.generator, self.lesson.policies, stretch.text)
        return self.text[1]

    def learn(self, unit: Unit) -> Learned:
        """What comes of one unit."""
        lesson, (stretch, rows, _) = self.lesson, unit
        algorithm, experience = lesson.algorithm, lesson.experience
        pull = algorithm.regulariser.settings.strength * lesson.minibatches / max(int(experience.anchored.sum()), 1)
        share = (stretch.end - stretch.first) / experience.rollout.latents.shape[1]
        losses, gaps, distances = torch.zeros(3, len(rows)).unbind()
        text = self.text_of(stretch)
        for part in parts_of(lesson.generator, lesson.policies, algorithm, experience, stretch, text, rows,
                             lesson.seeds, lesson.settings.chunks):  # fmt: skip
            total = share * (part.loss * lesson.used[rows].to(part.loss)).sum() / self.samples
            if part.drift_reference is not None:
                total = total + share * pull * part.drift_reference.sum()
                distances += share * part.drift_reference.detach().cpu().float()
            total.backward()
            losses += share * part.loss.detach().cpu().float()
            gaps += share * part.old_gap.cpu().float()
        text.backward()
        return Learned(self.gradient.taken(), losses, gaps, distances)


def micro_batches(stretch: Stretch, group_size: int, used: Tensor, anchored: Tensor, size: int) -> Iterator[Tensor]:
    """Candidates of one prompt that are forwarded at once, at most ``size`` and about as many each time: anchored ones
    apart, for they need the reference."""
    own = torch.arange(stretch.group * group_size, (stretch.group + 1) * group_size)
    for rows in (own[used[own] & ~anchored[own]], own[anchored[own]]):
        if len(rows):
            yield from rows.tensor_split(math.ceil(len(rows) / size))


def parts_of(
    generator: Generator, policies: Policies, algorithm: Algorithm[Any], experience: Experience, stretch: Stretch,
    text: PromptText, rows: Tensor, seeds: Tensor, chunks: int | None,
) -> Iterator[LossPart]:  # fmt: skip
    """The parts of the loss of candidates ``rows`` over one stretch, each to be taken backward before the next."""
    rollout, span = experience.rollout, slice(stretch.first, stretch.end)
    place = rows.to(rollout.latents.device)
    clips = rollout.latents[place]
    forward = Forward(generator, policies, stretch, text, clips[:, : stretch.end])
    own = clips[:, span]
    # Stretches of a clip draw apart: they are never at one level together in the sampler either.
    drawn: Sequence[int] = [(seed + stretch.first) % 2**62 for seed in seeds[rows].tolist()]
    trajectory = rollout.trajectory
    if trajectory is not None:
        trajectory = Trajectory(trajectory.noisy[:, place, span], trajectory.clean[:, place, span])
    samples = Samples(own, experience.credit[rows].to(own), drawn, bool(experience.anchored[rows[0]]), trajectory)
    yield from algorithm.losses(forward, samples, chunks or own.shape[1])


def clip_gradients(parameters: list[Tensor], max_norm: float) -> float:
    """Scale gradients down to ``max_norm``; returns the norm before. UserError when it is not finite."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm).item()
    if not math.isfinite(norm):
        raise UserError(
            f"training diverged: the gradient's norm is {norm}; go on from the last checkpoint's settings in a new run "
            "with a smaller optimizer.lr or algorithm.beta"
        )
    return norm
