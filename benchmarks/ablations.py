"""``python -m benchmarks.ablations``: what regularisation, rewards, losses, levels and rivals do, on the shapes model.

Every cell (``benchmarks/ablation_cells.py``) is trained from several seeds on as many generated samples and judged by
the oracles on held-out prompts. Each run is a process of its own; its numbers go into the JSON as soon as it ends, and
what is there under the same configuration is not run again: it goes on where it stopped, on whatever machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from threading import Lock
from typing import Any

import torch

from astrolabe.evaluation.suites import MEASURES, Measured, Suite, run_suite
from astrolabe.experiment import TrainConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rewards.pixels import ANY_VIDEO
from astrolabe.rl.policies import Policies
from astrolabe.runs.folder import RunFolder
from astrolabe.runs.opening import open_run
from astrolabe.runtime.arguments import Parser, run_program, whole
from astrolabe.runtime.config import diff
from astrolabe.runtime.errors import nearest
from astrolabe.runtime.settings import affects_of, leaves_of, shown
from astrolabe.runtime.tracking import read_metrics
from astrolabe.shapes.model import load_shapes_model
from astrolabe.shapes.settings import CLIP_FRAMES, HARD
from astrolabe.training import train
from astrolabe.types import Video
from benchmarks.ablation_cells import CELLS
from benchmarks.evidence import measured
from benchmarks.measuring import peak_of_process
from benchmarks.provenance import commit, processor, write_result

RESULT = Path("benchmarks/results/ablations.json")
LOGGED = ("latents_rms", "reward/joint", "reward/motion_fit", "anchored", "watch/saturation", "watch/rate")
SEEDS, NOISES = (0, 1, 2, 3, 4), (3001, 3002, 3003, 3004)
BATCH = 22  # videos that are judged at the same time
# Of two-sided 95 %, by number of seeds.
STUDENT_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
BASE = "base"


def is_long(cell: str) -> bool:
    """Whether a cell is about videos four times as long as the clip that is trained."""
    return cell.startswith("s ")


def proxies(videos: Video) -> dict[str, float]:
    """What the pixels say, mean over videos."""
    return {name: reward(videos, [""] * len(videos)).mean().item() for name, reward in ANY_VIDEO.items()}


def suite(long: bool, noises: Sequence[int] = NOISES) -> Suite:
    """Held-out scenes under some noises."""
    return Suite("test", tuple(noises), CLIP_FRAMES * (4 if long else 1))


@torch.no_grad()
def judged(generator: WanGenerator, long: bool) -> tuple[dict[str, Any], dict[str, float]]:
    """Every oracle's verdict on the policy in force, and what a glimpse at it sees (as ``glimpse``)."""
    over = suite(long)
    found = run_suite(generator, over, range(len(over.scenes)), BATCH, 4 if long else 1)
    practised = torch.tensor([scene.motion in HARD or scene.shape in HARD for scene in over.scenes])
    scores: dict[str, Any] = {measure: found.scores[measure].mean().item() for measure in MEASURES}
    scores["joint_practised"] = found.scores["joint"][practised].mean().item()
    if long:
        scores["joint_by_window"] = [part.mean().item() for part in found.windows["joint"]]
    first = seen(found)
    return scores | {name: first[name] for name in ANY_VIDEO}, first


def seen(found: Measured) -> dict[str, float]:
    """Oracles and pixels on the videos of the first noise."""
    return {measure: found.scores[measure][:, 0].mean().item() for measure in MEASURES} | proxies(found.videos)


@torch.no_grad()
def glimpse(generator: WanGenerator, policies: Policies, out: Path, step: int) -> dict[str, float]:
    """What a checkpoint is worth on held-out prompts, on a quarter of the videos."""
    tensors, _ = RunFolder(out).checkpoints.load(step)
    own = {key.removeprefix("learner/"): value for key, value in tensors.items() if key.startswith("learner/")}
    policies.load("learner", own)
    over = suite(False, NOISES[:1])
    with policies.using("learner"):
        return seen(run_suite(generator, over, range(len(over.scenes)), BATCH))


def base_run() -> dict[str, Any]:
    """The base, judged on videos of both lengths."""
    generator = load_shapes_model(torch.bfloat16)
    short, first = judged(generator, False)
    return {"short": digits(short), "first": digits(first), "long": digits(judged(generator, True)[0])}


def one_run(cell: str, seed: int, out: Path) -> dict[str, Any]:
    """Train and judge one run. ``along`` holds the steps 0 (the base, left out here) to the last, for what is drawn."""
    cfg = replace(CELLS[cell], seed=seed)
    train(cfg, out)
    lines, seconds, peak = read_metrics(out / "metrics.jsonl"), RunFolder(out).seconds_trained(), peak_of_process()
    _, generator, policies = open_run(RunFolder(out))
    with policies.using("learner"):
        scores, last = judged(generator, is_long(cell))
    along = []
    if cell.startswith(("standard", "b ", "r ")):
        before = [step for step in RunFolder(out).checkpoints.steps() if step < len(lines)]
        along = [{"step": step} | glimpse(generator, policies, out, step) for step in before]
        along.append({"step": len(lines)} | last)
    return {
        "seed": seed, "configuration": configuration(CELLS[cell]), "commit": commit(), "processor": processor(),
        "seconds": round(seconds, 1), "peak_bytes": peak,
        "samples": len(lines) * cfg.rollout.prompts * cfg.rollout.group_size,
        "scores": digits(scores),
        "along": [digits(point) for point in along],
        "by_step": digits({key: [line.get(key) for line in lines] for key in LOGGED if key in lines[0]}),
    }  # fmt: skip


def digits(values: Any) -> Any:
    """Four of each number."""
    if isinstance(values, Mapping):
        return {key: digits(value) for key, value in values.items()}
    if isinstance(values, list):
        return [digits(value) for value in values]
    return float(f"{values:.4g}") if isinstance(values, float) else values


def configuration(cfg: TrainConfig) -> str:
    """Tells one configuration from another: a cell whose configuration changes is run again.

    It is made of what decides results and is not at its default, so that a setting that is newer than a run, and stands
    where the run stood without it, is no change.
    """
    decides = [leaf for leaf in leaves_of(cfg) if not leaf.group and affects_of(leaf.info) == "results"]
    said = {leaf.name: shown(leaf.value) for leaf in decides if leaf.value != leaf.info.get_default()}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds and its 95 % interval (Student's t)."""
    middle = mean(values)
    half = STUDENT_T[len(values)] * stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    ends = None if half != half else [round(middle - half, 4), round(middle + half, 4)]
    return {"mean": round(middle, 4), "ci95": ends, "by_seed": [round(value, 4) for value in values]}


def summary(cell: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One cell over its seeds."""
    measures = [key for key, value in runs[0]["scores"].items() if isinstance(value, float)]
    return {
        "name": cell, "difference": diff(CELLS["standard"], CELLS[cell]), "seeds": [run["seed"] for run in runs],
        "samples": mean(run["samples"] for run in runs), "seconds": round(mean(run["seconds"] for run in runs), 1),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "scores": {measure: interval([run["scores"][measure] for run in runs]) for measure in measures},
        "command": f"python -m benchmarks.ablations --only {cell!r}",
        "runs": list(runs),
    }  # fmt: skip


def weights() -> dict[str, Any]:
    """Hashes of the embedded model's files."""
    return dict(measured()["files"])


class Store:
    """What the JSON holds of today's cells and model, and the file, written again after every run."""

    def __init__(self, path: Path):
        self.path, self.lock = path, Lock()
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if content.get("files") != weights():
            content = {}  # of another embedded model
        self.base: dict[str, Any] | None = content.get(BASE)
        known = {name: configuration(cfg) for name, cfg in CELLS.items()}
        runs = [(cell["name"], run) for cell in content.get("cells", []) for run in cell["runs"]]
        self.runs = {(name, run["seed"]): run for name, run in runs if run["configuration"] == known.get(name)}

    def has(self, cell: str, seed: int) -> bool:
        """Whether this was run."""
        return self.base is not None if cell == BASE else (cell, seed) in self.runs

    def add(self, cell: str, seed: int, result: dict[str, Any]) -> None:
        """Keep a result."""
        with self.lock:
            if cell == BASE:
                self.base = result
            else:
                self.runs[cell, seed] = result
            cells = [summary(name, [self.runs[key] for key in sorted(self.runs) if key[0] == name])
                     for name in CELLS if any(key[0] == name for key in self.runs)]  # fmt: skip
            steps = CELLS["standard"].steps
            content = {"steps": steps, "noise_seeds": NOISES, "files": weights(), BASE: self.base, "cells": cells}
            write_result(self.path, "make ablations", content)


def run(store: Store, cell: str, seed: int) -> bool:
    """One run in a process of its own, on one thread, unless its result is there; whether there is one now."""
    if store.has(cell, seed):
        return True
    with tempfile.TemporaryDirectory() as place:
        words = [sys.executable, "-m", "benchmarks.ablations", "--run", cell, str(seed), place]
        done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, check=False)
        print(f"{cell}, seed {seed}: {'failed' if done.returncode else 'done'}", flush=True)
        if not done.returncode:
            store.add(cell, seed, json.loads((Path(place) / "result.json").read_text(encoding="utf-8")))
    return not done.returncode


def cells_named(word: str) -> list[str]:
    """The cells that a word on the command line means: one by its name, or all with a first letter."""
    found = [cell for cell in CELLS if word in (cell, cell[0])]
    if not found:
        raise argparse.ArgumentTypeError(f"no cell is called {word!r}{nearest(word, CELLS)}")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing."""
    parser = Parser(prog="python -m benchmarks.ablations", description=__doc__)
    parser.add_argument("--only", type=cells_named, nargs="+", default=[list(CELLS)], metavar="CELL",
                        help="names of cells, or their first letters")  # fmt: skip
    parser.add_argument("--seeds", type=whole(0), nargs="+", default=SEEDS)
    parser.add_argument("--workers", type=whole(1), default=os.cpu_count(), help="runs at the same time, a thread each")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.read(argv)
    if len(args.seeds) > max(STUDENT_T) or len(set(args.seeds)) < len(args.seeds):
        parser.error(f"--seeds: expected at most {max(STUDENT_T)} seeds, each once")
    if args.run:
        cell, seed, place = args.run[0], int(args.run[1]), Path(args.run[2])
        result = base_run() if cell == BASE else one_run(cell, seed, place / "run")
        (place / "result.json").write_text(json.dumps(result), encoding="utf-8")
        return
    store = Store(RESULT)
    wanted = [cell for cell in CELLS if any(cell in cells for cells in args.only)]
    with ThreadPoolExecutor(args.workers) as pool:
        tried = [(BASE, 0), *((cell, seed) for seed in args.seeds for cell in wanted)]
        there = list(pool.map(lambda pair: run(store, *pair), tried))
    sys.exit(not all(there))


if __name__ == "__main__":
    run_program(main)
