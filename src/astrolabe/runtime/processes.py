"""More processes for one command, on this machine: they begin with it, work with it, and end when it ends.

They talk over pipes that have no name and no port: no other program reaches them, and a process that dies is noticed at
once, however it died. Signals reach the first process alone (the others are groups of their own); it decides, and what
it decides reaches the others with the work. One thread each: threads of one process wait for each other in every
operation, so that a core that is busy with something else holds all of them up.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe

from astrolabe.runtime.errors import UserError
from astrolabe.runtime.progress import silence
from astrolabe.runtime.world import Dismissed, World

PATIENCE = 10.0  # seconds in which a process that is told to end may finish what it writes, or be seen to have died
VALUE, ERROR, END = b"v", b"e", b"."  # what a message begins with
BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from astrolabe.runtime.processes import begin; begin()"


class Left(Exception):
    """The first process has ended."""


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Within the scope torch computes on one thread, if that is ``wanted``."""
    import torch

    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def processes(
    size: int, work: Callable[..., None], *arguments: object, patience: float = 0.0
) -> Iterator[World]:  # fmt: skip
    """This process as the first of ``size``; in each of the others ``work(world, *arguments)`` runs beside the scope.

    ``work`` is a function of a module. The scope ends when all have come to their end. UserError, in one line, for what
    goes wrong in one of them, also for one that is killed; whatever leaves the scope ends the others, at once, or those
    that handle SIGTERM so many seconds of ``patience`` later: they may have a file to close.
    """
    if size == 1:
        yield World()
        return
    with one_thread():
        crew = Crew(size, pickle.dumps((work, arguments)))
        try:
            yield World(0, size, crew)
            crew.finish()
        finally:
            crew.close(patience)


class Crew:
    """The other processes, as the first one sees them (``world.Link``)."""

    def __init__(self, size: int, job: bytes):
        self.size = size
        alive, self._life = os.pipe()  # its end tells them that this process has ended, whatever they are doing
        self._pipes: list[Connection] = []
        self._members: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(1, size):
                here, there = Pipe()
                handles = (there.fileno(), alive)
                words = [sys.executable, "-P", "-c", BOOT, json.dumps(sys.path), str(rank), str(size)]
                self._members.append(
                    subprocess.Popen(
                        [*words, *map(str, handles)], pass_fds=handles, process_group=0,
                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                    )
                )  # fmt: skip
                self._pipes.append(here)
                there.close()
                with suppress(OSError):  # one that has died already is found when it is read from
                    here.send_bytes(VALUE + job)
        finally:
            os.close(alive)

    def gather(self, own: bytes) -> list[bytes]:
        """See ``Link``."""
        parts = [own, *(self._hear(rank) for rank in range(1, self.size))]
        for rank in range(1, self.size):
            for part in parts:
                self._tell(rank, part)
        return parts

    def first(self, own: bytes) -> bytes:
        """See ``Link``."""
        for rank in range(1, self.size):
            self._tell(rank, own)
        return own

    def check(self) -> None:
        """See ``Link``."""
        for rank, member in enumerate(self._members, 1):
            while member.poll() is not None:  # it ended before the work did: it says why, or not even that
                self._hear(rank)

    def at(self, place: str) -> None:
        """See ``Link``: pipes are closed by a process that ends, whatever it did."""

    def finish(self) -> None:
        """Wait for the end of all; UserError for what one of them has to say, or for one that did not end well."""
        for rank, (pipe, member) in enumerate(zip(self._pipes, self._members, strict=True), 1):
            with suppress(EOFError, OSError):
                pipe.send_bytes(END)
                self._check(rank, pipe.recv_bytes())
            if member.wait():
                raise UserError(self._death(rank))

    def close(self, patience: float) -> None:
        """Let go of all; who is still there after so many seconds is ended."""
        if self._life >= 0:
            os.close(self._life)
            self._life = -1
        for pipe in self._pipes:
            pipe.close()
        end = time.monotonic() + patience
        for member in self._members:
            try:
                member.wait(max(end - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                member.kill()
                member.wait()

    def _hear(self, rank: int) -> bytes:
        try:
            return self._check(rank, self._pipes[rank - 1].recv_bytes())
        except (EOFError, OSError):
            raise UserError(self._death(rank)) from None

    def _tell(self, rank: int, content: bytes) -> None:
        try:
            self._pipes[rank - 1].send_bytes(VALUE + content)
        except OSError:
            self._hear(rank)  # its last words, if it had any
            raise UserError(self._death(rank)) from None

    def _check(self, rank: int, message: bytes) -> bytes:
        if message[:1] == ERROR:
            raise UserError(message[1:].decode())
        return message[1:]

    def _death(self, rank: int) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._members[rank - 1].wait(PATIENCE)
        code = self._members[rank - 1].returncode
        how = (
            f"was killed by {signal.Signals(-code).name}"
            if code is not None and code < 0
            else f"ended with code {code}"
        )
        return (
            f"process {rank + 1} of {self.size} {how} (was memory short?); the same command goes on from what is on "
            "disk, with fewer processes if need be (processes)"
        )


class Member:
    """The first process, as one of the others sees it (``world.Link``)."""

    def __init__(self, size: int, pipe: Connection):
        self.size, self.pipe = size, pipe

    def gather(self, own: bytes) -> list[bytes]:
        """See ``Link``."""
        self.say(VALUE + own)
        return [self.hear() for _ in range(self.size)]

    def first(self, own: bytes) -> bytes:
        """See ``Link``."""
        return self.hear()

    def check(self) -> None:
        """See ``Link``: a thread of this process watches over the first."""

    def at(self, place: str) -> None:
        """See ``Crew``."""

    def hear(self) -> bytes:
        """What the first process says; Dismissed or Left when that was all."""
        try:
            message = self.pipe.recv_bytes()
        except (EOFError, OSError):
            raise Left from None
        if message[:1] == END:
            raise Dismissed
        return message[1:]

    def say(self, message: bytes) -> None:
        """Tell the first process."""
        try:
            self.pipe.send_bytes(message)
        except OSError:
            raise Left from None


def begin() -> None:
    """What the others do: hear what the work is, and do it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rank, size, pipe, life = map(int, sys.argv[2:6])
    threading.Thread(target=end_with, args=(life,), daemon=True).start()
    import torch  # takes seconds, in which the first process may end

    silence()  # the first one shows how far the work is
    link = Member(size, Connection(pipe))
    try:
        work, arguments = pickle.loads(link.hear())  # from the process that started this one
        torch.set_num_threads(1)
        work(World(rank, size, link), *arguments)
    except Dismissed:
        return
    except Left:
        sys.exit(1)
    except UserError as error:
        last_words(link, str(error))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = " ".join(f"{type(error).__name__}: {error}".split())
        last_words(link, f"process {rank + 1} of {size}: {what} ({place.filename}, line {place.lineno})")


def last_words(link: Member, text: str) -> None:
    """Tell the first process what went wrong, and end."""
    with suppress(Left):
        link.say(ERROR + text.encode())
    sys.exit(1)


def end_with(life: int) -> None:
    """End when the first process has ended: at once, or where SIGTERM is handled, as after that."""
    with suppress(OSError):
        os.read(life, 1)  # nothing is ever written: this returns when the other end is closed
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
    os._exit(1)
