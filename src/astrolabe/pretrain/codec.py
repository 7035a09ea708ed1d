"""Trains the codec of the shapes world on videos rendered on the fly."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from astrolabe.pretrain.progress import stage_bar
from astrolabe.shapes.codec import Codec
from astrolabe.shapes.settings import CANVAS
from astrolabe.shapes.world import ALL_SCENES, GOOD, WIDE, render

_PHASES = 160  # frames: first frames are drawn from 0 .. _PHASES - 1, time enough to wrap around the canvas


def random_videos(count: int, frames: int, generator: torch.Generator) -> Tensor:
    """Videos ``[count, frames, 3, 64, 64]`` of random scenes that start anywhere on the canvas, at any time; every
    second one is made well, the others in any way."""
    picks = torch.randint(len(ALL_SCENES), (count,), generator=generator)
    begins = torch.randint(_PHASES, (count,), generator=generator)
    scenes = [ALL_SCENES[pick] for pick in picks.tolist()]
    halves = slice(0, count, 2), slice(1, count, 2)
    video = torch.empty(count, frames, 3, CANVAS, CANVAS)
    for half, looks in zip(halves, (GOOD, WIDE), strict=True):
        video[half] = render(scenes[half], frames, generator, begins[half], jitter=CANVAS / 2, looks=looks)
    return video


def psnr(video: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two videos in [0, 1] of the same shape."""
    return -10 * math.log10(max(functional.mse_loss(video, target).item(), 1e-12))


def train_codec(
    seed: int,
    steps: int = 3000,
    batch: int = 16,
    frames: int = 9,
    learning_rate: float = 2e-3,
    latent_noise: float = 0.1,
) -> Codec:
    """Trains a codec for ``steps`` steps of ``batch`` videos and returns it in eval mode, on the CPU.

    The loss is the squared error plus a little absolute error, of videos decoded from latents to which Gaussian
    noise of up to ``latent_noise`` was added, so that the decoder forgives latents that are not quite right.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    codec = Codec().train()
    optimizer = torch.optim.AdamW(codec.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    with stage_bar("codec", steps) as bar:
        for _ in range(steps):
            video = random_videos(batch, frames, generator)
            error = _step(codec, video, latent_noise, generator)
            torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.advance(dB=-10 * math.log10(max(error.item(), 1e-12)))
    return codec.eval()


def _step(codec: Codec, video: Tensor, latent_noise: float, generator: torch.Generator) -> Tensor:
    """Fills the gradients for one batch and returns its mean squared error, in units of pixels in [0, 1]."""
    codec.zero_grad()
    patches = codec.patches(video)
    with torch.autocast("cpu", torch.bfloat16):
        latents = codec.encode_patches(patches)
        strength = latent_noise * torch.rand(len(video), 1, 1, 1, 1, generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        decoded = codec.decode_patches(latents + strength * noise)
    squared = functional.mse_loss(decoded, patches)
    (squared + 0.05 * functional.l1_loss(decoded, patches)).backward()
    return squared.detach() / 4  # patches are in [-1, 1]
