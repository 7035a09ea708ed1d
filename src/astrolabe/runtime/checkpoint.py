"""Checkpoints: safetensors and JSON, nothing that runs on loading, and never half a file under a finished name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from astrolabe.runtime.errors import NotPermitted, UserError
from astrolabe.runtime.files import naming, refusal, usual_mode
from astrolabe.runtime.progress import progress
from astrolabe.runtime.steps import finished_steps, step_name

METADATA = "astrolabe"


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file, whole or not at all: under a temporary name beside it, to the disk, then renamed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        # One key: safetensors writes several in an order of chance, and the same content should be the same bytes.
        with naming(path), usual_mode(temporary):
            save_file(_unshared(tensors), temporary, metadata={METADATA: json.dumps(dict(metadata), sort_keys=True)})
        _flush(temporary)
        os.replace(temporary, path)
    except (SafetensorError, PermissionError) as error:
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)


def own_metadata(path: Path | str) -> dict[str, str]:
    """What ``save_tensors`` was told of a file; empty for a file that it did not write. UserError for one that is there
    and may not be read."""
    try:
        with open(path, "rb"):  # safetensors takes what it may not read for absent
            pass
        with safe_open(path, framework="pt") as file:
            found: dict[str, str] = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            return found
    except PermissionError as error:
        raise refusal(path, error) from None
    except (OSError, SafetensorError, ValueError):
        return {}


def load_tensors(path: Path | str, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, on the CPU, and the metadata of a safetensors file; UserError when it is missing or broken.

    ``prefix``: only those whose names begin so, named without it; nothing else of the file is read.
    """
    try:
        with open(path, "rb"):  # safetensors takes what it may not read for absent
            pass
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
            return tensors, json.loads(metadata[METADATA]) if METADATA in metadata else metadata
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise refusal(path, error) from error
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from error


def fingerprint(tensors: Mapping[str, Tensor], what: str = "a checkpoint") -> str:
    """SHA-256 in hex over names, dtypes, shapes and bytes, in the order of the names: equal exactly for equal sets.

    ``what`` they are is for the display.
    """
    digest = hashlib.sha256()
    with progress(f"hashing {what}", sum(tensor.nbytes for tensor in tensors.values()), "bytes") as task:
        for name in sorted(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            header = json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
            digest.update(len(header).to_bytes(8, "big") + header)
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
            task.advance(tensor.nbytes)
    return digest.hexdigest()


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run, ``run_dir/checkpoints/step_000010/``; the newest ``keep`` (at least one) stay."""

    run_dir: Path
    keep: int = 2

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep={self.keep}: expected at least 1")

    @property
    def folder(self) -> Path:
        return Path(self.run_dir) / "checkpoints"

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint whole or not at all, then drop the oldest; ``state`` is whatever JSON can hold.

        Gives the folder. ``step`` may be saved again: the newer one takes its place. Later steps, of a continuation
        that was given up when the run went back to an earlier checkpoint, are dropped too.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in (*self.folder.glob(".step_*.tmp"), *self.folder.glob(".step_*.old")):
            shutil.rmtree(leftover)  # of a run that was killed while saving
        final = self._at(step)
        temporary = self.folder / f".{final.name}.tmp"
        temporary.mkdir()
        save_tensors(temporary / "state.safetensors", tensors, {"step": str(step)})
        record = {"step": step, "fingerprint": fingerprint(tensors), "state": dict(state)}
        text = temporary / "state.json"
        text.write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")
        _flush(text)
        _flush(temporary)
        if final.exists():
            self._drop(final)
        os.replace(temporary, final)
        _flush(self.folder)
        past = [known for known in self.steps() if known <= step]
        for known in set(self.steps()) - set(past[-self.keep :]):
            self._drop(self._at(known))
        return final

    def steps(self) -> list[int]:
        """The steps that have a finished checkpoint, oldest first."""
        return finished_steps(self.folder)

    def latest(self) -> int | None:
        """The newest finished step, or None before the first."""
        return max(self.steps(), default=None)

    def load(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the state saved at ``step``; UserError when it is absent, unreadable, or not as written."""
        tensors, named, state = self._read(step, "")
        if named != fingerprint(tensors):
            raise UserError(f"{self._at(step)}: the tensors are not the ones its record names; {self._way_out(step)}")
        return tensors, state

    def load_part(self, step: int, part: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Of the tensors saved at ``step`` those named ``part/...``, without reading the others, and the state;
        UserError as in ``load``, but that what was written is not checked against its fingerprint."""
        tensors, _, state = self._read(step, f"{part}/")
        return tensors, state

    def _read(self, step: int, prefix: str) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
        folder = self._at(step)
        if not folder.is_dir():
            there = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"{self.folder}: no checkpoint of step {step}; there are: {there}")
        try:
            tensors, _ = load_tensors(folder / "state.safetensors", prefix)
        except NotPermitted:
            raise  # it may be whole: nothing is to be removed
        except UserError as error:
            raise UserError(f"{error}; {self._way_out(step)}") from error
        try:
            record = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            return tensors, str(record["fingerprint"]), dict(record["state"])
        except PermissionError as error:
            raise refusal(folder / "state.json", error) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / 'state.json'}: not a whole checkpoint record; {self._way_out(step)}") from error

    def _at(self, step: int) -> Path:
        return self.folder / step_name(step)

    def _way_out(self, step: int) -> str:
        others = [known for known in self.steps() if known != step]
        goal = f"to go on from step {others[-1]}" if others else "to begin again"
        return f"remove the folder {self.folder / f'step_{step:06d}'} {goal}"

    def _drop(self, folder: Path) -> None:
        # Renamed first, so that a kill in the middle of deleting leaves no half checkpoint under a finished name.
        doomed = folder.with_name(f".{folder.name}.old")
        os.replace(folder, doomed)
        shutil.rmtree(doomed)


def flatten_optimizer(optimizer: Optimizer, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """AdamW's state as ``{"<parameter>/exp_avg": ...}``, copied to the CPU bit for bit, step counts included.

    ``names`` is ``dict(model.named_parameters())``, or the part of it that is trained. A parameter that has had no
    gradient yet is recorded as ``<parameter>/fresh``. The rates are not here: they come from the configuration.
    """
    flat: dict[str, Tensor] = {}
    for name, parameter in _trained(optimizer, names).items():
        slots = optimizer.state.get(parameter) or {"fresh": torch.empty(0)}
        flat |= {f"{name}/{slot}": value.detach().to("cpu", copy=True) for slot, value in slots.items()}
    return flat


def restore_optimizer(optimizer: Optimizer, names: Mapping[str, Tensor], flat: Mapping[str, Tensor]) -> None:
    """The inverse of ``flatten_optimizer``: UserError unless every parameter finds its state, and nothing is left."""
    trained = _trained(optimizer, names)
    slots: dict[str, dict[str, Tensor]] = {}
    for key, value in flat.items():
        name, _, slot = key.rpartition("/")
        slots.setdefault(name, {})[slot] = value
    if slots.keys() != trained.keys():
        odd = sorted(slots.keys() ^ trained.keys())
        raise UserError(f"optimizer state is for other parameters than these: {len(odd)} differ, {odd[0]!r} first")
    for name, found in slots.items():
        _check_slots(name, trained[name], found)
    order = {id(parameter): name for name, parameter in trained.items()}
    groups = optimizer.state_dict()["param_groups"]
    indices = [index for group in groups for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {slot: value.clone() for slot, value in slots[order[id(parameter)]].items()}
        for index, parameter in zip(indices, parameters, strict=True)
        if "fresh" not in slots[order[id(parameter)]]
    }
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _trained(optimizer: Optimizer, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimizer's parameters by name; ValueError when one has none."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = {name: parameter for name, parameter in names.items() if id(parameter) in held}
    if len(trained) != len(held):
        raise ValueError(f"{len(held)} parameters are optimized, but {len(trained)} of them have a name")
    return trained


def _check_slots(name: str, parameter: Tensor, found: Mapping[str, Tensor]) -> None:
    if set(found) == {"fresh"}:
        return
    if set(found) - {"max_exp_avg_sq"} != {"step", "exp_avg", "exp_avg_sq"}:
        raise UserError(f"optimizer state of {name!r} holds {sorted(found)}, expected step, exp_avg and exp_avg_sq")
    for slot, value in found.items():
        wanted = () if slot == "step" else tuple(parameter.shape)
        if tuple(value.shape) != wanted:
            raise UserError(f"optimizer state {name}/{slot} has shape {tuple(value.shape)}, expected {wanted}")


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, on the CPU, and each in memory of its own, as safetensors asks."""
    seen: set[int] = set()
    ready: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        ready[name] = plain.clone() if memory in seen else plain
        seen.add(memory)
    return ready


def _flush(path: Path) -> None:
    """To the disk, for a file's content or a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
