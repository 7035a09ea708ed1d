"""The student: the teacher distilled to the sampler's levels, with distribution matching on its own rollouts.

Every round is flow matching on rendered data at the sampler's levels alone: the teacher must serve every level, the
student four. In every ``match_every``-th the student also streams clips with its own sampler and cache (self-generated
context, as in use). A score network (*critic*), trained along by flow matching, tells what the student makes; the
teacher tells what it should make; the difference of their clean predictions moves the student's predictions at every
level it visits.
Source: DMD2 (arXiv 2405.14867) with the self-rollout of Self-Forcing (arXiv 2506.08009), the gradient cut at the cache.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from astrolabe import flow
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.models.wan.transformer import CausalWan
from astrolabe.pretrain.data import Batch, LatentData, draw_captions
from astrolabe.pretrain.flow_matching import TeacherPlan, flow_matching_loss, follow
from astrolabe.pretrain.progress import stage_bar
from astrolabe.rollout.stream import denoise_chunk
from astrolabe.shapes.settings import CLIP_FRAMES
from astrolabe.shapes.text import TextEncoder
from astrolabe.types import Latents, TextEmbeddings

WATCH = 25  # rounds
AT_SAMPLER_LEVELS = TeacherPlan(at_sampler_levels=1.0, text_dropout=0.0)


@dataclass(frozen=True)
class StudentPlan:
    """How the student is distilled: ``rounds`` on data, every ``match_every``-th of them also on its own rollouts.

    ``emphasis``: shapes and motions that the teacher learned least are drawn more often, by these factors.
    """

    rounds: int = 450
    emphasis: tuple[tuple[str, float], ...] = (("bounce", 2.0), ("pulse", 3.0))
    clip_batch: int = 24
    first_chunk_batch: int = 96
    first_chunk_share: float = 0.35
    critic_updates: int = 2
    critic_head_start: int = 5
    learning_rate: float = 5e-4
    critic_learning_rate: float = 4e-4
    guidance: float = 1.0
    match_every: int = 5
    match_weight: float = 0.5
    ema: float = 0.99


@dataclass(frozen=True)
class Visit:
    """One rollout: the finished clips, and for every chunk the noisy input at one level that the sampler visited."""

    text: TextEmbeddings
    clean: Latents
    noisy: Latents
    sigma: Tensor  # [b, f]


class Student:
    """The three networks and their optimizers."""

    def __init__(self, teacher: WanGenerator, plan: StudentPlan):
        self.plan, self.teacher = plan, teacher
        self.student, self.critic = (self._trainable_copy(teacher) for _ in range(2))
        self.average = copy.deepcopy(self.student.transformer).requires_grad_(False)
        self.optimizer = self._adam(self.student, plan.learning_rate)
        self.critic_optimizer = self._adam(self.critic, plan.critic_learning_rate)

    @staticmethod
    def _trainable_copy(model: WanGenerator) -> WanGenerator:
        return replace_transformer(model, copy.deepcopy(model.transformer).requires_grad_(True))

    @staticmethod
    def _adam(model: WanGenerator, rate: float) -> torch.optim.AdamW:
        return torch.optim.AdamW(model.transformer.parameters(), lr=rate, betas=(0.5, 0.99), weight_decay=0.0)

    @torch.no_grad()
    def rollout(self, text: TextEmbeddings, frames: int, generator: torch.Generator) -> Visit:
        """Stream clips with the student; pick one visited level a chunk and video."""
        model, batch = self.student, len(text)
        condition, cache = model.condition(text), model.new_cache(batch, frames)
        cleans, noisies, sigmas = [], [], []
        rows = torch.arange(batch)

        def fresh(chunk: int, step: int, shape: Sequence[int]) -> Tensor:
            return torch.randn(*shape, generator=generator)

        for index, (first, end) in enumerate(model.stream.chunks(frames)):
            shape = (batch, end - first, *model.latent_shape)
            steps = list(denoise_chunk(model, condition, cache, fresh, index, shape))
            pick = torch.randint(len(steps), (batch,), generator=generator)
            noisies.append(torch.stack([step.noisy for step in steps])[pick, rows])
            sigmas.append(torch.stack([step.sigma for step in steps]).float()[pick, None].expand(-1, end - first))
            cleans.append(steps[-1].clean)
            model.commit(cleans[-1], condition, cache)
        return Visit(text, torch.cat(cleans, 1), torch.cat(noisies, 1), torch.cat(sigmas, 1))

    def predict(self, visit: Visit) -> Latents:
        """The student's clean predictions at the visited levels, with gradient."""
        velocity = velocity_of(self.student, visit, visit.text, visit.noisy, visit.sigma)
        return flow.to_clean(visit.noisy, velocity, visit.sigma)

    def match(self, visit: Visit, generator: torch.Generator) -> tuple[Tensor, Latents]:
        """The distribution-matching loss, and the predictions it was taken on (detached, for the critic)."""
        predicted = self.predict(visit)
        sigma, noise = draw(visit, self.teacher.stream.chunk_frames, generator)
        with torch.no_grad():
            noisy = flow.add_noise(predicted, noise, sigma)
            real = self._clean_of(self.teacher, visit, noisy, sigma, guidance=self.plan.guidance)
            fake = self._clean_of(self.critic, visit, noisy, sigma, guidance=1.0)
            scale = (predicted - real).abs().mean((2, 3, 4), keepdim=True).clamp(min=1e-3)
            target = predicted - (fake - real) / scale
        return 0.5 * (predicted - target).square().mean(), predicted.detach()

    @staticmethod
    def _clean_of(model: WanGenerator, visit: Visit, noisy: Latents, sigma: Tensor, guidance: float) -> Latents:
        texts = (visit.text,) if guidance == 1 else (visit.text, torch.zeros_like(visit.text))
        velocities = [velocity_of(model, visit, text, noisy, sigma) for text in texts]
        return flow.to_clean(noisy, velocities[-1] + guidance * (velocities[0] - velocities[-1]), sigma)

    def regress(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Flow matching on rendered data, at the sampler's levels alone: all that the student is for."""
        encoder = self.student.text_encoder
        assert isinstance(encoder, TextEncoder)
        return flow_matching_loss(self.student, encoder, batch, AT_SAMPLER_LEVELS, generator)

    def set_rate(self, share: float) -> None:
        """Both learning rates, as a share of the planned ones."""
        for optimizer, rate in (
            (self.optimizer, self.plan.learning_rate),
            (self.critic_optimizer, self.plan.critic_learning_rate),
        ):
            optimizer.param_groups[0]["lr"] = share * rate

    def criticise(self, visit: Visit, predicted: Latents, generator: torch.Generator) -> Tensor:
        """The critic's flow-matching loss on what the student predicted."""
        sigma, noise = draw(visit, self.teacher.stream.chunk_frames, generator)
        noisy = flow.add_noise(predicted, noise, sigma)
        velocity = velocity_of(self.critic, visit, visit.text, noisy, sigma)
        return (velocity - (noise - predicted)).square().mean()


def velocity_of(
    model: WanGenerator, visit: Visit, embeddings: TextEmbeddings, noisy: Latents, sigma: Tensor
) -> Latents:
    """Velocity of every chunk in the context of the visit's finished chunks; a first chunk alone has none."""
    text = model.condition(embeddings)
    if noisy.shape[1] == model.stream.chunk_frames:
        return model.velocity_block_causal(noisy, sigma, text)
    return model.velocity_in_context(noisy, sigma, text, model.context(visit.clean, text))


def draw(visit: Visit, chunk: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A level per chunk, [b, f], away from both ends, and fresh noise."""
    batch, frames = visit.sigma.shape
    sigma = flow.warp(torch.rand(batch, frames // chunk, generator=generator), 3.0).clamp(0.02, 0.98)
    return sigma.repeat_interleave(chunk, 1), torch.randn(visit.clean.shape, generator=generator)


def distill(
    teacher: WanGenerator,
    data: LatentData,
    plan: StudentPlan,
    seed: int,
    watch: Callable[[int, WanGenerator], None] | None = None,
) -> WanGenerator:
    """Distill; returns the student with averaged (EMA) weights.

    ``watch(rounds, student)`` is called every ``WATCH`` rounds with the average so far: a distillation is judged by its
    samples, not by its loss. It must draw no numbers from torch's global generator.
    """
    generator = torch.Generator().manual_seed(seed)
    trio = Student(teacher, plan)
    recent: deque[tuple[Visit, Latents]] = deque(maxlen=8)
    with stage_bar("student", plan.rounds) as bar:
        for step in range(plan.rounds):
            first_only = torch.rand((), generator=generator).item() < plan.first_chunk_share
            count = plan.first_chunk_batch if first_only else plan.clip_batch
            frames = teacher.stream.chunk_frames if first_only else CLIP_FRAMES
            trio.set_rate(1 - step / plan.rounds)
            loss = trio.regress(data.draw(count, frames, teacher.stream.chunk_frames, generator), generator)
            numbers = {"data": loss.item()}
            if step % plan.match_every == 0:
                text = teacher.encode_text(draw_captions(count, generator))
                visit = trio.rollout(text, frames, generator)
                match, predicted = trio.match(visit, generator)
                recent.append((visit, predicted))
                for _ in range(plan.critic_updates):
                    pick = int(torch.randint(len(recent), (), generator=generator))
                    critic_loss = trio.criticise(*recent[pick], generator)
                    optimise(trio.critic_optimizer, critic_loss)
                numbers |= {"match": match.item(), "critic": critic_loss.item()}
                if step >= plan.critic_head_start * plan.match_every:
                    loss = loss + plan.match_weight * match
            optimise(trio.optimizer, loss)
            follow(trio.average, trio.student.transformer, min(plan.ema, (1 + step) / (10 + step)))
            bar.advance(**numbers)
            if watch and (step + 1) % WATCH == 0:
                watch(step + 1, replace_transformer(teacher, trio.average))
    trio.student.transformer.load_state_dict(trio.average.state_dict())
    trio.student.transformer.eval().requires_grad_(False)
    return trio.student


def replace_transformer(model: WanGenerator, transformer: CausalWan) -> WanGenerator:
    """The same generator around another network."""
    return WanGenerator(
        transformer, model.stream, model.latent_shape, model.text_encoder, model.codec, dtype=model.dtype
    )


def optimise(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One clipped step."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
