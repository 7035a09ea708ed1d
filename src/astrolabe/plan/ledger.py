"""What is counted while parts of a step are played on tensors without numbers: memory that lives, and work by kind."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as trees
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Number = int | float  # a count, or a mean or a share of counts
# They make room, give another name to what is there, or ask about it: no kernel runs.
FREE = ("prim::", "aten::empty", "aten::detach", "aten::alias", "aten::_unsafe_view", "aten::lift", "aten::new_empty")


@dataclass(frozen=True)
class Work:
    """Work by the part of a device that does it."""

    tensor: Number = 0.0  # operations of products and convolutions in bfloat16
    exact: Number = 0.0  # of those in float32
    traffic: Number = 0.0  # bytes that all other kernels read and write
    calls: Number = 0.0  # kernels

    def __add__(self, other: Work) -> Work:
        return Work(
            self.tensor + other.tensor, self.exact + other.exact, self.traffic + other.traffic, self.calls + other.calls
        )

    def __mul__(self, times: Number) -> Work:
        return Work(self.tensor * times, self.exact * times, self.traffic * times, self.calls * times)

    __rmul__ = __mul__

    def __sub__(self, other: Work) -> Work:
        return self + -1 * other


class Ledger(TorchDispatchMode):
    """Counts the bytes that live, the most that ever did, and the work that is done."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self.tensor, self.exact, self.traffic, self.calls = 0, 0, 0, 0
        self._known: set[int] = set()

    @property
    def work(self) -> Work:
        """All that was done so far."""
        return Work(self.tensor, self.exact, self.traffic, self.calls)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in trees.tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in made:
            self.count(tensor)
        if not (func.is_view or func._schema.name.startswith(FREE)):
            self.calls += 1
            operations = multiplications(func._overloadpacket, args, kwargs or {}, out)
            if operations is None:
                given = [leaf for leaf in trees.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
                self.traffic += moved([*given, *(() if func._schema.is_mutable else made)])
            elif made[0].dtype.itemsize < 4:
                self.tensor += operations
            else:
                self.exact += operations
        return out

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's memory until it is given back; once, however many views there are."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def multiplications(packet: Any, args: Any, kwargs: Any, out: Any) -> int | None:
    """Operations of a kernel that multiplies matrices, convolves or attends; None of any other."""
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    if "flash_attention_for_cpu" in str(packet):
        backward = "backward" in str(packet)
        query, key = args[1:3] if backward else args[:2]
        return (10 if backward else 4) * query.numel() * key.shape[2]
    return None


def moved(tensors: Iterable[Tensor]) -> int:
    """Bytes read or written of tensors; what is spread over many places is read once."""
    return sum(min(one.numel() * one.dtype.itemsize, one.untyped_storage().nbytes()) for one in tensors)
