"""LoRA adapters written in the layouts that other programs load, and whole checkpoints with one added in.

peft        a folder: adapter_config.json, adapter_model.safetensors (float32 as trained)
comfyui     diffusion_model.blocks.0.self_attn.q.lora_A.weight, with .alpha
diffusers   transformer.blocks.0.attn1.to_q.lora_A.weight, the scale folded into B
merged      the source checkpoint itself, in its own names, with the adapter added in
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from astrolabe.models.adapters import Adapter, fits
from astrolabe.models.layer_names import is_layer, to_diffusers
from astrolabe.models.wan.weights import Layout
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import usual_mode, write_whole
from astrolabe.runtime.progress import progress
from astrolabe.runtime.strict import few

ZIPS = (".pt", ".pth", ".ckpt", ".bin")  # what names the zips of torch.save
MERGED = (".safetensors", *ZIPS)


def check_layers(adapter: Adapter, source: str) -> None:
    """UserError unless every layer is one that other programs know of a Wan."""
    if unknown := [layer for layer in adapter if not is_layer(layer)]:
        raise UserError(f"{source}: {len(unknown)} layers are no linear layers of a Wan: {few(unknown)}")


def check_suffix(path: Path, *suffixes: str) -> None:
    """UserError unless the name of ``path`` ends in one of ``suffixes``: a file is what its name says."""
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path}: its name should end in {' or '.join(suffixes)}, which is what will be in it")


def write_peft(adapter: Adapter, folder: Path, base: str, dtype: torch.dtype | None = None) -> None:
    """A PEFT folder; the tensors in ``dtype`` (None: as they are).

    UserError when the layers do not share one rank and scale.
    """
    if folder.suffix.lower() in MERGED:
        raise UserError(f"{folder}: peft is a folder; name it without {folder.suffix}, or choose another format")
    kinds = {(pair.a.shape[0], pair.scale) for pair in adapter.values()}
    if len(kinds) != 1:
        raise UserError(f"a PEFT folder has one rank and scale, this adapter has {len(kinds)}; export it as comfyui")
    ((rank, scale),) = kinds
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for layer, pair in adapter.items():
        name = f"base_model.model.{layer}"
        tensors |= {f"{name}.lora_A.weight": in_dtype(pair.a, dtype), f"{name}.lora_B.weight": in_dtype(pair.b, dtype)}
    save_whole(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "base_model_name_or_path": base, "r": rank, "lora_alpha": scale * rank, "bias": "none",
        "target_modules": sorted(adapter), "lora_dropout": 0.0, "inference_mode": True,
    }  # fmt: skip
    write_whole(folder / "adapter_config.json", json.dumps(config, indent=1) + "\n")


def write_comfyui(adapter: Adapter, path: Path, dtype: torch.dtype | None = None) -> None:
    """One safetensors file with ComfyUI's keys, its matrices in ``dtype`` (None: as they are)."""
    check_suffix(path, ".safetensors")
    tensors: dict[str, Tensor] = {}
    for layer, pair in adapter.items():
        name = f"diffusion_model.{layer}"
        tensors |= {
            f"{name}.lora_A.weight": in_dtype(pair.a, dtype),
            f"{name}.lora_B.weight": in_dtype(pair.b, dtype),
            f"{name}.alpha": torch.tensor(pair.scale * pair.a.shape[0]),
        }
    save_whole(tensors, path)


def write_diffusers(adapter: Adapter, path: Path, dtype: torch.dtype | None = None) -> None:
    """One safetensors file for diffusers' ``load_lora_weights``, which takes the scale to be one: B carries it. In
    ``dtype`` (None: as they are)."""
    check_suffix(path, ".safetensors")
    tensors: dict[str, Tensor] = {}
    for layer, pair in adapter.items():
        name = f"transformer.{to_diffusers(layer)}"
        scaled = (pair.b.float() * pair.scale).to(pair.b.dtype)
        tensors |= {f"{name}.lora_A.weight": in_dtype(pair.a, dtype), f"{name}.lora_B.weight": in_dtype(scaled, dtype)}
    save_whole(tensors, path)


def write_merged(layout: Layout, adapter: Adapter, path: Path, dtype: torch.dtype | None = None) -> float:
    """The source checkpoint with the adapter added in, under its own names; sums in float32, kept in ``dtype``.

    The name of ``path`` says what it becomes: safetensors, which have no containers, or a zip of ``torch.save`` with
    the source's. ``dtype`` None keeps the source's precision. Gives the error of that rounding over the size of the
    change: nothing for float32; near one where a small change of bfloat16 weights was rounded away.
    """
    check_suffix(path, *MERGED)
    entries = layout.entries
    matrices = [name for name in entries if name.endswith(".weight") and len(entries[name].shape) == 2]
    fits(adapter, {name.removesuffix(".weight"): entries[name].shape for name in matrices}, "the adapter")
    merged: dict[str, Tensor] = {}
    change = error = 0.0
    whole = sum(entry.nbytes for entry in entries.values())
    with layout.file.reader() as reader, progress(f"merging {layout.file.path.name}", whole, "bytes") as task:
        for name, entry in entries.items():
            value = reader.read(entry)
            task.advance(entry.nbytes)
            kept = dtype if dtype and value.is_floating_point() else value.dtype
            if name in matrices and (pair := adapter.get(name.removesuffix(".weight"))):
                exact = value.float() + pair.delta
                value = exact.to(kept)
                if not bool(value.float().isfinite().all()):
                    raise UserError(f"{path}: {name} would no longer be finite in {str(kept).removeprefix('torch.')}; "
                                    "the adapter is broken, or --dtype too small")  # fmt: skip
                change += pair.delta.square().sum().item()
                error += (exact - value.float()).square().sum().item()
            merged[layout.names[name]] = value.to(kept)
    with progress(f"writing {path.name}"):
        if path.suffix.lower() == ".safetensors":
            save_whole(merged, path)
        else:
            content = {layout.container: merged} if layout.container else merged
            with whole_file(path) as temporary:
                torch.save(content, temporary)
    return (error / change) ** 0.5 if change else 0.0


def in_dtype(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor in ``dtype`` (None: as it is)."""
    return value if dtype is None else value.to(dtype)


def save_whole(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file as other programs expect it, whole or not at all."""
    with whole_file(path) as temporary, usual_mode(temporary):
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata={"format": "pt"})


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed at the end. UserError when it cannot be written: nothing is left."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except (SafetensorError, RuntimeError, OSError) as error:  # the two writers make different things of a full disk
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise UserError(f"{path}: cannot be written ({reason})") from None
    finally:
        temporary.unlink(missing_ok=True)
