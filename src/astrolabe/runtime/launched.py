"""The processes that torchrun has started, as one world over torch.distributed.

At every meeting the processes first tell each other what they bring: a value, an error, or that all is done. So an
error in one ends all of them, wherever each was; the first alone says what it was. A process that does not come is
named, with the place where it was last.
"""

from __future__ import annotations

import hashlib
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from astrolabe.runtime.errors import UserError
from astrolabe.runtime.interrupts import Interrupted
from astrolabe.runtime.progress import silence
from astrolabe.runtime.world import ALONE, Dismissed, World, launched

if TYPE_CHECKING:
    from torch import Tensor

VALUE, ERROR, END = range(3)
BEGIN = 300.0  # seconds in which all processes must have begun
FINDS_OUT = 5.0  # seconds after which a process that has not found out that one is missing is missing itself


@contextmanager
def together(patience: float) -> Iterator[World]:
    """This process among those that torchrun has started; alone without it.

    The scope ends in all of them when it ends in the first; those behind it leave it by ``Dismissed``. UserError in the
    first for what goes wrong in one of them, and for one that does not come to a meeting for ``patience`` seconds; the
    others end with exit code 2, and without a word.
    """
    rank, size = launched()
    if size == 1:
        yield ALONE
        return
    if rank:
        silence()  # the first one shows how far the work is
    own_device()
    link = Launched(rank, size, patience)
    try:
        yield World(rank, size, link)
        if not rank:
            link.meet(END)
    except Dismissed:
        return
    except Elsewhere as error:  # said by the process that had it, or by the first
        quit_unless(error.speaks, UserError(str(error)))
    except UserError as error:
        link.last_words(f"process {rank + 1} of {size}: {error}" if rank else str(error))
        quit_unless(not rank, error)
    except Interrupted:
        link.last_words("")
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = " ".join(f"{type(error).__name__}: {error}".split())
        link.last_words(f"process {rank + 1} of {size}: {what} ({place.filename}, line {place.lineno})")
        raise
    finally:
        link.close()


def own_device() -> None:
    """Of several processes on one machine, each has the GPU of its own number, and calls it cuda."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def quit_unless(speaks: bool, error: UserError) -> None:
    """Raise the error in the process that says it; the others end."""
    if not speaks:
        raise SystemExit(2)
    raise error from None


class Elsewhere(Exception):
    """What went wrong in another process; ``speaks``: it is this one's to say so."""

    def __init__(self, said: str, speaks: bool):
        super().__init__(said)
        self.speaks = speaks


class Launched:
    """The others, as each of them sees them (``world.Link``)."""

    def __init__(self, rank: int, size: int, patience: float):
        import torch.distributed as dist

        self.rank, self.size, self.place = rank, size, "the beginning"
        try:
            store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timedelta(seconds=BEGIN)))
            store = dist.PrefixStore(word(store, rank, size), store)
            dist.init_process_group(store=store, rank=rank, world_size=size, timeout=timedelta(seconds=patience))
        except (RuntimeError, ValueError, TimeoutError) as error:
            raise UserError(f"the {size} processes of torchrun did not find each other: {first_line(error)}") from None
        self.dist, self.store = dist, store

    def gather(self, own: bytes) -> list[bytes]:
        """See ``Link``."""
        import torch

        lengths = self.meet(VALUE, own)
        padded = torch.zeros(max(*lengths, 1), dtype=torch.uint8)
        padded[: len(own)] = as_tensor(own)
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        self._done(self.dist.all_gather(parts, padded, async_op=True))
        return [part[:length].numpy().tobytes() for part, length in zip(parts, lengths, strict=True)]

    def first(self, own: bytes) -> bytes:
        """See ``Link``."""
        return self._hear(0, self.meet(VALUE, own)[0], own)

    def check(self) -> None:
        """See ``Link``: torchrun watches over all of them."""

    def at(self, place: str) -> None:
        """See ``Link``."""
        self.place = place
        with suppress(RuntimeError):  # the store may have gone with the process that held it
            self.store.set(f"at/{self.rank}", place)

    def meet(self, kind: int, own: bytes = b"") -> list[int]:
        """How many bytes each process brings; Elsewhere for an error of one, Dismissed when the first has ended."""
        import torch

        heads = [torch.zeros(2, dtype=torch.int64) for _ in range(self.size)]
        self._done(self.dist.all_gather(heads, torch.tensor([kind, len(own)]), async_op=True))
        kinds, lengths = zip(*(head.tolist() for head in heads), strict=True)
        if ERROR in kinds:
            said = self._hear(kinds.index(ERROR), lengths[kinds.index(ERROR)], own).decode()
            raise Elsewhere(said, speaks=not self.rank) if said else Dismissed
        if kinds[0] == END and self.rank:
            raise Dismissed
        return list(lengths)

    def last_words(self, said: str) -> None:
        """Tell the others what went wrong here; nothing when the work was interrupted."""
        with suppress(Elsewhere, Dismissed):
            self.meet(ERROR, said.encode())

    def close(self) -> None:
        """Leave."""
        with suppress(RuntimeError):
            self.dist.destroy_process_group()

    def _hear(self, rank: int, length: int, own: bytes) -> bytes:
        """The bytes of one process, in all of them."""
        import torch

        content = as_tensor(own) if rank == self.rank else torch.empty(length, dtype=torch.uint8)
        if length:
            self._done(self.dist.broadcast(content, rank, async_op=True))
        return content.numpy().tobytes()

    def _done(self, work: Any) -> None:
        """Wait for a message to have gone round; Elsewhere when a process does not come."""
        try:
            work.wait()
        except RuntimeError as error:
            late, first = self._late()
            raise Elsewhere(f"{late} ({first_line(error)})", speaks=first == self.rank) from None

    def _late(self) -> tuple[str, int]:
        """Who is missing, in words, and the first of those who are not: all who find out say so here."""
        gone: dict[int, str] = {}
        try:
            self.store.set(f"finds/{self.rank}", "that somebody is missing")
            missing, end = set(range(self.size)), time.monotonic() + FINDS_OUT
            while missing and time.monotonic() < end:
                missing = {rank for rank in missing if not self.store.check([f"finds/{rank}"])}
                time.sleep(0.02)
            for rank in sorted(missing):
                there = self.store.check([f"at/{rank}"])  # to get what is not there would be to wait for it
                gone[rank] = self.store.get(f"at/{rank}").decode() if there else "the beginning"
        except RuntimeError:  # the store is gone, and with it the process that held it
            gone = {0: self.place}
        here = min(set(range(self.size)) - set(gone))
        named = [f"process {rank + 1} of {self.size}, last seen in {place}," for rank, place in gone.items()]
        said = "has ended or does not answer; the same command goes on from what is on disk"
        return f"{'; '.join(named) or 'a process'} {said}", here


def word(store: Any, rank: int, size: int) -> str:
    """A word that these processes share, and none of an attempt before, which the store outlives when torchrun starts
    them again. Each asks under a number of its own, so that no answer is an old one. TimeoutError when one is
    missing."""
    if rank:
        asked = uuid4().hex
        store.set(f"asks/{rank}", asked)
        found: str = store.get(f"answer/{asked}").decode()
        store.set(f"{found}/{rank}", "here")
        return found
    own, end = uuid4().hex, time.monotonic() + BEGIN
    missing = set(range(1, size))
    while missing:
        if time.monotonic() > end:
            raise TimeoutError(f"process {min(missing) + 1} of {size} has not begun after {BEGIN:.0f} seconds")
        for other in [other for other in missing if store.check([f"asks/{other}"])]:
            store.set(f"answer/{store.get(f'asks/{other}').decode()}", own)
            if store.check([f"{own}/{other}"]):
                missing.remove(other)
        time.sleep(0.02)
    return own


def agree(world: World, **own: str) -> None:
    """UserError unless every process has the same of each, and runs the same code."""
    own = {name: digest(value.encode()) for name, value in own.items()} | {"code": code()}
    found = world.gather(own)
    for name in own:
        values = [other[name] for other in found]
        if odd := [rank for rank, value in enumerate(values) if value != values[0]]:
            raise UserError(
                f"process {odd[0] + 1} of {world.size} has another {name} than the first ({values[odd[0]]}, not "
                f"{values[0]}): start all of them with the same command, on the same files"
            )


def code() -> str:
    """A digest of this package, and the version of torch."""
    import torch

    package = Path(__file__).parents[1]
    files = sorted(package.rglob("*.py"))
    return f"{digest(b''.join(file.read_bytes() for file in files))}, torch {torch.__version__}"


def digest(content: bytes) -> str:
    """A few digits that tell one content from another."""
    return hashlib.sha256(content).hexdigest()[:12]


def as_tensor(content: bytes) -> Tensor:
    """Bytes as a tensor."""
    import torch

    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def first_line(error: BaseException) -> str:
    """What an error of torch says, in short."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
