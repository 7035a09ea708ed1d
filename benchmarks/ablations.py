"""``python -m benchmarks.ablations``: what regularisation, rewards, losses, levels and rivals do, on the shapes model.

Every cell is a configuration, trained from several seeds on as many generated samples, and judged by the oracles on
held-out prompts. Where a reward is there to be hacked, the oracles are judges: logged, never trained on. Each run is a
process of its own whose result is kept in ``runs/ablations/COMMIT/``: what is interrupted goes on, ``--only`` runs some
cells, and the JSON is written from whatever is there.

    b regularisation   c which rewards   d adaptive weighting   e beta, levels, context   r rivals   s streaming
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from astrolabe.evaluation.suites import MEASURES, Suite, run_suite
from astrolabe.experiment import HARD, RewardSettings, TrainConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.recipes.shapes import shapes
from astrolabe.rewards.pixels import ANY_VIDEO
from astrolabe.rl.grpo import GRPOSettings
from astrolabe.rl.guards import GuardSettings, WatchSettings
from astrolabe.rl.nft import NFTSettings
from astrolabe.rl.policies import Policies
from astrolabe.rl.positive import PositiveSettings
from astrolabe.rl.regularisation import RegularisationSettings
from astrolabe.rl.reward_weighted import RewardWeightedSettings
from astrolabe.rollout.settings import RolloutSettings, WindowSettings
from astrolabe.runs import RunFolder, open_run
from astrolabe.runtime.config import diff, to_dict
from astrolabe.runtime.tracking import read_metrics
from astrolabe.shapes.model import CLIP_FRAMES
from astrolabe.train import train
from astrolabe.types import Video
from benchmarks.measuring import peak_of_process
from benchmarks.provenance import commit, write_result

RESULT = Path("benchmarks/results/ablations.json")
ALONG = ("step", "joint", "motion_energy", "pixel_saturation", "pixel_steadiness")
LOGGED = ("latents_rms", "reward/joint", "reward/motion_fit", "anchored", "watch/rate")
SEEDS, NOISES = (0, 1, 2, 3, 4), (3001, 3002, 3003, 3004)
# Of two-sided 95 %, by number of seeds.
STUDENT_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


def reward(name: Any, weight: float = 1.0, **fields: Any) -> RewardSettings:
    """One reward."""
    return RewardSettings(name=name, weight=weight, **fields)


JUDGES = tuple(reward(name, role="judge") for name in ("joint", "shape", "motion", "cleanliness"))
HACKABLE = (reward("pixel_saturation", role="primary"), reward("pixel_steadiness", 0.25), reward("pixel_motion", 0.25))
NFT = NFTSettings(beta=0.1, behavior_keep=0.5, levels_per_sample=1, common_noise=True)


def standard() -> TrainConfig:
    """The demo's recipe at a size that five seeds of every cell can be paid for."""
    base = shapes()
    return replace(
        base, steps=24, algorithm=NFT,
        rollout=RolloutSettings(prompts=4, group_size=8, micro_batch=8),
        optimizer=replace(base.optimizer, minibatches=2, share=1.0, micro_batch=8),
        checkpoint_every=4, checkpoints_kept=6, sample_every=24,
    )  # fmt: skip


def hacking(regularisation: RegularisationSettings | None = None, **fields: Any) -> TrainConfig:
    """One reward that any brighter blob pleases, two that know a little, on all kinds of scenes."""
    base = rewarded(*HACKABLE, **fields)
    return replace(base, regularisation=regularisation or RegularisationSettings())


def pull(samples: Any, strength: float = 0.004, **fields: Any) -> RegularisationSettings:
    """Regularisation."""
    return RegularisationSettings(samples=samples, strength=strength, max_age=5, **fields)


def rewarded(*rewards: RewardSettings, **fields: Any) -> TrainConfig:
    """Trained on these rewards, on all kinds of scenes and at twice the rate: a proxy is to be served as well as it
    can be. What is not among the rewards judges."""
    base = standard()
    known = {one.name for one in rewards}
    judges = tuple(judge for judge in JUDGES if judge.name not in known)
    faster = replace(base.optimizer, lr=2 * base.optimizer.lr)
    return replace(base, prompts="train", rewards=(*rewards, *judges), optimizer=faster, **fields)


def algorithm(settings: Any) -> TrainConfig:
    """The standard run under another algorithm."""
    return replace(standard(), algorithm=settings)


def slower(settings: Any) -> TrainConfig:
    """Another algorithm at a quarter of the rate, which was chosen for NFT."""
    cfg = algorithm(settings)
    return replace(cfg, optimizer=replace(cfg.optimizer, lr=cfg.optimizer.lr / 4))


def windows(settings: WindowSettings) -> TrainConfig:
    """The standard run on other windows."""
    return replace(standard(), window=settings)


GUARDS = WatchSettings(guards=(
    GuardSettings(watch="motion_energy", below=0.6, steps=2, action="slow"),
    GuardSettings(watch="saturation", above=1.5, steps=2, action="slow"),
    GuardSettings(watch="joint", drop=0.15, steps=2, action="stop"),
))  # fmt: skip
CLOSE_GUARD = WatchSettings(guards=(GuardSettings(watch="saturation", above=1.2, steps=2, action="stop"),))
POSITIVE = PositiveSettings(beta=0.1, behavior_keep=0.5, common_noise=True)
WEIGHTED = RewardWeightedSettings(behavior_keep=0.5, common_noise=True)
BLOB, STILL = reward("pixel_saturation"), reward("pixel_steadiness")
KNOWING = (reward("shape_fit"), reward("motion_fit"))
CELLS: dict[str, TrainConfig] = {
    "standard": standard(),
    "b none": hacking(),
    "b uniform weak": hacking(pull("uniform", 0.001, reference="fixed")),
    "b uniform strong": hacking(pull("uniform", 0.004, reference="fixed")),
    "b selective fixed": hacking(pull("selective", reference="fixed", share=0.2)),
    "b selective moving": hacking(pull("selective", share=0.2)),
    "b selective moving, descending": hacking(pull("selective", share=0.2, order="descending")),
    "b random moving": hacking(pull("random", share=0.2)),
    "b random fixed": hacking(pull("random", reference="fixed", share=0.2)),
    "b uniform moving": hacking(pull("uniform")),
    "c saturation": rewarded(BLOB),
    "c steadiness": rewarded(STILL),
    "c shape_fit": rewarded(KNOWING[0]),
    "c motion_fit": rewarded(KNOWING[1]),
    "c saturation + steadiness": rewarded(BLOB, STILL),
    "c shape_fit + motion_fit": rewarded(*KNOWING),
    "c all": rewarded(BLOB, STILL, *KNOWING),
    "c all, saturation anchored": rewarded(
        reward("pixel_saturation", role="primary"), STILL, *KNOWING, regularisation=pull("selective", share=0.2)),
    "c saturation, guarded": rewarded(BLOB, watch=GUARDS),
    "c steadiness, guarded": rewarded(STILL, watch=GUARDS),
    "c saturation, guarded closely": rewarded(BLOB, watch=CLOSE_GUARD),
    "d adaptive": algorithm(replace(NFT, weighting="adaptive")),
    "e beta 0.3": algorithm(replace(NFT, beta=0.3)),
    "e beta 1": algorithm(replace(NFT, beta=1.0)),
    "e unwarped": algorithm(replace(NFT, levels="unwarped")),
    "e uniform levels": algorithm(replace(NFT, levels="uniform")),
    "e noisy context": algorithm(replace(NFT, context="noisy")),
    "r positive": algorithm(POSITIVE),
    "r reward_weighted": algorithm(WEIGHTED),
    "r grpo": algorithm(GRPOSettings(behavior_keep=0.0)),
    "r positive, sharper": algorithm(replace(POSITIVE, a_max=1.0)),
    "r positive, slower": slower(POSITIVE),
    "r reward_weighted, slower": slower(WEIGHTED),
    "r grpo, slower": slower(GRPOSettings(behavior_keep=0.0)),
    "s short clips": windows(WindowSettings(frames=CLIP_FRAMES)),
    "s streaming": windows(WindowSettings(frames=CLIP_FRAMES, start="random", video_frames=4 * CLIP_FRAMES)),
}  # fmt: skip


def proxies(videos: Video) -> dict[str, float]:
    """What the pixels say, mean over videos."""
    return {name: reward(videos, [""] * len(videos)).mean().item() for name, reward in ANY_VIDEO.items()}


def glimpse(generator: WanGenerator, policies: Policies, suite: Suite, out: Path, step: int) -> dict[str, float]:
    """What a checkpoint is worth on held-out prompts, a few videos of it; step 0 is the base."""
    if step:
        tensors, _ = RunFolder(out).checkpoints.load(step)
        own = {key.removeprefix("learner/"): value for key, value in tensors.items() if key.startswith("learner/")}
        policies.load("learner", own)
    with policies.using("learner" if step else None), torch.no_grad():
        found = run_suite(generator, suite, range(len(suite.scenes)), 22)
    scores = {measure: found.scores[measure].mean().item() for measure in MEASURES}
    return {"step": step} | scores | proxies(found.videos)


def one(cell: str, seed: int, out: Path) -> dict[str, Any]:
    """Train and judge one run."""
    cfg = replace(CELLS[cell], seed=seed)
    shutil.rmtree(out, ignore_errors=True)  # what was interrupted begins anew: its time and memory count
    train(cfg, out)
    lines, seconds, peak = read_metrics(out / "metrics.jsonl"), RunFolder(out).seconds_trained(), peak_of_process()
    _, generator, policies = open_run(RunFolder(out))
    long = cell.startswith("s ")
    frames, parts = (4 * CLIP_FRAMES, 4) if long else (CLIP_FRAMES, 1)
    suite, glance = Suite("test", NOISES, frames), Suite("test", NOISES[:1], frames)
    practised = torch.tensor([scene.motion in HARD or scene.shape in HARD for scene in suite.scenes])
    judged: dict[str, Any] = {}
    for name, slot in (("base", None), ("aligned", "learner")):
        if name == "base" and seed != SEEDS[0]:
            continue  # it would be the same
        with policies.using(slot), torch.no_grad():
            found = run_suite(generator, suite, range(len(suite.scenes)), 22, parts)
        judged[name] = {measure: found.scores[measure].mean().item() for measure in MEASURES}
        judged[name]["joint_practised"] = found.scores["joint"][practised].mean().item()
        judged[name] |= proxies(found.videos)
        if long:
            judged[name]["joint_by_window"] = [part.mean().item() for part in found.windows["joint"]]
    watched = (0, *RunFolder(out).checkpoints.steps()) if cell.startswith(("standard", "b ", "r ")) else ()
    along = [glimpse(generator, policies, glance, out, step) for step in watched]
    return {
        "cell": cell, "seed": seed, "commit": commit(), **judged,
        "along": along, "seconds": round(seconds, 1), "peak_bytes": peak,
        "samples": len(lines) * cfg.rollout.prompts * cfg.rollout.group_size,
        "by_step": {key: [line.get(key) for line in lines] for key in lines[0]
                    if not key.startswith("seconds/") and key != "step"},
    }  # fmt: skip


def place_of(folder: Path, cell: str) -> Path:
    """Where a cell's runs lie: another configuration under the same name lies elsewhere."""
    digest = hashlib.sha256(json.dumps(to_dict(CELLS[cell]), sort_keys=True).encode()).hexdigest()
    return folder / f"{cell.replace(' ', '_')}-{digest[:8]}"


def run(folder: Path, cell: str, seed: int) -> bool:
    """One run in a process of its own, on one thread, unless its result is there; whether there is one now."""
    place = place_of(folder, cell) / str(seed)
    if (place / "result.json").exists():
        return True
    words = [sys.executable, "-m", "benchmarks.ablations", "--run", cell, str(seed), str(place)]
    done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, check=False)
    print(f"{cell}, seed {seed}: {'failed' if done.returncode else 'done'}", flush=True)
    return not done.returncode


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds and its 95 % interval (Student's t)."""
    middle = mean(values)
    half = STUDENT_T[len(values)] * stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    ends = None if half != half else [round(middle - half, 4), round(middle + half, 4)]
    return {"mean": round(middle, 4), "ci95": ends, "by_seed": [round(value, 4) for value in values]}


def shortened(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run what the plots draw: proxies and oracles at its checkpoints, and some of what it logged."""
    along = {key: [point[key] for point in row["along"]] for key in ALONG if row["along"]}
    logged = {key: values for key, values in row["by_step"].items() if key in LOGGED}
    return {key: row[key] for key in ("seed", "seconds", "peak_bytes")} | {
        "joint_by_window": digits(row["aligned"].get("joint_by_window", [])),
        "along": {key: digits(values) for key, values in along.items()},
        "by_step": {key: digits(values) for key, values in logged.items()},
    }


def digits(values: Sequence[float | None]) -> list[float | None]:
    """Four of each."""
    return [None if value is None else float(f"{value:.4g}") for value in values]


def summary(cell: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One cell over its seeds."""
    measures = [key for key, value in rows[0]["aligned"].items() if isinstance(value, float)]
    return {
        "name": cell, "difference": diff(CELLS["standard"], CELLS[cell]), "seeds": [row["seed"] for row in rows],
        "commits": sorted({row["commit"] for row in rows}),
        "samples": mean(row["samples"] for row in rows), "seconds": round(mean(row["seconds"] for row in rows), 1),
        "peak_bytes": max(row["peak_bytes"] for row in rows),
        "base": {measure: round(rows[0]["base"][measure], 4) for measure in measures} if "base" in rows[0] else {},
        "scores": {measure: interval([row["aligned"][measure] for row in rows]) for measure in measures},
        "command": f"python -m benchmarks.ablations --only {cell!r}",
        "runs": [shortened(row) for row in rows],
    }  # fmt: skip


def main() -> None:
    """Run what is missing, then write what is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations", description=__doc__)
    parser.add_argument("--only", nargs="+", default=list(CELLS), help="names of cells, or their first letters")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at the same time, a thread each")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if len(args.seeds) > max(STUDENT_T):
        parser.error(f"at most {max(STUDENT_T)} seeds")
    if args.run:
        cell, seed, place = args.run[0], int(args.run[1]), Path(args.run[2])
        result = one(cell, seed, place / "run")
        (place / "result.json").write_text(json.dumps(result), encoding="utf-8")
        return
    folder = Path("runs/ablations") / commit().replace(" ", "-")
    wanted = [cell for cell in CELLS if cell in args.only or cell[0] in args.only]
    with ThreadPoolExecutor(args.workers) as pool:
        tried = [(cell, seed) for seed in args.seeds for cell in wanted]
        there = list(pool.map(lambda pair: run(folder, *pair), tried))
    failed = [f"{cell}, seed {seed}" for (cell, seed), well in zip(tried, there, strict=True) if not well]
    cells = []
    for cell in CELLS:
        found = sorted(place_of(folder, cell).glob("*/result.json"), key=lambda path: int(path.parent.name))
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in found]
        if rows:
            cells.append(summary(cell, rows))
    write_result(RESULT, "make ablations", {"steps": standard().steps, "noise_seeds": NOISES, "cells": cells,
                                             "failed": failed})  # fmt: skip
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
