"""The teacher: flow matching under teacher forcing, with text dropout so that it can be guided."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from astrolabe import flow
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.models.wan.transformer import CausalWan, initialise
from astrolabe.pretrain.data import Batch, LatentData
from astrolabe.pretrain.progress import stage_bar
from astrolabe.shapes.settings import CLIP_FRAMES, LATENT_SHAPE, STREAM, WAN
from astrolabe.shapes.text import TextEncoder


@dataclass(frozen=True)
class TeacherPlan:
    """How the teacher is trained. Two thirds of the steps are first chunks alone: with no past to lean on they are
    the whole difficulty, and they are cheap."""

    steps: int = 3000
    clip_batch: int = 24
    first_chunk_batch: int = 96
    first_chunk_share: float = 0.67
    learning_rate: float = 1.2e-3
    warmup: int = 100
    ema: float = 0.998
    text_dropout: float = 0.1
    at_sampler_levels: float = 0.3
    context_noise: float = 0.1


def draw_sigma(count: int, plan: TeacherPlan, generator: torch.Generator) -> Tensor:
    """Levels [count]: uniform warped by shift 3, a share of them on the sampler's own levels."""
    sigma = flow.warp(torch.rand(count, generator=generator), 3.0)
    levels = STREAM.levels.float()
    picked = levels[torch.randint(len(levels), (count,), generator=generator)]
    return torch.where(torch.rand(count, generator=generator) < plan.at_sampler_levels, picked, sigma)


def train_teacher(data: LatentData, plan: TeacherPlan, seed: int) -> WanGenerator:
    """Train from nothing; returns the averaged (EMA) weights, with the text encoder that was learned along."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    transformer, text_encoder = CausalWan(WAN), TextEncoder(WAN.text_dim)
    initialise(transformer, generator)
    model = WanGenerator(transformer, STREAM, LATENT_SHAPE, text_encoder, dtype=torch.bfloat16)
    both = nn.ModuleList([transformer, text_encoder])
    average = copy.deepcopy(both).requires_grad_(False)
    optimizer = torch.optim.AdamW(both.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / plan.warmup, 1.0) * max(1 - step / plan.steps, 0.01)
    )
    with stage_bar("teacher", plan.steps) as bar:
        for step in range(plan.steps):
            first_only = torch.rand((), generator=generator).item() < plan.first_chunk_share
            count = plan.first_chunk_batch if first_only else plan.clip_batch
            frames = STREAM.chunk_frames if first_only else CLIP_FRAMES
            loss = flow_matching_loss(model, text_encoder, data.draw(count, frames, STREAM.chunk_frames, generator),
                                      plan, generator)  # fmt: skip
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(both.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            follow(average, both, min(plan.ema, (1 + step) / (10 + step)))
            bar.advance(**{"first chunk" if first_only else "clip": loss.item()})
    both.load_state_dict(average.state_dict())
    for module in (transformer, text_encoder):
        module.eval().requires_grad_(False)
    return model


def flow_matching_loss(
    model: WanGenerator, text_encoder: TextEncoder, batch: Batch, plan: TeacherPlan, generator: torch.Generator
) -> Tensor:
    """Mean squared velocity error of noisy chunks that see slightly noisy clean chunks before them."""
    clean = batch.clean
    count, frames = clean.shape[:2]
    kept = (torch.rand(count, generator=generator) >= plan.text_dropout).float()[:, None, None]
    text = model.condition(text_encoder.encode(batch.captions) * kept)
    chunks = frames // STREAM.chunk_frames
    sigma = draw_sigma(count * chunks, plan, generator).view(count, chunks).repeat_interleave(STREAM.chunk_frames, 1)
    noise = torch.randn(clean.shape, generator=generator)
    noisy = flow.add_noise(clean, noise, sigma)
    if chunks == 1:
        return (model.velocity_block_causal(noisy, sigma, text) - (noise - clean)).square().mean()
    context_level = plan.context_noise * torch.rand(count, 1, generator=generator).expand(-1, frames)
    seen = flow.add_noise(clean, torch.randn(clean.shape, generator=generator), context_level)
    velocity = model.velocity_teacher_forced(noisy, sigma, seen, text)
    error = (velocity - (noise - clean)).square().mean((2, 3, 4))
    return (error * batch.counted).sum() / batch.counted.sum()


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """``average <- decay average + (1 - decay) model``."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
