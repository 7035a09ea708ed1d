"""``python -m benchmarks.rivals``: seconds and memory of a step of NFT and of its rivals, each alone.

The runs of ``make ablations`` have company, which costs them time. Seconds are the median of several rounds, in each of
which the algorithms take turns, so that a slow minute of the machine falls on all of them. Memory is measured in a
process of its own, with freed blocks given back at once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from astrolabe.runtime.arguments import Parser, one_of, run_program
from astrolabe.runtime.tracking import read_metrics
from astrolabe.training import train
from benchmarks.ablation_cells import CELLS
from benchmarks.measuring import GIVE_BACK, peak_of_process
from benchmarks.provenance import write_result

RESULT = Path("benchmarks/results/rivals.json")
ALGORITHMS = {
    "standard": "standard",
    "positive": "r positive",
    "reward_weighted": "r reward_weighted",
    "grpo": "r grpo",
}
STEPS = 7  # the first, which is slower, is left out
ROUNDS = 3


def one_run(name: str) -> dict[str, Any]:
    """Some steps of one algorithm in this process: seconds, median over steps, and the peak."""
    cfg = replace(CELLS[ALGORITHMS[name]], steps=STEPS, checkpoint_every=STEPS, sample_every=STEPS)
    with tempfile.TemporaryDirectory() as place:
        lines = read_metrics(train(cfg, Path(place) / "run") / "metrics.jsonl")[1:]
    parts = {key: [line[key] for line in lines] for key in lines[0] if key.startswith("seconds/")}
    return {"step": round(median(map(sum, zip(*parts.values(), strict=True))), 3)} | {
        key.removeprefix("seconds/"): round(median(values), 3) for key, values in parts.items()
    } | {"peak_bytes": peak_of_process()}  # fmt: skip


def alone(name: str, **environment: str) -> dict[str, Any]:
    """The same in a process of its own, on one thread."""
    words = [sys.executable, "-m", "benchmarks.rivals", "--one", name]
    here = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(words, env=here, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure one after the other."""
    parser = Parser(prog="python -m benchmarks.rivals", description=__doc__)
    parser.add_argument("--one", type=one_of(ALGORITHMS), help=argparse.SUPPRESS)
    args = parser.read(argv)
    if args.one:
        print(json.dumps(one_run(args.one)))
        return
    rounds: list[dict[str, dict[str, Any]]] = []
    for _ in range(ROUNDS):
        rounds.append({name: alone(name) for name in ALGORITHMS})
        print({name: one["step"] for name, one in rounds[-1].items()}, flush=True)
    found = {
        name: {part: round(median(each[name][part] for each in rounds), 3) for part in rounds[0][name]}
        | {"steps_by_round": [each[name]["step"] for each in rounds]}
        | {"peak_bytes": alone(name, **GIVE_BACK)["peak_bytes"]}
        for name in ALGORITHMS
    }
    write_result(RESULT, "python -m benchmarks.rivals", {"steps": STEPS, "rounds": ROUNDS, "algorithms": found})


if __name__ == "__main__":
    run_program(main)
