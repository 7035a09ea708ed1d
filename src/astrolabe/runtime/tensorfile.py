"""Tensor files that others wrote: what lies in them is known before anything is read, and nothing in them ever runs.

Safetensors and the zip files of ``torch.save`` become the same thing, an index of (dtype, shape, place in the file).
Tensors are then read one at a time, so that loading never holds much more than what is kept.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from astrolabe.runtime.errors import UserError

FLAT = ""  # the name of the container when tensors lie at the top of a file
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its first element lies ``offset`` bytes into the file; ``stride`` in elements."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def span(self) -> int:
        """Elements from the first to the last that belong to it."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def nbytes(self) -> int:
        """What reading it reads."""
        return self.span * self.dtype.itemsize


Container = dict[str, Entry]


@dataclass(frozen=True)
class TensorFile:
    """The index of one file. ``containers`` maps the name of each dictionary of tensors in it (``FLAT`` for tensors at
    the top) to what it holds."""

    path: Path
    format: str
    containers: dict[str, Container]

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """Open the file for reading tensors of its index."""
        with open(self.path, "rb") as file:
            yield Reader(self.path, file)


@dataclass(frozen=True)
class Reader:
    """Reads tensors one by one."""

    path: Path
    file: BinaryIO

    def read(self, entry: Entry, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, on ``device`` and, when it is floating point, in ``dtype`` (None: as stored)."""
        data = torch.empty(entry.span, dtype=entry.dtype)
        if entry.span:
            self.file.seek(entry.offset)
            room = memoryview(data.view(torch.uint8).numpy().data)
            if self.file.readinto(room) != len(room):  # type: ignore[attr-defined]
                raise UserError(f"{self.path}: ends in the middle of a tensor; copy or download it again")
        value = data.as_strided(entry.shape, entry.stride)
        wanted = dtype if dtype is not None and value.is_floating_point() else value.dtype
        return value.to(device, wanted).contiguous()


def open_tensors(path: Path | str) -> TensorFile:
    """The index of a safetensors file or of a zip written by ``torch.save``, told by content and not by name.

    Raises UserError for a file that is missing, truncated, of another kind, or that would need code to be run.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if start[:4] == b"PK\x03\x04":
        return TensorFile(path, "torch zip", _index_zip(path))
    if start[8:9] == b"{":
        return TensorFile(path, "safetensors", {FLAT: _index_safetensors(path)})
    raise UserError(
        f"{path}: neither a safetensors file nor a zip written by torch.save (it begins with {start[:4]!r}); one in "
        "torch's format of before 2020 must be loaded there with weights_only=True and saved as safetensors"
    )


def _index_safetensors(path: Path) -> Container:
    try:
        with safe_open(path, framework="pt"):  # checks the header against the file
            pass
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); copy or download it again") from None
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    entries = {}
    for name, fields in header.items():
        if name == "__metadata__":
            continue
        if fields["dtype"] not in DTYPES:
            raise UserError(f"{path}: tensor {name} is {fields['dtype']}; known are {', '.join(DTYPES)}")
        shape = tuple(fields["shape"])
        entries[name] = Entry(DTYPES[fields["dtype"]], shape, _packed(shape), 8 + length + fields["data_offsets"][0])
    return entries


def _packed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _index_zip(path: Path) -> dict[str, Container]:
    try:
        with FakeTensorMode():  # tensors without contents, which remember where in the file theirs are
            loaded = torch.load(path, weights_only=True)
        if not isinstance(loaded, dict):
            raise UserError(f"{path}: holds a {type(loaded).__name__}; expected a dictionary of tensors")
        containers = {FLAT: loaded} | {name: part for name, part in loaded.items() if isinstance(part, dict)}
        indexed = {
            str(name): {str(key): _entry(value) for key, value in part.items() if isinstance(value, Tensor)}
            for name, part in containers.items()
        }
        return {name: part for name, part in indexed.items() if part}
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"{path}: refused, because loading it would run code that it brings ({reason}); "
            "ask its author for safetensors"
        ) from None
    except UserError:
        raise
    except Exception as error:  # a damaged pickle may fail anywhere in torch's reader, in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a whole checkpoint ({reason}); copy or download it again") from None


def _entry(tensor: Tensor) -> Entry:
    start = tensor.untyped_storage()._checkpoint_offset  # what FakeTensorMode notes on loading
    assert start is not None
    offset = int(start) + int(tensor.storage_offset()) * tensor.element_size()
    return Entry(tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()), offset)
