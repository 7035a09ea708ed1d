"""Tensor files that others wrote: what lies in them is known before anything is read, and nothing in them ever runs.

Safetensors, the zip files of ``torch.save``, and folders of either in shards become the same thing, an index of (dtype,
shape, place in a file). Tensors are then read one at a time, so that loading never holds much more than what is kept.

``safe_open`` and ``torch.load(weights_only=True)`` make the index. They do not read the tensors, as both map the whole
file, and its pages count as the process's own until it is closed: a bfloat16 file that is copied peaks at twice its
size, and at three times when it becomes float32; read here it peaks at once and twice. A network that is left on the
mapping would die (SIGBUS) when another program truncates the file.
"""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from astrolabe.runtime import foreign
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import exists, place, refusal

FLAT = ""  # the name of the container when tensors lie at the top of a file
INDEX = ".index.json"  # how the names of indices of shards end
HEADER_LIMIT = 100_000_000  # bytes; safetensors' own
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor: its first element lies ``offset`` bytes into the file at ``path``; ``stride`` in elements."""

    path: Path
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

    @property
    def order(self) -> tuple[str, int]:
        """Entries sorted by it lie one after another on the disk."""
        return str(self.path), self.offset


Container = dict[str, Entry]


@dataclass(frozen=True)
class TensorFile:
    """The index of one file, or of several that belong together. ``containers`` maps the name of each dictionary of
    tensors in it (``FLAT`` for tensors at the top) to what it holds; ``said`` is all else it holds at the top that is
    plain: the header of safetensors, numbers and words of a checkpoint, dictionaries of them."""

    path: Path
    format: str
    containers: dict[str, Container]
    said: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """Open the file for reading tensors of its index."""
        with ExitStack() as opened:
            yield Reader(opened)


class Reader:
    """Reads tensors one by one; files stay open until it is closed."""

    def __init__(self, opened: ExitStack):
        self._opened = opened
        self._files: dict[Path, BinaryIO] = {}
        self._room = torch.empty(0, dtype=torch.uint8)

    def read(self, entry: Entry, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, on ``device`` and, when it is floating point, in ``dtype`` (None: as stored)."""
        wanted = dtype if dtype is not None and entry.dtype.is_floating_point else entry.dtype
        plain = wanted == entry.dtype and entry.stride == _packed(entry.shape)
        as_it_lies = plain and torch.device(device).type == "cpu"
        data = torch.empty(entry.nbytes, dtype=torch.uint8) if as_it_lies else self._reused(entry.nbytes)
        if entry.span:
            file = self._file(entry.path)
            file.seek(entry.offset)
            if file.readinto(memoryview(data.numpy().data)) != len(data):  # type: ignore[attr-defined]
                raise UserError(f"{entry.path}: ends in the middle of a tensor; {foreign.AGAIN}")
        value = data.view(entry.dtype).as_strided(entry.shape, entry.stride)
        return value if as_it_lies else value.to(device, wanted, copy=True).contiguous()

    def _reused(self, size: int) -> Tensor:
        """Room for the bytes of a tensor that is copied out of it: one for all, as the holes that many would leave in
        the heap are too small for what is made of them, and memory would grow by half."""
        if len(self._room) < size:
            self._room = torch.empty(size, dtype=torch.uint8)
        return self._room[:size]

    def _file(self, path: Path) -> BinaryIO:
        if path not in self._files:
            self._files[path] = self._opened.enter_context(path.open("rb"))
        return self._files[path]


def open_tensors(path: Path | str) -> TensorFile:
    """The index of a safetensors file, of a zip written by ``torch.save``, or of shards (their folder, or the JSON that
    lists them); told by content and not by name.

    Raises UserError for what is missing, truncated, of another kind, or would need code to be run: it says what it is.
    """
    path = place(path)
    if exists(path) and path.is_dir():
        path = index_in(path)
    if path.name.endswith(INDEX):
        return _join(path)
    try:
        with open(path, "rb") as file:
            start = file.read(foreign.HEAD)
            size = file.seek(0, 2)
    except OSError as error:
        raise refusal(path, error) from None
    if start[:4] == b"PK\x03\x04":
        return _index_zip(path, size)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= HEADER_LIMIT:
        return _index_safetensors(path)
    raise UserError(f"{path}: {foreign.told(start, size)}")


def _index_safetensors(path: Path) -> TensorFile:
    try:
        with safe_open(path, framework="pt"):  # checks the header against the file
            pass
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); {foreign.AGAIN}") from None
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    said = header.pop("__metadata__", None) or {}
    entries = {}
    for name, fields in header.items():
        if fields["dtype"] not in DTYPES:
            raise UserError(f"{path}: tensor {name} is {fields['dtype']}; known are {', '.join(DTYPES)}")
        shape = tuple(fields["shape"])
        start = 8 + length + fields["data_offsets"][0]
        entries[name] = Entry(path, DTYPES[fields["dtype"]], shape, _packed(shape), start)
    return TensorFile(path, "safetensors", {FLAT: entries}, said)


def _packed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _index_zip(path: Path, size: int) -> TensorFile:
    _check_zip(path)
    try:
        with FakeTensorMode():  # tensors without contents, which remember where in the file theirs are
            loaded = torch.load(path, weights_only=True)
        if not isinstance(loaded, dict):
            raise UserError(f"{path}: holds a {type(loaded).__name__}; expected a dictionary of tensors")
        containers = {FLAT: loaded} | {name: part for name, part in loaded.items() if isinstance(part, dict)}
        indexed = {
            str(name): {str(key): _entry(path, value) for key, value in part.items() if isinstance(value, Tensor)}
            for name, part in containers.items()
        }
        entries = [entry for part in indexed.values() for entry in part.values()]
        if any(entry.offset + entry.span * entry.dtype.itemsize > size for entry in entries):
            raise ValueError("a tensor lies beyond its end")
        return TensorFile(path, "torch zip", {name: part for name, part in indexed.items() if part}, _plain(loaded))
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"{path}: refused, because loading it would run code that it brings ({reason}); {foreign.CONVERT}"
        ) from None
    except UserError:
        raise
    except Exception as error:  # a damaged pickle may fail anywhere in torch's reader, in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a whole checkpoint ({reason}); {foreign.AGAIN}") from None


def _check_zip(path: Path) -> None:
    """UserError unless it is one of ``torch.save``, as it was written: packed again, its tensors would be noise."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise UserError(f"{path}: not a whole zip file ({error}); {foreign.AGAIN}") from None
    names = [record.filename for record in records]
    if not any(name.endswith("data.pkl") for name in names):
        raise UserError(
            f"{path}: a zip archive ({', '.join(names[:3])}, ...) that torch.save did not write; {foreign.UNPACK}"
        )
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        raise UserError(f"{path}: a TorchScript program, which would be run: refused; {foreign.CONVERT}")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise UserError(f"{path}: a checkpoint that was packed again, compressed; {foreign.AGAIN} as it was saved")


def _entry(path: Path, tensor: Tensor) -> Entry:
    start = tensor.untyped_storage()._checkpoint_offset  # what FakeTensorMode notes on loading
    assert start is not None
    offset = int(start) + int(tensor.storage_offset()) * tensor.element_size()
    return Entry(path, tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()), offset)


def _plain(loaded: Mapping[Any, Any]) -> dict[str, Any]:
    """What beside tensors lies in a dictionary, and in dictionaries within; those of tensors alone are left out."""
    parts = {
        str(name): _plain(value) if isinstance(value, dict) else value
        for name, value in loaded.items()
        if not isinstance(value, Tensor)
    }
    return {name: value for name, value in parts.items() if value != {}}


# ------------------------------------------------------------------------------------------------------- shards


def index_in(folder: Path) -> Path:
    """The JSON that lists the shards in a folder, those of safetensors first; UserError when there is not just one."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise refusal(folder, error) from None
    lists = [name for name in names if name.endswith(INDEX)]
    of_safetensors = [name for name in lists if name.endswith(f".safetensors{INDEX}")]
    found = of_safetensors or lists
    if len(found) == 1:
        return folder / found[0]
    if found:
        raise UserError(f"{folder}: has several indices of shards; name one: {', '.join(found)}")
    if any(name.endswith(".distcp") for name in names):
        raise UserError(
            f"{folder}: a checkpoint of torch.distributed; make one file of it first: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
        )
    there = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    raise UserError(f"{folder}: a folder without an index of shards ({there or 'it is empty'}); name a file")


def _join(index: Path) -> TensorFile:
    """The shards that an index lists, as one file; UserError unless the list and what they hold are the same."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(tensor): str(shard) for tensor, shard in listed.items()}
    except OSError as error:
        raise refusal(index, error) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: no index of shards (a weight_map was expected); {foreign.AGAIN}") from None
    files = {}
    for shard in sorted(set(names.values())):
        if Path(shard).name != shard:  # the list may name files of its own folder only
            raise UserError(f"{index}: names {shard!r}; shards lie beside their index")
        if not exists(index.with_name(shard)):
            raise UserError(f"{index}: {shard} of {len(set(names.values()))} shards is not there; download it too")
        files[shard] = open_tensors(index.with_name(shard))
    held = {shard: file.containers.get(FLAT, {}) for shard, file in files.items()}
    odd = [name for name, shard in names.items() if name not in held[shard]]
    odd += [name for shard, part in held.items() for name in part if names.get(name) != shard]
    if odd:
        raise UserError(
            f"{index}: its list and its shards differ ({len(odd)} tensors, {odd[0]} first); {foreign.AGAIN}"
        )
    kinds = sorted({file.format for file in files.values()})
    joined = {name: held[shard][name] for name, shard in names.items()}
    return TensorFile(index, f"{len(files)} shards of {' and '.join(kinds)}", {FLAT: joined})
