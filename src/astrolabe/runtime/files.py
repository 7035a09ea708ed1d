"""Files that are whole or absent, and folders that one process works in at a time."""

from __future__ import annotations

import fcntl
import os
import pwd
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from astrolabe.runtime.errors import NotPermitted, UserError

GLANCES, GLANCE = (
    3,
    0.05,
)  # looks at a lock, seconds between: a process that asks whether it is held has it for an instant


def place(path: Path | str) -> Path:
    """The path that a person wrote, ``~`` being their home; UserError for a user without a home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: no user of that name has a home folder here; write the path out") from None


def exists(path: Path) -> bool:
    """Whether something lies at ``path``. UserError when that cannot be known: a folder above it is closed to us."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise refusal(path, error) from None
    return True


def refusal(path: Path | str, error: OSError) -> UserError:
    """What to tell when the system refuses a path. What may not be read is not absent: it says whose it is."""
    if not isinstance(error, PermissionError):
        return UserError(f"{path}: cannot be read ({error.strerror or error})")
    path = Path(path).absolute()
    closed = (folder for folder in reversed(path.parents) if not os.access(folder, os.X_OK, effective_ids=True))
    barrier = next(closed, path)
    about = barrier.stat() if os.access(barrier.parent, os.X_OK, effective_ids=True) else None
    whose = f" belongs to {_user(about.st_uid)} (mode {stat.S_IMODE(about.st_mode):04o})" if about else " is closed"
    return NotPermitted(
        f"{path}: permission denied: {barrier}{whose}, and this is {_user(os.geteuid())}; have it opened "
        f"(chmod a+rX {barrier}), or copy it"
    )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name beside it, then rename: a crash leaves the old or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError within is of ``path``: a full disk names no file, and a temporary name tells nobody anything."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def usual_mode(path: Path) -> Iterator[None]:
    """What is written to ``path`` within gets the mode that the umask gives any file: safetensors would keep it to its
    owner (0600), so that no other user could read a shared adapter or cache."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    yield
    path.chmod(mode)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` (made if needed) for this process; others wait."""
    with _lock(folder) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold ``folder`` (made if needed) for this process; UserError when another one holds it.

    The lock goes with the process, however it ends.
    """
    with _lock(folder) as lock:
        for attempt in range(GLANCES):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt + 1 == GLANCES:
                    raise UserError(
                        f"{folder}: another process is working in this run; wait for it, or name another folder"
                    ) from None
                time.sleep(GLANCE)
        yield


def held(folder: Path) -> bool:
    """Whether a process works in ``folder`` now."""
    try:
        with (folder / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it never was, or may not be read
        return False
    return False


@contextmanager
def _lock(folder: Path) -> Iterator[IO[str]]:
    """The lock file of a folder (made if needed), opened for reading: that is enough, whichever user made it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    if not path.exists():
        path.touch()
    with path.open() as lock:
        yield lock


def check_writable(folder: Path) -> None:
    """UserError when no file can be made in ``folder``: said before the work whose result goes there."""
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise UserError(f"{folder} cannot be written to; have it opened (chmod), or use a copy of it")


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest above it that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
