"""Checkpoints of causal Wans as their authors wrote them: recognise the layout, check it strictly, load it once."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from astrolabe.models.wan.config import WanConfig
from astrolabe.models.wan.transformer import CausalWan
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.strict import check, few, fill
from astrolabe.runtime.tensorfile import Container, TensorFile, open_tensors
from astrolabe.runtime.wrapped import USUAL, own_names, unwrapped

# What stands before all names of a transformer, once: in Self-Forcing's checkpoints, in ComfyUI's, in diffusers'.
PREFIX = re.compile(r"^(model\.diffusion_model\.|diffusion_model\.|model\.|transformer\.)")
CONTAINERS = ("generator_ema", "generator", *USUAL)
MARKER = "patch_embedding.weight"  # every Wan has it, under any wrapper
HEAD_DIM = 128  # of every released Wan; it cannot be read off the tensors


@dataclass(frozen=True)
class Layout:
    """How a checkpoint keeps its transformer: ``names`` are the file's own, by the names of the original model."""

    file: TensorFile
    container: str
    prefix: str
    names: dict[str, str]

    @property
    def entries(self) -> Container:
        """What the file holds, under the original names."""
        part = self.file.containers[self.container]
        return {name: part[own] for name, own in self.names.items()}

    def __str__(self) -> str:
        where = f"container {self.container!r}" if self.container else "no container"
        prefix = f", prefix {self.prefix!r}" if self.prefix else ""
        return f"{self.file.format}, {where}{prefix}, {len(self.names)} tensors"


def original_name(name: str) -> str:
    """A tensor's name without what wrappers and containers put before or into it."""
    return unwrapped(name, PREFIX)


def recognise(path: Path | str, containers: Sequence[str] = CONTAINERS) -> Layout:
    """The layout of a checkpoint: the first of ``containers`` that it has. UserError when there is no transformer."""
    file = open_tensors(path)
    for container in containers:
        if container not in file.containers:
            continue
        names = own_names(file, container, PREFIX)
        if MARKER in names:
            return Layout(file, container, unwrapped(names[MARKER])[: -len(MARKER)], names)
    found = few([f"{name or 'top level'} ({len(part)} tensors)" for name, part in file.containers.items()])
    wanted = ", ".join(name or "top level" for name in containers)
    raise UserError(f"{path}: no causal Wan in {wanted}; the file has: {found or 'no tensors'}")


def read_config(entries: Container, head_dim: int = HEAD_DIM) -> WanConfig:
    """The sizes of a transformer, read off its tensors. UserError when one that tells a size is missing."""

    def size(name: str, axis: int) -> int:
        if name not in entries or len(entries[name].shape) <= axis:
            raise UserError(f"not a Wan transformer: {name} is missing or has too few axes; its sizes cannot be read")
        return entries[name].shape[axis]

    dim = size("patch_embedding.weight", 0)
    patch = tuple(size("patch_embedding.weight", axis) for axis in (2, 3, 4))
    blocks = {int(match[1]) for name in entries if (match := re.match(r"blocks\.(\d+)\.", name))}
    return WanConfig(
        dim=dim,
        ffn_dim=size("blocks.0.ffn.0.weight", 0),
        num_heads=max(dim // head_dim, 1),
        num_layers=max(blocks) + 1,
        freq_dim=size("time_embedding.0.weight", 1),
        text_dim=size("text_embedding.0.weight", 1),
        in_dim=size("patch_embedding.weight", 1),
        out_dim=size("head.head.weight", 0) // math.prod(patch),
        patch_size=(patch[0], patch[1], patch[2]),
    )


def plan_transformer(
    path: Path | str, containers: Sequence[str] = CONTAINERS, head_dim: int = HEAD_DIM
) -> tuple[Layout, CausalWan]:
    """The layout of a checkpoint, and its transformer on ``meta``: the whole check, and nothing is read.

    Raises UserError for anything missing, unknown or of another shape, and says which layout was recognised.
    """
    layout = recognise(path, containers)
    try:
        config = read_config(layout.entries, head_dim)
    except UserError as error:
        raise UserError(f"{path} (recognised as {layout}): {error}") from None
    with torch.device("meta"):
        transformer = CausalWan(config)
    check(layout.entries, transformer, f"{path} (recognised as {layout})")
    return layout, transformer


def load_transformer(
    path: Path | str,
    containers: Sequence[str] = CONTAINERS,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    head_dim: int = HEAD_DIM,
) -> CausalWan:
    """The transformer of a checkpoint, frozen, on ``device`` in ``dtype`` (None: as stored).

    Errors as in ``plan_transformer``.
    """
    layout, transformer = plan_transformer(path, containers, head_dim)
    fill(transformer, layout.file, layout.entries, device, dtype)
    return transformer
