"""Which of several processes this one is, and how they share work: the one place that knows ranks.

All processes of a world run the same program. Work is cut into numbered pieces that know nothing of processes; each
piece is done once, by one process, and all processes get all results in the order of the pieces. So a sum over them is
the same sum to the bit, however many processes there are. In a world of one nothing is sent, copied or held back.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from astrolabe.runtime.errors import UserError

S = TypeVar("S")
T = TypeVar("T")


class Link(Protocol):
    """How bytes reach the other processes."""

    def gather(self, own: bytes) -> list[bytes]:
        """What every process gives, in the order of their ranks, in all of them."""
        ...

    def first(self, own: bytes) -> bytes:
        """What the first process gives, in all of them."""
        ...

    def check(self) -> None:
        """UserError when another process has ended before its time."""
        ...

    def at(self, place: str) -> None:
        """Where in its work this process is."""
        ...


class Dismissed(Exception):
    """The work is done: what leaves a process that works behind the first."""


class Stopped(Exception):
    """Work was given up between two of its pieces, by all processes, since one of them was asked to stop."""


class World:
    """Process number ``rank`` of ``size``; by itself unless a ``link`` leads to others.

    ``asked`` tells whether this process was asked to stop (a signal); ``shared`` looks between two pieces.
    """

    def __init__(self, rank: int = 0, size: int = 1, link: Link | None = None):
        if (link is None) != (size == 1) or not 0 <= rank < size:
            raise ValueError(f"rank {rank} of {size} processes, with{'' if link else 'out'} a link")
        self.rank, self.size, self._link = rank, size, link
        self.asked: Callable[[], bool] = never

    @property
    def leads(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """What every process gives, in the order of their ranks. All must ask at the same point of the program."""
        return [value] if self._link is None else [unpacked(part) for part in self._link.gather(packed(value))]

    def first(self, value: T) -> T:
        """What the first process gives; the others give anything."""
        return value if self._link is None else unpacked(self._link.first(packed(value) if self.leads else b""))

    def check(self) -> None:
        """UserError when another process has ended before its time: for work that takes long between two meetings."""
        if self._link is not None:
            self._link.check()

    def others(self, make: Callable[[], T]) -> list[T]:
        """What the other processes made; alone, nothing is made."""
        if self._link is None:
            return []
        return [value for rank, value in enumerate(self.gather(make())) if rank != self.rank]

    def owners(self, costs: Sequence[float]) -> list[int]:
        """Which process does each piece of work: the most expensive first, each to the one with the least so far."""
        loads, owners = [0.0] * self.size, [0] * len(costs)
        for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
            owners[piece] = loads.index(min(loads))
            loads[owners[piece]] += costs[piece]
        return owners

    def own(self, costs: Sequence[float]) -> list[int]:
        """The pieces that are this process's, in their order."""
        return [piece for piece, owner in enumerate(self.owners(costs)) if owner == self.rank]

    def shared(
        self, pieces: Sequence[S], work: Callable[[S], T], costs: Sequence[float] | None = None, stops: bool = False
    ) -> Iterator[T]:
        """``work`` of every piece, in their order, each done by one process; alone, one at a time as they are asked
        for. ``costs``: how long each takes, compared with the others; alike when not said. ``stops``: the work may be
        given up between two pieces; then Stopped in all processes."""
        if self._link is None:
            for piece in pieces:
                if stops and self.asked():
                    raise Stopped
                yield work(piece)
            return
        made: dict[int, T] = {}
        for number in self.own(costs or [1.0] * len(pieces)):
            if stops and self.asked():
                break
            made[number] = work(pieces[number])
        parts = self.gather(made)
        done = {number: result for part in parts for number, result in part.items()}
        if len(done) < len(pieces):
            raise Stopped
        yield from (done[number] for number in range(len(pieces)))

    def at(self, place: str) -> None:
        """Let the other processes know where in its work this one is, in case that it comes no further."""
        if self._link is not None:
            self._link.at(place)


def never() -> bool:
    """Nobody asks."""
    return False


ALONE = World()


class _Packer(pickle.Pickler):
    """Tensors as their bytes: a plain pickle would carry the whole storage behind a view."""

    def reducer_override(self, value: Any) -> Any:
        import torch  # there already where there is a tensor; a command that is refused needs none of it

        if not isinstance(value, torch.Tensor):
            return NotImplemented
        plain = value.detach().cpu().contiguous()
        content = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        return _tensor, (content, plain.dtype, tuple(plain.shape))


def _tensor(content: bytes, dtype: Any, shape: tuple[int, ...]) -> Any:
    import torch

    if not content:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape)


def packed(value: Any) -> bytes:
    """A value as bytes, to the bit; tensors come back on the CPU, without gradient."""
    buffer = io.BytesIO()
    _Packer(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


def unpacked(content: bytes) -> Any:
    """The inverse of ``packed``. Only what a process of this very command sent may come here: a pickle can run code."""
    return pickle.loads(content)


def launched() -> tuple[int, int]:
    """Rank and number of the processes that torchrun has started for this command: 0 and 1 without it."""
    try:
        rank, size = (int(os.environ.get(name, usual)) for name, usual in (("RANK", "0"), ("WORLD_SIZE", "1")))
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size:
        said = ", ".join(f"{name}={os.environ.get(name, '')}" for name in ("RANK", "WORLD_SIZE"))
        raise UserError(f"{said} in the environment: torchrun sets them to whole numbers, the first below the second")
    return rank, size


def one_launched(command: str) -> None:
    """UserError where torchrun has started ``command`` several times over: each would do all of the work, and be in the
    others' way. The first says so, the others end without a word."""
    rank, size = launched()
    if rank > 0:
        raise SystemExit(2)
    if size > 1:
        raise UserError(
            f"torchrun has started {size} processes, and {command} cannot share its work among them: start it once, "
            "without torchrun; on a CPU it starts the processes that it needs (processes)"
        )
