"""``python -m benchmarks.evidence``: run what docs/evidence_plan.md asks for and is not there yet.

Every run is a process of its own on one thread, two at a time on two cores; its line is on the disk when it ends, so
that the same command goes on where it was stopped. First what is tuned, then seed by seed: whenever it stops, all cells
have about as many runs. ``python -m benchmarks.evidence.page`` then writes docs/evidence.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from astrolabe.runtime.arguments import Parser, run_program, whole
from astrolabe.runtime.errors import nearest
from astrolabe.shapes.settings import ShapesName
from benchmarks.evidence.cells import Cell, cells, selected, tiny
from benchmarks.evidence.run import one_run
from benchmarks.evidence.store import RESULTS, Store, weights
from benchmarks.measuring import GIVE_BACK

USUAL = 180.0  # seconds of a run, before any was timed


class Job(NamedTuple):
    """A run."""

    cell: str
    base: ShapesName
    seed: int


def known_to(store: Store, small: bool) -> dict[str, Cell]:
    """All cells, as tuning has them by now."""
    found = cells(store.chosen())
    return {name: tiny(cell) for name, cell in found.items()} if small else found


def missing(store: Store, known: dict[str, Cell], names: Sequence[str], seeds: Sequence[int] | None) -> list[Job]:
    """The runs that are not there and could be, seed by seed, in the order of the cells."""
    found = []
    for name in names:
        own = known[name].all_seeds if known[name].tunes or seeds is None else seeds
        for base in (base for base in known[name].bases if weights(base)):
            there = store.runs(known[name], base)
            found += [Job(name, base, seed) for seed in own if seed not in there]
    return sorted(found, key=lambda job: job.seed)


def run(store: Store, known: dict[str, Cell], small: bool, until: float, job: Job) -> bool:
    """One run, unless a cell that is the same has brought its result meanwhile or time is over; whether all is well."""
    cell, began = known[job.cell], monotonic()
    if began > until or job.seed in store.runs(cell, job.base):
        return True
    with tempfile.TemporaryDirectory() as place:
        words = [sys.executable, "-m", "benchmarks.evidence", "--folder", str(store.folder), "--place", place]
        words += ["--run", *map(str, job), *["--tiny"] * small]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | (GIVE_BACK if cell.lean else {})
        failed = subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=False).returncode
        took = monotonic() - began
        print(f"{job.cell}, {job.base}, seed {job.seed}: {'failed' if failed else 'done'}, {took:.0f} s", flush=True)
        if not failed:
            record = json.loads((Path(place) / "record.json").read_text(encoding="utf-8"))
            store.add(record | {"wall_seconds": round(took, 1)})
    return not failed


def estimate(store: Store, jobs: Sequence[Job], workers: int) -> str:
    """How many runs there are, and about how long they take."""
    timed = {record["cell"]: record["wall_seconds"] for record in store.records}
    usual = sum(timed.values()) / len(timed) if timed else USUAL
    hours = sum(timed.get(job.cell, usual) for job in jobs) / workers / 3600
    return f"{len(jobs)} runs, about {hours:.1f} h, {workers} at a time"


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing."""
    parser = Parser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="CELL",
                        help="names of cells, letters of claims, or demo: base, demo and random")  # fmt: skip
    parser.add_argument("--seeds", type=whole(0, 99), nargs="+", help="training seeds; the plan's are the default")
    parser.add_argument("--workers", type=whole(1), default=os.cpu_count(), help="runs at the same time, a thread each")
    parser.add_argument("--minutes", type=whole(1), help="begin no run after so many")
    parser.add_argument("--list", action="store_true", help="say what is missing, and run nothing")
    parser.add_argument("--tiny", action="store_true", help="runs of seconds, to see that all cells work")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the results are (default: %(default)s)")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    args = parser.read(argv)
    if args.tiny and args.folder == RESULTS:
        parser.error("--tiny: its results are of no use among others; name a --folder for them")
    store, until = Store(args.folder), monotonic() + 60 * (args.minutes or float("inf"))
    known = known_to(store, args.tiny)
    if args.run:
        cell, base, seed = args.run
        record = one_run(cell, known[cell], base, int(seed), args.place / "run")
        (args.place / "record.json").write_text(json.dumps(record), encoding="utf-8")
        return
    for word in args.only or ():
        if not selected([word], known):
            parser.error(f"--only: no cell is called {word!r}{nearest(word, known)}")
    names, well = selected(args.only, known) if args.only else list(known), True
    jobs = missing(store, known, names, args.seeds)
    print(estimate(store, jobs, args.workers), flush=True)
    if args.list:
        print(*(f"{job.cell}, {job.base}, seed {job.seed}" for job in jobs), sep="\n")
        return
    for tunes in (True, False):  # what was chosen decides what comes after
        known, chosen = known_to(store, args.tiny), store.chosen()
        ready = [name for name in names if known[name].tunes == tunes
                 and (args.tiny or known[name].after in ("", *chosen))]  # fmt: skip
        if not tunes and (waiting := [name for name in names if not known[name].tunes and name not in ready]):
            print(f"waiting for what tunes them: {', '.join(waiting)}", flush=True)
        with ThreadPoolExecutor(args.workers) as pool:
            todo = missing(store, known, ready, args.seeds)
            well &= all(list(pool.map(partial(run, store, known, args.tiny, until), todo)))
    sys.exit(not well)


if __name__ == "__main__":
    run_program(main)
