"""Processes that torchrun starts train one run: the same bytes as one process, and one end for all of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from astrolabe.cli import main
from astrolabe.commands.train import check_shared
from astrolabe.recipes.shapes import shapes_tiny
from astrolabe.runs.folder import RunFolder
from astrolabe.runtime.config import override, parse_overrides, save_yaml
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.tracking import read_metrics
from astrolabe.runtime.world import World
from astrolabe.training import train
from tests.e2e.test_processes import PROMPTS, made, streaming, told

ASTROLABE = ("-m", "astrolabe")


def torchrun(size: int, *words: str, program: Sequence[str] = ASTROLABE, restarts: int = 0) -> subprocess.Popen[str]:
    """A program with these words, in so many processes that torchrun starts."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    return subprocess.Popen(
        [*command, "--max-restarts", str(restarts), *program, *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Its exit code, and the lines that were ours."""
    _, error = process.communicate(timeout=240)
    return process.returncode, [line for line in error.splitlines() if line.startswith("astrolabe: ")]


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun has started, in the order of their ranks."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks: dict[int, int] = {}
    for pid in map(int, found):
        variables = dict(pair.partition("=")[::2] for pair in Path(f"/proc/{pid}/environ").read_text().split("\0"))
        if "RANK" in variables:
            ranks[int(variables["RANK"])] = pid
    return [ranks[rank] for rank in sorted(ranks)]


def saved(process: subprocess.Popen[str], folder: Path, step: int = 1) -> None:
    """Wait for a checkpoint."""
    end = time.monotonic() + 240
    while not (folder / "checkpoints" / f"step_{step:06d}").exists() and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_two_processes_of_torchrun_leave_the_bytes_of_one_along_streams_and_scripts(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    cfg = streaming(tmp_path / "prompts.txt")
    save_yaml(cfg, tmp_path / "run.yaml")
    together = torchrun(2, "train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "together"))
    train(cfg, tmp_path / "alone")
    assert ended(together) == (0, [])
    assert told(tmp_path / "together") == told(tmp_path / "alone") and len(told(tmp_path / "alone")) == 3
    assert made(tmp_path / "together") == made(tmp_path / "alone") and len(made(tmp_path / "alone")) >= 4


def test_a_killed_process_is_named_and_torchrun_goes_on_from_the_last_checkpoint_by_itself(tmp_path: Path) -> None:
    """The first one, which writes and which the others follow; tests/runtime/test_launched.py kills another."""
    words = ["train", "shapes_tiny", "--steps", "4", "--checkpoint_every", "1", "--out"]
    process = torchrun(2, *words, str(tmp_path / "run"), restarts=1)
    saved(process, tmp_path / "run")
    os.kill(workers(process)[0], signal.SIGKILL)
    code, said = ended(process)
    assert code == 0 and len(said) == 1 and "process 1 of 2, last seen in step " in said[0], said
    main([*words, str(tmp_path / "whole")])
    assert made(tmp_path / "run") == made(tmp_path / "whole")
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == list(range(4))


def test_a_signal_to_torchrun_leaves_a_checkpoint_and_one_line(tmp_path: Path) -> None:
    words = ["train", "shapes_tiny", "--steps", "999", "--checkpoint_every", "1", "--out", str(tmp_path / "run")]
    process = torchrun(2, *words)
    saved(process, tmp_path / "run")
    os.kill(process.pid, signal.SIGTERM)
    code, said = ended(process)
    assert code and len(said) == 1 and "stopped " in said[0] and "the same command" in said[0], said
    done = len(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert RunFolder(tmp_path / "run").steps[-1] == done


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--processes", "2"], "processes=2 asks for more of each"),
        (["--pool.backend", "ray"], "each would start a pool"),
        (["--rollout.micro_batch", "2"], "a step has 4 candidates in 2 batches to share: start at most 2"),
    ],
)
def test_steps_that_processes_cannot_share_are_refused(words: list[str], said: str) -> None:
    class Three:
        size = 3

    cfg = override(shapes_tiny(), parse_overrides(["--rollout.micro_batch", "1", *words]))
    with pytest.raises(UserError, match=said):
        check_shared(cfg, cast(World, Three))


def test_a_mistake_is_said_once_and_ends_all(tmp_path: Path) -> None:
    code, said = ended(torchrun(2, "train", "shapes_tiny", "--lora.rank", "0", "--out", str(tmp_path / "run")))
    assert code and len(said) == 1 and "lora.rank" in said[0] and not (tmp_path / "run").exists(), said


def test_a_folder_that_is_another_runs_is_refused_by_the_first_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("")
    code, said = ended(torchrun(2, "train", "shapes_tiny", "--out", str(tmp_path / "run")))
    assert code and len(said) == 1 and "exists and is no run" in said[0]


def test_processes_of_different_configurations_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import os\nfrom dataclasses import replace\nfrom astrolabe.recipes.shapes import shapes_tiny\n"
        "def recipe():\n    return replace(shapes_tiny(), seed=int(os.environ['RANK']))\n"
    )
    words = ["train", f"{tmp_path / 'own.py'}:recipe", "--trust-code", "--out", str(tmp_path / "run")]
    code, said = ended(torchrun(2, *words))
    assert code and len(said) == 1 and "process 2 of 2 has another configuration than the first" in said[0], said


def test_nothing_of_this_needs_more_than_one_machine(tmp_path: Path) -> None:
    """Two agents of torchrun, as on two machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
    words = ["-m", "astrolabe", "train", "shapes_tiny", "--out", str(tmp_path / "run")]
    environment: dict[str, Any] = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    agents = [
        subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--node-rank", str(node), *common, *words],
                         env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for node in (0, 1)
    ]  # fmt: skip
    assert [ended(agent) for agent in agents] == [(0, [])] * 2
    assert made(tmp_path / "run") == made(train(shapes_tiny(), tmp_path / "alone"))
