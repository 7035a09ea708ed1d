"""``python -m benchmarks.pool``: the time of a step with a slow reward, inline and in a pool of one and of two workers.

The reward waits for a twentieth of a second a video and computes nothing, as one does whose model is on another device:
what is measured is how much of that waiting disappears behind the rollout, and the way to the workers and back.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from astrolabe.experiment import TrainConfig
from astrolabe.recipes.shapes import shapes
from astrolabe.rewards.settings import PoolSettings, RewardSettings, WorkerSettings
from astrolabe.runtime.arguments import Parser, run_program
from astrolabe.runtime.tracking import read_metrics
from astrolabe.training import train
from benchmarks.provenance import write_result

RESULT = Path("benchmarks/results/pool.json")
STEPS, SECONDS = 5, 0.05  # the first step, which is slower, is left out; the reward takes so long for a video


class Slow:
    """Waits, and judges by brightness."""

    name = "slow"

    def __call__(self, video: Tensor, prompts: Sequence[str]) -> Tensor:
        time.sleep(SECONDS * len(video))
        return video.mean((1, 2, 3, 4))


def configuration(workers: int) -> TrainConfig:
    """The demo's steps, judged by a slow reward; 0 workers are inline."""
    base = shapes()
    slow = RewardSettings(name="benchmarks.pool:Slow", worker=WorkerSettings(replicas=max(workers, 1)))
    pool = PoolSettings(backend="ray" if workers else "inline", threads=1)
    rollout = replace(
        base.rollout, micro_batch=3, side_by_side=None
    )  # four batches for the workers, while the next is made
    return replace(base, steps=STEPS, rollout=rollout, rewards=(slow,), pool=pool)


def measured(workers: int) -> dict[str, Any]:
    """Seconds of a step and of its parts, mean over steps."""
    with tempfile.TemporaryDirectory() as folder:
        lines = read_metrics(train(configuration(workers), Path(folder) / "run") / "metrics.jsonl")[1:]
    parts = {
        name.removeprefix("seconds/"): mean(line[name] for line in lines) for name in lines[0] if "seconds/" in name
    }
    return {
        "workers": workers, "seconds": round(sum(parts.values()), 2),
        "parts": {name: round(value, 2) for name, value in parts.items()},
        "reward": [line["reward/slow"] for line in lines],
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write what was found."""
    Parser(prog="python -m benchmarks.pool", description=__doc__).read(argv)
    torch.set_num_threads(1)
    rows = [measured(workers) for workers in (0, 1, 2)]
    for row in rows:
        print(row["workers"], "workers", row["seconds"], "s a step", row["parts"], flush=True)
    assert rows[0]["reward"] == rows[1]["reward"] == rows[2]["reward"], "a pool changes no score"
    rollout = configuration(0).rollout
    waiting = SECONDS * rollout.prompts * rollout.group_size
    write_result(RESULT, "python -m benchmarks.pool", {"waiting_seconds": waiting, "rows": rows})


if __name__ == "__main__":
    run_program(main)
