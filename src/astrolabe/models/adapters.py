"""LoRA adapters on disk, read in every common layout; ``adapter_files`` writes them.

    peft        a folder: adapter_config.json, adapter_model.safetensors or .bin; or one file with such names
    comfyui     diffusion_model.blocks.0.self_attn.q.lora_A.weight, with .alpha
    diffusers   transformer.blocks.0.attn1.to_q.lora_A.weight, alpha in the header
    kohya       lora_unet_blocks_0_self_attn_q.lora_down.weight, with .alpha (musubi-tuner too)
    LongLive    a container generator_lora, PEFT's names within

Within, an adapter is {layer: Pair}, layers under the original model's names (``layer_names``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astrolabe.models.adapter_scale import ADVICE, Strength, read_strength
from astrolabe.models.layer_names import to_original
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import exists, place, refusal
from astrolabe.runtime.strict import few
from astrolabe.runtime.tensorfile import FLAT, Container, TensorFile, open_tensors
from astrolabe.runtime.wrapped import USUAL, unwrapped

CONTAINERS = ("generator_lora", "lora", *USUAL)
PREFIX = re.compile(r"^((base_model|diffusion_model|transformer|generator|model|pipe|dit)\.)+")
KOHYA = re.compile(r"^(lora_unet|lora_transformer|lora_dit|lycoris)_+")
SIDES = {"lora_A": "A", "lora_B": "B", "lora_down": "A", "lora_up": "B", "lora.down": "A", "lora.up": "B"}
TENSOR = re.compile(
    r"^(?P<layer>.+)\.(?P<side>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)((\.\w+)?\.weight)?$"
)
ODD = (
    (re.compile(r"\.diff(_b|_m)?$"), "whole changes of weights and biases (lightx2v) cannot act here"),
    (re.compile(r"lora_magnitude_vector|\.dora_scale$"), "DoRA is not supported"),
    (re.compile(r"\.(hada|lokr|oft|boft|ia3|glora)_?\w*$|\.lora_mid"), "LoHa, LoKr and OFT are not supported"),
    (re.compile(r"\.(lora_B|lora_up)(\.\w+)?\.bias$"), "biases of LoRA layers are not supported"),
    (re.compile(r"^lora_te|text_encoder"), "adapters of the text encoder are not supported"),
    (re.compile(r"lora_embedding_[AB]"), "adapters of token embeddings are not supported"),
)  # fmt: skip
CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
OF_DIFFUSERS = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")


@dataclass(frozen=True)
class Pair:
    """One layer's change of weight: ``scale * B @ A``, with A [rank, in] and B [out, rank]."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def delta(self) -> Tensor:
        """The change itself [out, in], in float32."""
        return self.scale * (self.b.float() @ self.a.float())


Adapter = dict[str, Pair]


def from_slot(tensors: Mapping[str, Tensor], rank: int, alpha: float) -> Adapter:
    """The adapter of a policy's slot (``models.lora``): keys ``blocks.0.ffn.0.lora_A.weight`` and so on."""
    layers = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    scale = alpha / rank
    return {name: Pair(tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"], scale) for name in layers}


def read_adapter(path: Path | str) -> Adapter:
    """An adapter in any layout: a PEFT folder, or a file of LoRA tensors, with what it says of its strength. Tensors of
    eight bits become float32, others stay as they are.

    Raises UserError for anything in it that is not understood or not finite: nothing is left out silently.
    """
    path, config = _located(place(path))
    of_peft = _peft_strength(config) if config else None
    file = open_tensors(path)
    container = _container(file)
    numbers, said = _numbers(file, container)
    strength = of_peft or read_strength(said, path)
    parts = _parts(file, container, numbers)
    strength.check_patterns([name for part in parts.values() for name in part.names])
    adapter = {layer: _pair(layer, part, strength, path) for layer, part in sorted(parts.items())}
    check_finite(adapter, str(path))
    return adapter


def _located(path: Path) -> tuple[Path, Path | None]:
    """The file of tensors, and the PEFT configuration that belongs to it."""
    if exists(path) and path.is_dir():
        configured = exists(path / CONFIG)
        names = WEIGHTS if configured else OF_DIFFUSERS
        weights = next((path / name for name in names if exists(path / name)), None)
        if not configured and weights is None:
            raise UserError(f"{path}: has no {CONFIG}; expected a PEFT folder, or the file of an adapter")
        return weights or path / WEIGHTS[0], path / CONFIG if configured else None
    beside = path.parent / CONFIG
    return path, beside if path.name in WEIGHTS and exists(beside) else None


def _peft_strength(config: Path) -> Strength:
    """What a PEFT configuration says of the strength."""
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise refusal(config, error) from None
    except ValueError as error:
        raise UserError(f"{config}: not JSON ({error})") from None
    if not isinstance(fields, dict) or fields.get("peft_type") != "LORA":
        raise UserError(f"{config}: not the configuration of a LoRA")
    return read_strength(fields, config, owed=True)


def _container(file: TensorFile) -> str:
    """The container with the adapter: the first in which a tensor is called as LoRA's are."""
    for name in CONTAINERS:
        if any(TENSOR.match(key) for key in file.containers.get(name, {})):
            return name
    inside = [key for part in file.containers.values() for key in part]
    if any(key.endswith("patch_embedding.weight") for key in inside):
        raise UserError(f"{file.path}: a whole model and no adapter; name it with --model.weights")
    if inside and FLAT in file.containers:
        raise UserError(_strange(file.path, list(file.containers[FLAT])))
    raise UserError(f"{file.path}: no adapter; it has {few(file.containers) if inside else 'no tensors'}")


@dataclass
class _Part:
    """What a file has of one layer: entries of A and B, alpha beside them; the layer's names in the file."""

    names: tuple[str, ...]
    entries: Container = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)


def _numbers(file: TensorFile, container: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Alphas beside layers that are plain numbers and no tensors, as a zip may have them, and what else it says."""
    said = dict(file.said)
    beside = said.pop(container, {}) if container else said
    found = {
        name: value for name, value in beside.items() if name.endswith(".alpha") and isinstance(value, int | float)
    }
    rest = {name: value for name, value in beside.items() if name not in found}
    return {name: torch.tensor(float(value)) for name, value in found.items()}, said | rest if container else rest


def _parts(file: TensorFile, container: str, numbers: Mapping[str, Tensor]) -> dict[str, _Part]:
    """Every layer's tensors, by its original name; ``numbers`` are alphas that are none."""
    parts: dict[str, _Part] = {}
    strange = []
    entries = file.containers[container]
    for name in (*entries, *numbers):
        match = TENSOR.match(name)
        stem, side = (match["layer"], SIDES[match["side"]]) if match else (name.removesuffix(".alpha"), "alpha")
        if not match and not name.endswith(".alpha"):
            strange.append(name)
            continue
        bare = KOHYA.sub("", unwrapped(stem, PREFIX))
        part = parts.setdefault(to_original(bare), _Part((stem, bare)))
        if side in part.entries or side in part.values:
            raise UserError(f"{file.path}: {to_original(bare)} has two tensors {side}; one adapter a file is expected")
        part.entries |= {side: entries[name]} if name in entries else {}
        part.values |= {side: numbers[name]} if name in numbers else {}
    if strange:
        raise UserError(_strange(file.path, strange))
    if lonely := [layer for layer, part in parts.items() if not {"A", "B"} <= set(part.entries)]:
        raise UserError(f"{file.path}: A or B is missing for {len(lonely)} layers: {few(lonely)}")
    with file.reader() as reader:
        for part in parts.values():
            for side, entry in part.entries.items():
                part.values[side] = reader.read(entry, dtype=torch.float32 if entry.dtype.itemsize == 1 else None)
    return parts


def _strange(path: Path, names: Sequence[str]) -> str:
    hint = next((said for pattern, said in ODD if any(pattern.search(name) for name in names)), "")
    return f"{path}: {len(names)} tensors are no LoRA weights: {few(names)}" + (f"; {hint}: {ADVICE}" if hint else "")


def _pair(layer: str, part: _Part, strength: Strength, path: Path) -> Pair:
    a, b = part.values["A"], part.values["B"]
    if a.ndim > 2 or b.ndim > 2:
        raise UserError(
            f"{path}: {layer} has A {list(a.shape)} and B {list(b.shape)}, of a convolution; here linear layers alone "
            f"carry adapters: {ADVICE}"
        )
    if 0 in (*a.shape, *b.shape):
        raise UserError(f"{path}: {layer} has A {list(a.shape)} and B {list(b.shape)}, which are empty; it is broken")
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise UserError(f"{path}: {layer} has A {list(a.shape)} and B {list(b.shape)}; their ranks differ")
    if not a.is_floating_point() or not b.is_floating_point():
        raise UserError(f"{path}: {layer} is kept in {a.dtype} and {b.dtype}; expected floating point numbers")
    beside = part.values.get("alpha")
    if beside is not None and beside.numel() != 1:
        raise UserError(f"{path}: {layer}.alpha has shape {list(beside.shape)}; expected one number")
    alpha = strength.of(part.names, a.shape[0]) if beside is None else float(beside)
    if alpha <= 0:
        raise UserError(
            f"{path}: {layer} has alpha {alpha:g}; expected a number above zero: write what it was trained with"
        )
    return Pair(a, b, alpha / a.shape[0])


def check_finite(adapter: Adapter, source: str) -> None:
    """UserError when a number of the adapter is not finite: it would make every video black."""
    broken = [
        layer
        for layer, pair in adapter.items()
        if not (torch.isfinite(pair.a).all() and torch.isfinite(pair.b).all() and math.isfinite(pair.scale))
    ]
    if broken:
        raise UserError(f"{source}: {len(broken)} layers have numbers that are not finite: {few(broken)}; it is broken")


def fits(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    """UserError unless every layer is one of ``shapes`` ({layer: (out, in)}) and of its size."""
    unknown = [layer for layer in adapter if layer not in shapes]
    wrong = [
        f"{layer} {[pair.b.shape[0], pair.a.shape[1]]} instead of {list(shapes[layer])}"
        for layer, pair in adapter.items()
        if layer in shapes and (pair.b.shape[0], pair.a.shape[1]) != shapes[layer]
    ]
    complaints = [f"{len(names)} layers {what}: {few(names)}" for what, names in
                  (("of another model", unknown), ("of another size", wrong)) if names]  # fmt: skip
    if complaints:
        raise UserError(f"{source} does not fit the model: {'; '.join(complaints)}")
