"""The Wan 2.1 VAE: diffusers' network under Wan's own file, decoding and encoding as streams."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from astrolabe.runtime.errors import UserError
from astrolabe.runtime.strict import check, fill
from astrolabe.runtime.tensorfile import Container, TensorFile, open_tensors
from astrolabe.runtime.wrapped import tensors_of
from astrolabe.types import Latents, Video

FIRST_SEEN = "Rep"  # what diffusers' upsampling in time leaves in its place after the first frame
KINDS = (type(None), Tensor, str)
PIXELS_A_FRAME = 4  # video frames of a latent frame, but for the first, which is one alone

RENAMES = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.downsamples\.", ".down_blocks."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)


def diffusers_name(name: str, res_blocks: int) -> str:
    """The name in diffusers' network of a tensor of Wan's own file; ``res_blocks`` as in ``num_res_blocks``."""
    if match := re.match(r"decoder\.upsamples\.(\d+)\.(.*)", name):
        block, part = divmod(int(match[1]), res_blocks + 2)  # one residual block more than asked for, and a resampler
        place = f"resnets.{part}" if part <= res_blocks else "upsamplers.0"
        name = f"decoder.up_blocks.{block}.{place}.{match[2]}"
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


@dataclass
class StreamState:
    """What one stream of frames leaves behind for the frames after it; of every tile, one list of features."""

    features: list[list[Any]] = field(default_factory=list)

    def copy(self) -> StreamState:
        """A state that goes on by itself (tensors are never changed in place)."""
        return StreamState([list(part) for part in self.features])


class WanVAE:
    """Latents to pixels and back (``models.wan.generator.Decoder``); latents are normalised, pixels in [0, 1].

    ``tile`` (latent rows and columns, None: whole frames) bounds the memory of decoding: tiles overlap by a quarter
    and are blended.
    """

    def __init__(self, vae: AutoencoderKLWan, tile: int | None = None):
        if tile is not None and tile < 8:
            raise UserError(f"vae tile={tile}: at least 8 latent rows and columns; None decodes whole frames")
        self.vae, self.tile = vae, tile
        shape = (1, 1, -1, 1, 1)
        weight = vae.post_quant_conv.weight
        self.mean = torch.tensor(vae.config.latents_mean, device=weight.device, dtype=weight.dtype).view(shape)
        self.std = torch.tensor(vae.config.latents_std, device=weight.device, dtype=weight.dtype).view(shape)

    def to(self, device: torch.device | str) -> WanVAE:
        """Move the weights; states of streams stay where they are."""
        self.vae.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    @torch.no_grad()
    def decode(self, latents: Latents, state: StreamState | None = None) -> tuple[Video, StreamState]:
        """Pixels [b, t, 3, y, x] and the state to continue from: chunk by chunk gives what all at once gives.

        The first latent frame of a stream is one video frame, each later one is four. ``state`` is not changed.
        """
        raw = (latents.to(self.mean) * self.std + self.mean).transpose(1, 2)
        raw = self.vae.post_quant_conv(raw)
        grid = self._grid(raw.shape[3], raw.shape[4])
        state = state.copy() if state else StreamState([self._fresh("decoder") for _ in grid])
        first = state.features[0][0] is None
        frames = []
        for index in range(raw.shape[2]):
            starts = first and index == 0
            parts = [
                self.vae.decoder(
                    raw[:, :, index : index + 1, rows, columns], feat_cache=known, feat_idx=[0], first_chunk=starts
                )
                for (rows, columns), known in zip(grid, state.features, strict=True)
            ]
            frames.append(parts[0] if len(parts) == 1 else blend(parts, grid))
        pixels = torch.cat(frames, 2).clamp(-1, 1).transpose(1, 2)
        return ((pixels + 1) / 2).to(latents.dtype), state

    def select(self, state: StreamState, rows: Tensor) -> StreamState:
        """The state of these videos of the batch, in this order; one may be named several times."""
        return StreamState(
            [[value[rows] if isinstance(value, Tensor) else value for value in part] for part in state.features]
        )

    def pack(self, state: StreamState) -> dict[str, Tensor]:
        """The state as tensors, for the disk; ``kinds`` [tiles, places] says what each place holds."""
        kinds = torch.tensor([[KINDS.index(type(value)) for value in part] for part in state.features])
        places = ((t, i, value) for t, part in enumerate(state.features) for i, value in enumerate(part))
        return {"kinds": kinds} | {f"{t}.{i}": value for t, i, value in places if isinstance(value, Tensor)}

    def unpack(self, tensors: Mapping[str, Tensor]) -> StreamState:
        """The inverse of ``pack``."""
        others = {0: None, 2: FIRST_SEEN}
        return StreamState(
            [
                [tensors[f"{t}.{i}"] if kind == 1 else others[kind] for i, kind in enumerate(row)]
                for t, row in enumerate(tensors["kinds"].tolist())
            ]
        )

    @torch.no_grad()
    def encode(self, video: Video) -> Latents:
        """Normalised latents (the posterior's mean) [b, f, c, h, w] of 1 + 4 (f - 1) frames, four at a time."""
        count = video.shape[1]
        if (count - 1) % PIXELS_A_FRAME:
            low = 1 + (count - 1) // PIXELS_A_FRAME * PIXELS_A_FRAME
            near = f"{low} and {low + PIXELS_A_FRAME}"
            raise UserError(f"{count} video frames cannot be encoded: 1 + 4n are needed; the nearest are {near}")
        pixels = (video.to(self.mean) * 2 - 1).transpose(1, 2)
        known, parts = self._fresh("encoder"), []
        for part in pixels.split([1] + [PIXELS_A_FRAME] * ((count - 1) // PIXELS_A_FRAME), 2):
            parts.append(self.vae.encoder(part, feat_cache=known, feat_idx=[0]))
        mean = self.vae.quant_conv(torch.cat(parts, 2)).chunk(2, 1)[0]
        return ((mean.transpose(1, 2) - self.mean) / self.std).to(video.dtype)

    def _fresh(self, side: str) -> list[Any]:
        """No features yet, one place for every causal convolution."""
        return [None] * self.vae._cached_conv_counts[side]

    def _grid(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """Latent rows and columns of every tile."""
        return [(rows, columns) for rows in cuts(height, self.tile) for columns in cuts(width, self.tile)]


def cuts(size: int, tile: int | None) -> list[slice]:
    """Overlapping slices of at most ``tile`` that cover ``size``."""
    if tile is None or size <= tile:
        return [slice(0, size)]
    step = tile - tile // 4
    starts = [*range(0, size - tile, step), size - tile]
    return [slice(start, start + tile) for start in starts]


def blend(parts: list[Tensor], grid: list[tuple[slice, slice]]) -> Tensor:
    """Tiles [b, c, t, y, x] joined; where they overlap, weighted by the distance from each tile's edge."""
    scale = parts[0].shape[3] // (grid[0][0].stop - grid[0][0].start)
    height, width = (max(place[axis].stop for place in grid) * scale for axis in (0, 1))
    total = parts[0].new_zeros(*parts[0].shape[:3], height, width)
    weights = total.new_zeros(height, width)
    for part, (rows, columns) in zip(parts, grid, strict=True):
        weight = ramp(part.shape[3], total)[:, None] * ramp(part.shape[4], total)
        place = (..., slice(rows.start * scale, rows.stop * scale), slice(columns.start * scale, columns.stop * scale))
        total[place] += part * weight
        weights[place[1:]] += weight
    return total / weights


def ramp(size: int, like: Tensor) -> Tensor:
    """1 at both ends, rising towards the middle."""
    place = torch.arange(size, dtype=like.dtype, device=like.device)
    return 1 + torch.minimum(place, size - 1 - place)


def read_sizes(entries: Container, path: Path | str) -> dict[str, Any]:
    """The arguments of diffusers' network that can be read off Wan's tensors; the others are those of Wan 2.1."""
    needed = ("encoder.conv1.weight", "decoder.head.2.weight", "conv2.weight")
    if missing := [name for name in needed if name not in entries]:
        raise UserError(f"{path}: not a Wan VAE: {', '.join(missing)} missing")
    return {
        "base_dim": entries["encoder.conv1.weight"].shape[0],
        "decoder_base_dim": entries["decoder.head.2.weight"].shape[1],
        "z_dim": entries["conv2.weight"].shape[0],
        "num_res_blocks": 2,
    }


def plan_vae(file: TensorFile, entries: Container, sizes: Mapping[str, Any]) -> tuple[AutoencoderKLWan, Container]:
    """diffusers' network of ``sizes`` (its arguments) on ``meta``, and ``entries`` (Wan's own names) under its names.

    Raises UserError for anything missing, unknown or of another shape.
    """
    with torch.device("meta"):
        vae = AutoencoderKLWan(**sizes)
    renamed = {diffusers_name(name, sizes["num_res_blocks"]): entry for name, entry in entries.items()}
    check(renamed, vae, f"{file.path} (recognised as Wan's VAE, {len(entries)} tensors; names as in diffusers)")
    return vae, renamed


def assemble_vae(
    file: TensorFile, entries: Container, sizes: Mapping[str, Any], device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None, tile: int | None = None,
) -> WanVAE:  # fmt: skip
    """The VAE of ``plan_vae`` with its tensors."""
    vae, renamed = plan_vae(file, entries, sizes)
    fill(vae, file, renamed, device, dtype)
    return WanVAE(vae, tile)


def check_vae(path: Path | str) -> int:
    """Read nothing, but raise UserError unless ``load_vae`` would load the file; gives the count of its tensors."""
    file = open_tensors(path)
    entries = tensors_of(file, "encoder.conv1.weight")
    plan_vae(file, entries, read_sizes(entries, path))
    return len(entries)


def load_vae(
    path: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, tile: int | None = None
) -> WanVAE:
    """The VAE of Wan's own file (``Wan2.1_VAE.pth``). UserError for anything missing, unknown or of another shape."""
    file = open_tensors(path)
    entries = tensors_of(file, "encoder.conv1.weight")
    return assemble_vae(file, entries, read_sizes(entries, path), device, dtype, tile)
