"""A light causal video codec with Wan's geometry: 8 x 8 pixels and 4 frames to a latent, the first frame alone.

Every latent frame is made from its own group of four video frames; the decoder also looks at the latent before,
which is therefore all the state that streaming needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from astrolabe.runtime.errors import UserError
from astrolabe.shapes.settings import GROUP, LATENT_CHANNELS, PATCH


@dataclass(frozen=True)
class DecoderState:
    """What decoding carries from one chunk to the next: the last latent frame, ``[B, 16, h, w]``."""

    previous: Tensor


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside an identity; circular padding, because the canvas is a torus."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1, padding_mode="circular")
        self.second = nn.Conv2d(width, width, 3, padding=1, padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.silu(self.first(functional.silu(self.norm(x)))))


class Codec(nn.Module):
    """Videos ``[B, T, 3, H, W]`` in [0, 1] to latents ``[B, F, 16, H/8, W/8]`` and back; ``T = 1 + 4 (F - 1)``.

    In eval mode the latents have zero mean and unit variance per channel over the videos it was trained on.
    """

    def __init__(self, width: int = 144, encoder_blocks: int = 1, decoder_blocks: int = 2) -> None:
        super().__init__()
        pixels = 3 * GROUP * PATCH**2
        self.encoder = nn.Sequential(
            nn.Conv2d(pixels, width, 1),
            *(_Residual(width) for _ in range(encoder_blocks)),
            nn.Conv2d(width, LATENT_CHANNELS, 1),
        )
        self.normalise = nn.BatchNorm2d(LATENT_CHANNELS, affine=False, momentum=0.02)
        self.decoder = nn.Sequential(
            nn.Conv2d(2 * LATENT_CHANNELS, width, 3, padding=1, padding_mode="circular"),
            *(_Residual(width) for _ in range(decoder_blocks)),
            nn.SiLU(),
            nn.Conv2d(width, pixels, 1),
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs

    def encode(self, video: Tensor) -> Tensor:
        """Latents ``[B, F, 16, H/8, W/8]``, float32, of ``video`` ``[B, T, 3, H, W]`` in [0, 1].

        Raises a :class:`UserError` unless ``T = 1 + 4 k`` and H and W are multiples of 8.
        """
        return self.encode_patches(self.patches(video))

    def decode(self, latents: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        """The video ``[B, T, 3, H, W]``, float32 in [0, 1], of ``latents`` ``[B, F, 16, h, w]``, and the new state.

        With ``state`` None the first latent frame is the start of the video and gives one video frame; every other
        latent frame gives four. Decoding chunk by chunk with the state handed on equals decoding at once.
        """
        groups = functional.pixel_shuffle(self.decode_patches(latents, state).flatten(0, 1), PATCH)
        video = groups.reshape(latents.shape[0], -1, 3, *groups.shape[-2:]).mul_(0.5).add_(0.5).clamp_(0, 1)
        return video if state is not None else video[:, GROUP - 1 :], DecoderState(latents[:, -1])

    def select(self, state: DecoderState, rows: Tensor) -> DecoderState:
        """The state of these videos of the batch, in this order; one may be named several times."""
        return DecoderState(state.previous[rows])

    def pack(self, state: DecoderState) -> dict[str, Tensor]:
        """The state as tensors, for the disk."""
        return {"previous": state.previous}

    def unpack(self, tensors: Mapping[str, Tensor]) -> DecoderState:
        """The inverse of ``pack``."""
        return DecoderState(tensors["previous"])

    def patches(self, video: Tensor) -> Tensor:
        """The groups of ``video`` folded to ``[B, F, 4*3*64, H/8, W/8]`` in [-1, 1]; errors as in :meth:`encode`."""
        batch, frames, _, height, width = video.shape
        _check_size(frames, height, width)
        # the first frame alone: a group in which it stands still
        video = torch.cat((video[:, :1].expand(-1, GROUP - 1, -1, -1, -1), video), dim=1)
        groups = video.reshape(-1, GROUP * 3, height, width)
        folded = functional.pixel_unshuffle(groups, PATCH).mul_(2).sub_(1)
        return folded.contiguous(memory_format=torch.channels_last).unflatten(0, (batch, -1))

    def encode_patches(self, patches: Tensor) -> Tensor:
        """Latents, float32, of what :meth:`patches` folded."""
        latents = self.normalise(self.encoder(patches.flatten(0, 1)).float())
        return latents.contiguous().unflatten(0, (patches.shape[0], -1))

    def decode_patches(self, latents: Tensor, state: DecoderState | None = None) -> Tensor:
        """What :meth:`decode` unfolds: ``[B, F, 4*3*64, h, w]``, float32, about [-1, 1] but not clamped.

        Training compares these with :meth:`patches`, which is much cheaper than comparing videos.
        """
        first = torch.zeros_like(latents[:, 0]) if state is None else state.previous
        before = torch.cat((first[:, None], latents[:, :-1]), dim=1)
        both = torch.cat((before, latents), dim=2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return self.decoder(both).float().unflatten(0, latents.shape[:2])


def _check_size(frames: int, height: int, width: int) -> None:
    if frames % GROUP != 1:
        below = max(1, (frames - 1) // GROUP * GROUP + 1)
        raise UserError(
            f"a video of {frames} frames does not fit the codec (1 + 4 k frames), use {below} or {below + GROUP}"
        )
    if height % PATCH or width % PATCH:
        raise UserError(f"frames of {height} x {width} pixels do not fit the codec, use multiples of {PATCH}")
