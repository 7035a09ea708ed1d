"""LoRA adapters on disk: read in every common layout, written in the ones that other programs load.

    peft        a folder: adapter_config.json, adapter_model.safetensors (float32 as trained)
    comfyui     diffusion_model.blocks.0.self_attn.q.lora_A.weight, with .alpha
    diffusers   transformer.blocks.0.attn1.to_q.lora_A.weight, the scale folded into B
    merged      the source checkpoint itself, in its own container and names, with the adapter added in

Within, an adapter is {layer: Pair}, layers under the original model's names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from astrolabe.models.wan.weights import WRAPPERS, Layout
from astrolabe.runtime.checkpoint import own_metadata
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import write_whole
from astrolabe.runtime.progress import progress
from astrolabe.runtime.strict import few
from astrolabe.runtime.tensorfile import FLAT, open_tensors

CONTAINERS = ("generator_lora", FLAT)
PREFIXES = re.compile(r"^(base_model\.model\.|diffusion_model\.|transformer\.|model\.)+")
SIDES = {"lora_A": "A", "lora_B": "B", "lora_down": "A", "lora_up": "B"}
TENSOR = re.compile(r"^(?P<layer>.+)\.(?P<side>lora_A|lora_B|lora_down|lora_up)(\.\w+)?\.weight$")
DIFFUSERS = (
    ("self_attn.", "attn1."), ("cross_attn.", "attn2."),
    (".q", ".to_q"), (".k", ".to_k"), (".v", ".to_v"), (".o", ".to_out.0"),
    ("ffn.0", "ffn.net.0.proj"), ("ffn.2", "ffn.net.2"),
)  # fmt: skip


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


def to_diffusers(layer: str) -> str:
    """A layer's name in diffusers' WanTransformer3DModel."""
    head, _, tail = layer.partition("blocks.")
    number, _, rest = tail.partition(".")
    if rest.startswith("ffn."):
        rest = {"ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2"}[rest]
    else:
        kind, _, side = rest.partition(".")
        sides = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
        rest = {"self_attn": "attn1", "cross_attn": "attn2"}[kind] + "." + sides[side]
    return f"{head}blocks.{number}.{rest}"


def from_diffusers(layer: str) -> str:
    """The original name of a layer; names that are original already stay."""
    for original, theirs in DIFFUSERS:
        pattern = re.escape(theirs) + (r"(?=$)" if theirs[0] == "." or theirs.startswith("ffn") else "")
        layer = re.sub(pattern, original, layer)
    return layer


def read_adapter(path: Path | str) -> Adapter:
    """An adapter in any layout: a PEFT folder, or a file of LoRA tensors (``lora.pt`` of LongLive among them). A file
    that a run wrote says its own alpha.

    Raises UserError for anything in it that is not understood: nothing is left out silently.
    """
    path, config = Path(path), {}
    if path.is_dir():
        config = _peft_config(path)
        path = path / "adapter_model.safetensors"
    elif alpha := own_metadata(path).get("alpha"):
        config = {"lora_alpha": float(alpha)}
    file = open_tensors(path)
    container = next((name for name in CONTAINERS if name in file.containers), None)
    if container is None:
        raise UserError(f"{path}: no adapter; it has {few(file.containers) or 'no tensors'}")
    with file.reader() as reader:
        tensors = {name: reader.read(entry) for name, entry in file.containers[container].items()}
    halves: dict[str, dict[str, Tensor]] = {}
    strange = []
    for name, value in tensors.items():
        bare = PREFIXES.sub("", WRAPPERS.sub("", name))
        if match := TENSOR.match(bare):
            halves.setdefault(from_diffusers(match["layer"]), {})[SIDES[match["side"]]] = value
        elif bare.endswith(".alpha"):
            halves.setdefault(from_diffusers(bare.removesuffix(".alpha")), {})["alpha"] = value
        else:
            strange.append(name)
    if strange:
        raise UserError(f"{path}: {len(strange)} tensors are no LoRA weights: {few(strange)}")
    if lonely := [layer for layer, parts in halves.items() if not {"A", "B"} <= set(parts)]:
        raise UserError(f"{path}: A or B is missing for {len(lonely)} layers: {few(lonely)}")
    return {layer: _pair(layer, parts, config, path) for layer, parts in sorted(halves.items())}


def _pair(layer: str, parts: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> Pair:
    a, b = parts["A"], parts["B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise UserError(f"{path}: {layer} has A {list(a.shape)} and B {list(b.shape)}; their ranks differ")
    alpha = float(parts["alpha"]) if "alpha" in parts else float(config.get("lora_alpha", a.shape[0]))
    return Pair(a, b, alpha / a.shape[0])


def _peft_config(folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); expected a PEFT folder") from None
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error})") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{file}: not the configuration of a LoRA")
    if strange := [name for name in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern") if config.get(name)]:
        raise UserError(f"{file}: {', '.join(strange)} is not supported; merge the adapter in its own program first")
    return config


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


def write_peft(adapter: Adapter, folder: Path, base: str) -> None:
    """A PEFT folder; the tensors as they are. UserError when the layers do not share one rank and scale."""
    kinds = {(pair.a.shape[0], pair.scale) for pair in adapter.values()}
    if len(kinds) != 1:
        raise UserError(f"a PEFT folder has one rank and scale, this adapter has {len(kinds)}; export it as comfyui")
    ((rank, scale),) = kinds
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for layer, pair in adapter.items():
        name = f"base_model.model.{layer}"
        tensors |= {f"{name}.lora_A.weight": pair.a, f"{name}.lora_B.weight": pair.b}
    save_whole(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "base_model_name_or_path": base, "r": rank, "lora_alpha": scale * rank, "bias": "none",
        "target_modules": sorted(adapter), "lora_dropout": 0.0, "inference_mode": True,
    }  # fmt: skip
    write_whole(folder / "adapter_config.json", json.dumps(config, indent=1) + "\n")


def write_comfyui(adapter: Adapter, path: Path) -> None:
    """One safetensors file with ComfyUI's keys."""
    tensors: dict[str, Tensor] = {}
    for layer, pair in adapter.items():
        name = f"diffusion_model.{layer}"
        tensors |= {
            f"{name}.lora_A.weight": pair.a,
            f"{name}.lora_B.weight": pair.b,
            f"{name}.alpha": torch.tensor(pair.scale * pair.a.shape[0]),
        }
    save_whole(tensors, path)


def write_diffusers(adapter: Adapter, path: Path) -> None:
    """One safetensors file for diffusers' ``load_lora_weights``, which takes the scale to be one: B carries it."""
    tensors: dict[str, Tensor] = {}
    for layer, pair in adapter.items():
        name = f"transformer.{to_diffusers(layer)}"
        tensors |= {f"{name}.lora_A.weight": pair.a, f"{name}.lora_B.weight": pair.b * pair.scale}
    save_whole(tensors, path)


def write_merged(layout: Layout, adapter: Adapter, path: Path, dtype: torch.dtype | None = None) -> float:
    """The source checkpoint with the adapter added in: same container and names; sums in float32, kept in ``dtype``.

    ``dtype`` None keeps the source's precision. Gives the error of that rounding over the size of the change: nothing
    for float32; near one where a small change of bfloat16 weights was rounded away.
    """
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
                change += pair.delta.square().sum().item()
                error += (exact - value.float()).square().sum().item()
            merged[layout.names[name]] = value.to(kept)
    with progress(f"writing {path.name}"):
        if layout.file.format == "safetensors":
            save_whole(merged, path)
        else:
            content = {layout.container: merged} if layout.container else merged
            with whole_file(path) as temporary:
                torch.save(content, temporary)
    return (error / change) ** 0.5 if change else 0.0


def save_whole(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file as other programs expect it, whole or not at all."""
    with whole_file(path) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata={"format": "pt"})


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed at the end. UserError when it cannot be written: nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except (SafetensorError, RuntimeError) as error:  # what the two writers make of a full disk
        raise UserError(f"{path}: cannot be written ({str(error).strip().splitlines()[0]})") from None
    finally:
        temporary.unlink(missing_ok=True)
