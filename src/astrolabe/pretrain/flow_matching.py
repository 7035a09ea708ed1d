"""Flow matching under teacher forcing: the teacher, from nothing, and the students, from the teacher.

The teacher learns every noise level, with and without text, and every way of streaming that a student has. A student
goes on from it in one way of streaming, at the levels of its own sampler alone: that is all it will be asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from astrolabe import flow
from astrolabe.models.wan.config import StreamConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.models.wan.transformer import CausalWan, initialise
from astrolabe.pretrain.data import Batch, LatentData
from astrolabe.pretrain.training import PIECES, Rates, train
from astrolabe.runtime.world import ALONE, World
from astrolabe.shapes.settings import LATENT_SHAPE, LONGEST, STREAMS, WAN, ShapesName
from astrolabe.shapes.text import TextEncoder


@dataclass(frozen=True)
class FlowPlan:
    """How a network is trained. Many steps are first chunks alone: with no past to lean on they are where shapes are
    learned, and they are cheap; motion is learned from videos. ``videos``: of so many latent frames, so many a step,
    each as often."""

    rates: Rates
    streams: tuple[ShapesName, ...]  # a step is of one of them, each as often
    at_sampler_levels: float  # share of the chunks that are at a level of the sampler's
    text_dropout: float
    beginnings: float  # share of the steps
    beginning_batch: int = 96
    videos: tuple[tuple[int, int], ...] = ((LONGEST // 2, 8), (LONGEST, 4))
    context_noise: float = 0.1
    # scenes that are learned more slowly than others are drawn more often
    emphasis: tuple[tuple[str, float], ...] = (("bounce", 2.0), ("pulse", 2.5), ("cross", 1.5))


TEACHER = FlowPlan(
    rates=Rates(steps=4000, learning_rate=1.2e-3, warmup=100, ema=0.998),
    streams=("shapes", "shapes-framewise"),
    at_sampler_levels=0.6,
    text_dropout=0.1,
    beginnings=0.78,
)
STUDENT = FlowPlan(
    rates=Rates(steps=900, learning_rate=8e-4, warmup=20, ema=0.99, weight_decay=0.0),
    streams=("shapes",),
    at_sampler_levels=1.0,
    text_dropout=0.0,
    beginnings=0.5,
    videos=((LONGEST // 4, 16), (LONGEST // 2, 8), (LONGEST, 4)),
)
# Where a first chunk is a single frame, all of a motion is learned from videos.
FRAMEWISE = replace(STUDENT, beginnings=0.3, videos=((LONGEST // 4, 16), *STUDENT.videos))
STUDENTS: dict[ShapesName, FlowPlan] = {
    "shapes": STUDENT,
    "shapes-framewise": replace(FRAMEWISE, streams=("shapes-framewise",)),
    "shapes-2step": replace(FRAMEWISE, streams=("shapes-2step",)),
}


class Networks(nn.Module):
    """What is trained together."""

    def __init__(self, transformer: CausalWan, text_encoder: TextEncoder):
        super().__init__()
        self.transformer, self.text_encoder = transformer, text_encoder

    def generator(self, name: ShapesName) -> WanGenerator:
        """These networks, streaming as the model ``name`` does; without a codec."""
        return WanGenerator(self.transformer, STREAMS[name], LATENT_SHAPE, self.text_encoder, dtype=torch.bfloat16)


def new_networks(seed: int) -> Networks:
    """Networks that know nothing."""
    torch.manual_seed(seed)
    networks = Networks(CausalWan(WAN), TextEncoder(WAN.text_dim))
    initialise(networks.transformer, torch.Generator().manual_seed(seed))
    return networks


def fit(
    name: str, networks: Networks, latents: Tensor, plan: FlowPlan, seed: int, folder: Path | None = None,
    world: World = ALONE, watch: Callable[[int, nn.Module], None] | None = None,
) -> Networks:  # fmt: skip
    """Train the networks as planned; returns their average (see ``pretrain.training.train``)."""
    data = LatentData(latents, dict(plan.emphasis))

    def loss(step: torch.Generator, piece: torch.Generator) -> tuple[str, Tensor]:
        short = torch.rand((), generator=step).item() < plan.beginnings
        model = networks.generator(plan.streams[int(torch.randint(len(plan.streams), (), generator=step))])
        frames, count = plan.videos[int(torch.randint(len(plan.videos), (), generator=step))]
        if short:
            frames, count = model.stream.chunk_frames, plan.beginning_batch
        batch = data.draw(count // PIECES, frames, piece)
        return "beginnings" if short else "videos", flow_matching_loss(model, networks.text_encoder, batch, plan, piece)

    return cast(Networks, train(name, networks, loss, plan.rates, seed, folder, world, watch))


def draw_sigma(count: int, stream: StreamConfig, chunks: int, share: float, generator: torch.Generator) -> Tensor:
    """Levels [count, chunks]: uniform warped by shift 3, and a ``share`` of them on the sampler's own."""
    sigma = flow.warp(torch.rand(count, chunks, generator=generator), 3.0)
    for chunk, levels in ((slice(0, 1), stream.levels_of(0)), (slice(1, None), stream.levels)):
        own = levels.float()[torch.randint(len(levels), sigma[:, chunk].shape, generator=generator)]
        kept = torch.rand(own.shape, generator=generator) >= share
        sigma[:, chunk] = torch.where(kept, sigma[:, chunk], own)
    return sigma


def flow_matching_loss(
    model: WanGenerator, text_encoder: TextEncoder, batch: Batch, plan: FlowPlan, generator: torch.Generator
) -> Tensor:
    """Mean squared velocity error of noisy chunks that see slightly noisy clean chunks before them."""
    clean, size = batch.clean, model.stream.chunk_frames
    count, frames = clean.shape[:2]
    kept = (torch.rand(count, generator=generator) >= plan.text_dropout).float()[:, None, None]
    text = model.condition(text_encoder.encode(batch.captions) * kept)
    sigma = draw_sigma(count, model.stream, frames // size, plan.at_sampler_levels, generator).repeat_interleave(
        size, 1
    )
    noise = torch.randn(clean.shape, generator=generator)
    noisy = flow.add_noise(clean, noise, sigma)
    if frames == size:
        velocity = model.velocity_block_causal(noisy, sigma, text)
    else:
        level = plan.context_noise * torch.rand(count, 1, generator=generator).expand(-1, frames)
        seen = flow.add_noise(clean, torch.randn(clean.shape, generator=generator), level)
        velocity = model.velocity_teacher_forced(noisy, sigma, seen, text)
    return (velocity - (noise - clean)).square().mean()
