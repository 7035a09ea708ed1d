"""``python -m benchmarks.neighbours``: what a step of the demo, and making videos, take beside another busy program.

Three ways to use two cores: one process of one thread, one process of two threads, two processes of one thread each.
Beside nothing, a plain Python loop, or a program that multiplies matrices on two OpenMP threads. The ways take turns
in every round, so that a slow minute of the machine falls on all of them. It needs two idle cores: the load of the
machine before each measurement is kept beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from astrolabe.data.scripts import parse_script
from astrolabe.generate import Job, generate
from astrolabe.recipes.shapes import shapes
from astrolabe.runtime.arguments import Parser, one_of, run_program, whole
from astrolabe.runtime.tracking import read_metrics
from astrolabe.shapes.settings import ShapesSettings
from astrolabe.training import train
from benchmarks.provenance import write_result

RESULT = Path("benchmarks/results/neighbours.json")
WAYS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}
NEIGHBOURS = {
    "nobody": None,
    "a Python loop": "while True: pass",
    "OpenMP on two threads": "import torch; torch.set_num_threads(2); a = torch.randn(1000, 1000)\nwhile True: a @ a",
}
STEPS, VIDEOS, LONG = 4, 8, 48  # steps (the first, which is slower, is left out); videos and their latent frames
ROUNDS = 3
WARM = 5.0  # seconds that a neighbour has to get going


def steps(processes: int) -> float:
    """Seconds of a step of the demo, median."""
    cfg = replace(shapes(), steps=STEPS, checkpoint_every=STEPS, sample_every=STEPS, processes=processes)
    with tempfile.TemporaryDirectory() as place:
        lines = read_metrics(train(cfg, Path(place) / "run") / "metrics.jsonl")[1:]
    return median(sum(value for key, value in line.items() if key.startswith("seconds/")) for line in lines)


def videos(processes: int) -> float:
    """Seconds of some videos, loading included."""
    scripts = [parse_script("a red circle moving left")] * VIDEOS
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        for _ in generate(Job(scripts, ShapesSettings(), Path(place), frames=LONG, processes=processes)):
            pass
        return time.monotonic() - began


def one(way: str) -> dict[str, float]:
    """Both, one way, in this process."""
    processes, threads = WAYS[way]
    # The package computes on one thread; what two would take is part of the question.
    kept = [patch(f"astrolabe.{name}.one_thread", lambda *_: nullcontext()) for name in ("training", "generate")]
    with kept[0] if threads > 1 else nullcontext(), kept[1] if threads > 1 else nullcontext():
        return {"step_seconds": round(steps(processes), 2), "videos_seconds": round(videos(processes), 2)}


@contextmanager
def beside(neighbour: str) -> Iterator[None]:
    """Another program runs, as busy as it can be."""
    code = NEIGHBOURS[neighbour]
    if code is None:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "2"})
    try:
        time.sleep(WARM)
        yield
    finally:
        process.kill()
        process.wait()


def apart(way: str, neighbour: str) -> dict[str, float]:
    """One way in a process of its own, beside a neighbour."""
    load = os.getloadavg()[0]
    words = [sys.executable, "-m", "benchmarks.neighbours", "--one", way]
    with beside(neighbour):
        done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": str(WAYS[way][1])}, stdout=subprocess.PIPE,
                              text=True, check=True)  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found | {"load_before": round(load, 2)}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every way beside every neighbour."""
    parser = Parser(prog="python -m benchmarks.neighbours", description=__doc__)
    parser.add_argument("--rounds", type=whole(1), default=ROUNDS, help=f"of every measurement (default: {ROUNDS})")
    parser.add_argument("--only", type=one_of(WAYS), action="append", metavar="WAY",
                        help=f"leave out the other ways (may be repeated): {'; '.join(WAYS)}")  # fmt: skip
    parser.add_argument("--one", type=one_of(WAYS), help=argparse.SUPPRESS)
    args = parser.read(argv)
    if args.one:
        print(json.dumps(one(args.one)))
        return
    found: list[dict[str, Any]] = []
    ways = args.only or list(WAYS)
    for neighbour in NEIGHBOURS:
        rounds = []
        for _ in range(args.rounds):
            rounds.append({way: apart(way, neighbour) for way in ways})
            print(neighbour, {way: one["step_seconds"] for way, one in rounds[-1].items()}, flush=True)
        for way in ways:
            every = {name: [each[way][name] for each in rounds] for name in rounds[0][way]}
            found.append({"beside": neighbour, "way": way, **{name: median(values) for name, values in every.items()},
                          "by_round": every})  # fmt: skip
    words = [f"--rounds {args.rounds}", *(f"--only '{way}'" for way in args.only or [])]
    command = f"python -m benchmarks.neighbours {' '.join(words)}"
    content = {"steps": STEPS, "videos": VIDEOS, "latent_frames": LONG, "rounds": args.rounds, "runs": found}
    write_result(RESULT, command, content)


if __name__ == "__main__":
    run_program(main)
