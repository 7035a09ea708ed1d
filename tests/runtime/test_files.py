"""What the system refuses is told as it is: absent, or there and closed; and what is written others may read."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from astrolabe.models.adapter_files import save_whole
from astrolabe.models.adapters import read_adapter
from astrolabe.models.hub import find_file
from astrolabe.models.text_cache import TextCache
from astrolabe.runtime.checkpoint import CheckpointStore, load_tensors, save_tensors
from astrolabe.runtime.errors import NotPermitted, UserError
from astrolabe.runtime.files import check_writable, claimed, exists, refusal, write_whole
from astrolabe.runtime.tensorfile import open_tensors

NOBODY = 65534


@contextmanager
def as_somebody_else() -> Iterator[None]:
    """Root may read anything, so it becomes nobody; everybody else is kept out by the mode of a file already."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that others may look into (pytest's own is closed to them)."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    for path in (made, *made.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(made)


def closed(path: Path) -> Path:
    """The file or folder, without any rights."""
    path.chmod(0)
    return path


def test_a_file_that_may_not_be_read_is_not_called_absent(folder: Path) -> None:
    tensors = {"blocks.0.ffn.0.lora_A.weight": torch.ones(1, 2), "blocks.0.ffn.0.lora_B.weight": torch.ones(2, 1)}
    save_tensors(folder / "model.safetensors", tensors, {})
    torch.save(tensors, folder / "model.pt")
    for name in ("model.safetensors", "model.pt"):
        path = closed(folder / name)
        for read in (open_tensors, load_tensors, read_adapter):
            with as_somebody_else(), pytest.raises(NotPermitted, match=rf"{path}: permission denied: .*\(mode 0000\)"):
                read(path)
    with pytest.raises(UserError, match="No such file"):
        open_tensors(folder / "absent.pt")


def test_what_lies_in_a_closed_folder_is_not_called_absent(folder: Path) -> None:
    inside = folder / "shut" / "model.pt"
    inside.parent.mkdir()
    inside.touch()
    assert exists(inside) and not exists(folder / "absent") and not exists(inside / "below a file")
    closed(inside.parent)
    with as_somebody_else():
        for ask in (lambda: exists(inside), lambda: find_file(str(inside), "owner/name", "model.pt")):
            with pytest.raises(NotPermitted, match=rf"permission denied: {inside.parent} belongs to .*chmod a\+rX"):
                ask()


def test_a_text_cache_and_a_checkpoint_that_are_closed_are_not_called_damaged(folder: Path) -> None:
    cache = TextCache.create(folder / "text", "e" * 64, 3)
    cache.store("a cat", torch.ones(2, 3))
    closed(cache.path("a cat").parent)
    with as_somebody_else(), pytest.raises(NotPermitted):
        cache.check(["a cat"])
    closed(folder / "text" / "encoder.json")
    with as_somebody_else(), pytest.raises(NotPermitted):
        TextCache.open(folder / "text")
    store = CheckpointStore(folder / "run")
    for file in ("state.json", "state.safetensors"):
        closed(store.save(3, {"w": torch.ones(2)}, {}) / file)
        with as_somebody_else(), pytest.raises(NotPermitted) as caught:
            store.load(3)
        assert "remove" not in str(caught.value)


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_what_is_written_has_the_mode_that_the_umask_gives(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        save_tensors(tmp_path / "a.safetensors", {"w": torch.ones(2)}, {})
        save_whole({"w": torch.ones(2)}, tmp_path / "b.safetensors")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in sorted(tmp_path.iterdir())] == [mode, mode]


def test_a_folder_that_another_user_held_can_be_held(folder: Path) -> None:
    with claimed(folder):
        pass
    (folder / ".lock").chmod(0o444)
    with as_somebody_else(), claimed(folder), pytest.raises(UserError, match="another process"), claimed(folder):
        pass


def test_other_refusals_say_what_the_system_said() -> None:
    assert "cannot be read (Is a directory)" in str(refusal("x", IsADirectoryError(21, "Is a directory")))


def test_a_full_disk_is_told_with_the_file_that_it_had_no_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(tmp_path / "page.html", "a page")
    assert caught.value.filename == str(tmp_path / "page.html") and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(folder: Path) -> None:
    check_writable(folder)
    folder.chmod(0o555)
    with as_somebody_else(), pytest.raises(UserError, match="cannot be written to"):
        check_writable(folder)
