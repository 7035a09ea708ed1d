"""Processes that work together: what goes wrong in one ends the command in one line, and nobody stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from astrolabe.runtime.errors import UserError
from astrolabe.runtime.processes import one_thread, processes
from astrolabe.runtime.world import World

ROOT = Path(__file__).parents[2]


def doubles(world: World, base: int) -> None:
    """Works along for ever."""
    while True:
        world.gather((os.getpid(), base + world.rank, torch.get_num_threads()))


def refuses(world: World) -> None:
    world.gather(0)
    raise UserError("this cannot be had; take that")


def breaks(world: World) -> None:
    world.gather(0)
    [][1]


def refuses_at_once(world: World) -> None:
    raise UserError("this cannot be had; take that")


def dies_at_once(world: World) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_killed(world: World) -> None:
    world.gather(0)
    os.kill(os.getpid(), signal.SIGKILL)


def is_busy(world: World) -> None:
    """Hears nothing for a long time."""
    world.gather((os.getpid(), 0, 0))
    time.sleep(300)


def leaves_early(world: World) -> None:
    world.gather(0)


def alive(pid: int) -> bool:
    """Whether a process runs (a dead one that nobody has asked about does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def test_several_processes_of_one_thread_each_work_as_one_and_end_with_the_scope():
    before = torch.get_num_threads()
    with processes(3, doubles, 40) as world:
        found = world.gather((os.getpid(), 40 + world.rank, torch.get_num_threads()))
        assert [number for _, number, _ in found] == [40, 41, 42] and {threads for *_, threads in found} == {1}
        pids = [pid for pid, *_ in found[1:]]
        assert all(map(alive, pids)) and len({os.getpid(), *pids}) == 3
    assert not any(map(alive, pids)) and torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (refuses, "^this cannot be had; take that$"),
        (breaks, r"^process 2 of 2: IndexError: list index out of range \(.*test_processes.py, line \d+\)$"),
        (is_killed, "^process 2 of 2 was killed by SIGKILL"),
        (leaves_early, "^process 2 of 2 ended with code 0"),
    ],
)
def test_what_goes_wrong_in_one_process_is_one_line_in_the_first(work: Any, said: str) -> None:
    with pytest.raises(UserError, match=said), processes(2, work) as world:
        for _ in range(2):
            world.gather(0)


@pytest.mark.parametrize(
    ("work", "said"), [(refuses_at_once, "^this cannot be had; take that$"), (dies_at_once, "killed by SIGKILL")]
)
def test_a_process_that_ends_while_the_first_works_alone_is_noticed(work: Any, said: str) -> None:
    end = time.monotonic() + 60
    with pytest.raises(UserError, match=said), processes(2, work) as world:
        while time.monotonic() < end:
            world.check()
            time.sleep(0.02)


@pytest.mark.parametrize("how", [RuntimeError, KeyboardInterrupt])
def test_whatever_leaves_the_scope_takes_the_others_with_it(how: type[BaseException]):
    with pytest.raises(how), processes(2, doubles, 0) as world:
        pid = world.gather((0, 0, 0))[1][0]
        raise how
    assert not alive(pid)


def test_signals_reach_the_first_process_alone():
    with processes(2, doubles, 0) as world:
        pid = world.gather((0, 0, 0))[1][0]
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        assert os.getpgid(pid) != os.getpgid(0)
        assert world.gather((0, 0, 0))[1][0] == pid


def test_no_process_outlives_a_first_one_that_is_killed():
    code = (
        "import time\n"
        "from tests.runtime.test_processes import is_busy\n"
        "from astrolabe.runtime.processes import processes\n"
        "with processes(2, is_busy) as world:\n"
        "    print(world.gather((0, 0, 0))[1][0], flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["src", "."])}
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    assert first.stdout is not None
    pid = int(first.stdout.readline())
    assert alive(pid)
    first.kill()
    first.wait()
    first.stdout.close()
    assert gone(pid)


def test_modules_that_lie_about_in_the_folder_are_not_taken_for_the_real_ones(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    with processes(2, doubles, 0) as world:
        assert len(world.gather((0, 0, 0))) == 2


def test_one_thread_is_one_thread_while_it_is_wanted():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with one_thread(False):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
