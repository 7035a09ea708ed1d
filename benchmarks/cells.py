"""``python -m benchmarks.cells``: what is trained, and through what: the four cells of the paper's Table 4a, on shapes.

    sequence  the whole video competes, is scored and is trained on; clip: a window of half its length, at its
              beginning or behind a frozen history
    full      the gradient flows through the clean context too; detached: the context is a constant

Every cell trains the embedded model from the same start on as many candidates, in processes of their own, and is judged
by the oracles on validation videos of the sequence's length. ``full`` lives here alone: the product detaches.
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
from typing import Any

import torch
from torch import Tensor

from astrolabe import flow
from astrolabe.evaluation.suites import MEASURES, Suite, run_suite
from astrolabe.experiment import TrainConfig
from astrolabe.models.base import Generator
from astrolabe.recipes.shapes import shapes
from astrolabe.rl import update as update_module
from astrolabe.rl.forward import Forward, PromptText
from astrolabe.rl.policies import Policies
from astrolabe.rollout.settings import RolloutSettings, WindowSettings
from astrolabe.runs.folder import RunFolder
from astrolabe.runs.opening import open_run
from astrolabe.runtime.arguments import Parser, one_of, run_program, whole
from astrolabe.runtime.tracking import read_metrics
from astrolabe.training import train
from astrolabe.types import Latents, Sigmas, Stretch
from benchmarks.measuring import GIVE_BACK, at_rest, peak_of_process, reset_peak
from benchmarks.provenance import write_result

RESULT = Path("benchmarks/results/cells.json")
SEQUENCE, CLIP = 24, 12  # latent frames
SEEDS, JUDGED = (0, 1, 2), (31, 32)
CELLS = ("sequence full", "sequence detached", "clip full", "clip detached")


class ThroughContext(Forward):
    """The learner sees a context of its own making, and the gradient flows through it."""

    def __init__(self, generator: Generator, policies: Policies, stretch: Stretch, text: PromptText, clean: Latents):
        super().__init__(generator, policies, stretch, text, clean)
        with torch.no_grad(), policies.using("behavior"):
            past = stretch.past(clean)
        own = clean[:, stretch.first : stretch.end]
        self.made: Any = generator._context(own, text.learner, past)  # type: ignore[attr-defined]

    def predict(self, noisy: Latents, sigma: Sigmas, chunks: slice) -> tuple[Latents, Tensor]:
        """See ``Forward``."""
        velocity = self.generator.velocity_in_context(noisy, sigma, self.text.learner, self.made, chunks)
        with torch.no_grad(), self.policies.using("behavior"):
            acting = self.generator.velocity_in_context(noisy, sigma, self.text.behavior, self.context, chunks)
        return flow.to_clean(noisy, velocity, sigma), flow.to_clean(noisy, acting, sigma)


def config(cell: str, seed: int, steps: int) -> TrainConfig:
    """The demo's recipe with the cell's window; everything else is the same in all cells."""
    base = shapes()
    window = WindowSettings(frames=SEQUENCE)
    if cell.startswith("clip"):
        window = WindowSettings(frames=CLIP, start="choices", choices=(0, SEQUENCE - CLIP), video_frames=SEQUENCE)
    return replace(
        base, seed=seed, steps=steps, window=window,
        rollout=RolloutSettings(prompts=4, group_size=8, micro_batch=8),
        algorithm=replace(base.algorithm, levels_per_sample=1),
        optimizer=replace(base.optimizer, minibatches=2, share=1.0, micro_batch=8),
        checkpoint_every=steps, sample_every=steps,
    )  # fmt: skip


def one(cell: str, seed: int, steps: int) -> dict[str, Any]:
    """Train and judge one cell."""
    if cell.endswith("full"):
        update_module.Forward = ThroughContext  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        out = train(config(cell, seed, steps), Path(folder) / "run")
        lines = read_metrics(out / "metrics.jsonl")
        _, generator, policies = open_run(RunFolder(out))
        suite = Suite("validation", JUDGED, SEQUENCE)
        with policies.using("learner"):
            aligned = run_suite(generator, suite, [], 28, windows=2)
        with policies.using(None):
            base = run_suite(generator, suite, [], 28, windows=2)
    seconds = [sum(v for k, v in line.items() if k.startswith("seconds/")) for line in lines]
    halves = [round(part.mean().item(), 4) for part in aligned.windows["joint"]]
    return {
        "cell": cell, "seed": seed, "seconds_per_step": round(sum(seconds) / len(seconds), 3),
        "update_seconds": round(sum(line["seconds/update"] for line in lines) / len(lines), 3),
        "base": {m: round(base.scores[m].mean().item(), 4) for m in MEASURES},
        "aligned": {m: round(aligned.scores[m].mean().item(), 4) for m in MEASURES},
        "aligned_joint_by_half": halves,
    }  # fmt: skip


def memory(cell: str) -> int:
    """Bytes at the peak of two steps of a cell, above what the libraries hold."""
    if cell.endswith("full"):
        update_module.Forward = ThroughContext  # type: ignore[misc]
    before = at_rest()
    reset_peak()
    with tempfile.TemporaryDirectory() as folder:
        train(config(cell, 0, 2), Path(folder) / "run")
        return peak_of_process() - before


def in_a_process(environment: dict[str, str], *words: str) -> Any:
    """The last line that this module prints with ``words``, as JSON."""
    child = subprocess.run([sys.executable, "-m", "benchmarks.cells", *words], env=os.environ | environment,
                           check=True, stdout=subprocess.PIPE, text=True)  # fmt: skip
    return json.loads(child.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """Every cell and seed, then the JSON."""
    parser = Parser(prog="python -m benchmarks.cells", description=__doc__)
    parser.add_argument("--steps", type=whole(1), default=30)
    parser.add_argument("--cell", type=one_of(CELLS), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=whole(0), help=argparse.SUPPRESS)
    args = parser.read(argv)
    if args.cell:
        print("\n" + json.dumps(memory(args.cell) if args.seed is None else one(args.cell, args.seed, args.steps)))
        return
    peaks = {cell: in_a_process(GIVE_BACK, "--cell", cell) for cell in CELLS}
    print(peaks, flush=True)
    rows = []
    for seed in SEEDS:
        for cell in CELLS:
            rows.append(in_a_process({}, "--steps", str(args.steps), "--cell", cell, "--seed", str(seed)))
            print(rows[-1], flush=True)
    table = {cell: {"peak_bytes": peaks[cell]} | mean([row for row in rows if row["cell"] == cell]) for cell in CELLS}
    what = {"steps": args.steps, "seeds": SEEDS, "sequence": SEQUENCE, "clip": CLIP}
    write_result(RESULT, " ".join(["python -m benchmarks.cells", *sys.argv[1:]]), what | {"cells": table, "runs": rows})


def mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One cell over its seeds."""
    lift = [row["aligned"]["joint"] - row["base"]["joint"] for row in rows]
    return {
        "seconds_per_step": round(sum(row["seconds_per_step"] for row in rows) / len(rows), 3),
        "update_seconds": round(sum(row["update_seconds"] for row in rows) / len(rows), 3),
        "joint_lift": round(sum(lift) / len(lift), 4),
        "joint_lift_by_seed": [round(value, 4) for value in lift],
    }


if __name__ == "__main__":
    run_program(main)
