"""One optimisation phase: every sample of an experience once, in shuffled mini-batches of micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from astrolabe.models.base import Generator
from astrolabe.rl.algorithm import Algorithm, Part, Samples
from astrolabe.rl.forward import Forward, PromptText
from astrolabe.rl.policies import Policies
from astrolabe.rl.settings import OptimizerSettings
from astrolabe.runtime.errors import UserError
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
) -> Metrics:  # fmt: skip
    """Train the learner at the rate ``lr`` on the ``share`` of the samples whose advantages are largest, once each, and
    hold the anchored ones near the reference.

    Samples that neither have an advantage nor are anchored are never forwarded. A group stays in one mini-batch, where
    its advantages sum to about zero. An anchored sample weighs the same in whichever mini-batch it is.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    rollout, strength, anchored = experience.rollout, experience.advantages.abs(), experience.anchored
    seeds = torch.randint(2**62, strength.shape, generator=rng)
    if algorithm.settings.common_noise:
        seeds = seeds[:: rollout.group_size].repeat_interleave(rollout.group_size)
    used = torch.zeros_like(strength, dtype=torch.bool)
    used[strength.topk(math.ceil(settings.share * len(strength))).indices] = True
    used &= strength > 0
    dealt = torch.randperm(len(rollout.prompts), generator=rng).chunk(settings.minibatches)
    pull = algorithm.regulariser.settings.strength * len(dealt) / max(int(anchored.sum()), 1)
    collected: dict[str, list[float]] = {"loss": [], "grad_norm": [], "drift_behavior": [], "drift_reference": []}
    policies.compare()
    for groups in dealt:
        optimizer.zero_grad(set_to_none=True)
        losses, drifts, distances = torch.zeros(3, len(strength)).unbind()
        batch = len(groups) * rollout.group_size
        for stretch in (stretch for group in groups for stretch in rollout.stretches if stretch.group == group):
            text: PromptText | None = None
            for rows in micro_batches(stretch, rollout.group_size, used, anchored, settings.micro_batch):
                text = text or PromptText(generator, policies, stretch.text)
                share = (stretch.end - stretch.first) / rollout.latents.shape[1]
                for part in parts_of(generator, policies, algorithm, experience, stretch, text, rows, seeds,
                                     settings.chunks):  # fmt: skip
                    counted = used[rows].to(part.loss)
                    total = share * (part.loss * counted).sum() / batch
                    if part.drift_reference is not None:
                        total = total + share * pull * part.drift_reference.sum()
                        distances[rows] += share * part.drift_reference.detach().cpu().float()
                    total.backward()
                    losses[rows] += share * part.loss.detach().cpu().float()
                    drifts[rows] += share * part.drift_behavior.cpu().float()
            if text is not None:
                text.backward()
        own = torch.isin(torch.arange(len(used)) // rollout.group_size, groups)
        if not bool((own & (used | anchored)).any()):
            continue
        collected["loss"].extend(losses[own & used].tolist())
        collected["drift_behavior"].extend(drifts[own & used].tolist())
        collected["drift_reference"].extend(distances[own & anchored].tolist())
        collected["grad_norm"].append(clip_gradients(list(policies.trainable().values()), settings.max_grad_norm))
        optimizer.step()
        policies.alike = False
    return {name: sum(values) / len(values) for name, values in collected.items() if values}


def micro_batches(stretch: Stretch, group_size: int, used: Tensor, anchored: Tensor, size: int) -> Iterator[Tensor]:
    """Candidates of one prompt that are forwarded at once: anchored ones apart, for they need the reference."""
    own = torch.arange(stretch.group * group_size, (stretch.group + 1) * group_size)
    for rows in (own[used[own] & ~anchored[own]], own[anchored[own]]):
        yield from (part for part in rows.split(size) if len(part))


def parts_of(
    generator: Generator, policies: Policies, algorithm: Algorithm[Any], experience: Experience, stretch: Stretch,
    text: PromptText, rows: Tensor, seeds: Tensor, chunks: int | None,
) -> Iterator[Part]:  # fmt: skip
    """The parts of the loss of candidates ``rows`` over one stretch, each to be taken backward before the next."""
    rollout, span = experience.rollout, slice(stretch.first, stretch.end)
    place = rows.to(rollout.latents.device)
    clips = rollout.latents[place]
    forward = Forward(generator, policies, stretch, text, clips[:, : stretch.end])
    own = clips[:, span]
    # Stretches of a clip draw apart: they are never at one level together in the sampler either.
    drawn: Sequence[int] = [(seed + stretch.first) % 2**62 for seed in seeds[rows].tolist()]
    way = rollout.trajectory
    if way is not None:
        way = Trajectory(way.noisy[:, place, span], way.clean[:, place, span])
    samples = Samples(own, experience.credit[rows].to(own), drawn, bool(experience.anchored[rows[0]]), way)
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
