"""Rotary positions in three axes (frame, row, column), computed for any offset: there is no table and no last frame."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

THETA = 10000.0
Heads = Float[Tensor, "b n heads head_dim"]
Rotation = tuple[Tensor, Tensor]  # cosines and sines, [tokens, head_dim / 2] each


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Features of a head that turn with time, height and width: 44, 42, 42 of 128."""
    sixth = head_dim // 6
    return head_dim - 4 * sixth, 2 * sixth, 2 * sixth


def _speeds(dims: int, device: torch.device) -> Tensor:
    return THETA ** -(torch.arange(0, dims, 2, dtype=torch.float64, device=device) / dims)


@lru_cache(maxsize=64)
def rotation(
    first_frame: int, frames: int, height: int, width: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> Rotation:
    """The turn of every token of ``frames`` latent frames from ``first_frame`` on, rows before columns.

    Angles are computed in float64, so that a frame an hour into the stream turns as exactly as the first.
    """
    time, row, column = (_speeds(dims, device) for dims in axis_dims(head_dim))

    def count(start: int, end: int) -> Tensor:
        return torch.arange(start, end, dtype=torch.float64, device=device)

    angles = torch.cat(
        [
            (count(first_frame, first_frame + frames)[:, None] * time)[:, None, None].expand(-1, height, width, -1),
            (count(0, height)[:, None] * row)[None, :, None].expand(frames, -1, width, -1),
            (count(0, width)[:, None] * column)[None, None].expand(frames, height, -1, -1),
        ],
        dim=-1,
    ).flatten(0, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Heads, turn: Rotation) -> Heads:
    """Turn interleaved feature pairs of queries or keys; computed in at least float32."""
    cos, sin = turn
    pairs = torch.view_as_complex(x.to(cos.dtype).unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.complex(cos, sin)[:, None]).flatten(-2).to(x.dtype)


def shift(keys: Heads, frames: int) -> Heads:
    """Move rotated keys by ``frames`` in time: turn their temporal features on, leave the spatial ones."""
    head_dim = keys.shape[-1]
    angles = frames * _speeds(axis_dims(head_dim)[0], keys.device)
    angles = torch.nn.functional.pad(angles, (0, head_dim // 2 - angles.numel()))
    dtype = torch.promote_types(keys.dtype, torch.float32)
    return rotate(keys, (angles.cos().to(dtype)[None], angles.sin().to(dtype)[None]))
