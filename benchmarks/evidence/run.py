"""One run: train a cell, judge it on scenes that it never saw, and say what both took."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor

from astrolabe import flow
from astrolabe.evaluation.suites import Suite, run_suite
from astrolabe.experiment import TrainConfig
from astrolabe.models.base import Generator
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rewards.pixels import saturation
from astrolabe.rl import update as update_module
from astrolabe.rl.forward import Forward, PromptText
from astrolabe.rl.policies import Policies
from astrolabe.runs.folder import RunFolder
from astrolabe.runs.opening import open_run
from astrolabe.runtime.device import torch_dtype
from astrolabe.runtime.errors import UserError
from astrolabe.shapes.model import load_shapes_model
from astrolabe.shapes.settings import LONGEST, ShapesName
from astrolabe.training import train
from astrolabe.types import Latents, Sigmas, Stretch, to_video
from benchmarks.evidence.cells import Cell
from benchmarks.evidence.store import digest
from benchmarks.measuring import at_rest, peak_of_process, reset_peak
from benchmarks.provenance import commit, machine

BATCH = 22  # videos that are judged at the same time
QUARTERS = 4
GLANCES = LONG_NOISES = 2  # noises of a scene along training, and of long videos
ALONG = ("joint", "right", "flicker")
LOGGED = ("latents_rms", "reward/", "watch/", "anchored", "old_gap")
NOISE, LONG_NOISE, TUNING_NOISE = 60_000, 80_000, 90_000  # seeds from here on are used nowhere else


class ThroughContext(Forward):
    """The learner sees a context of its own making, and the gradient flows through it: made anew for every level, whose
    part of the loss goes backward by itself."""

    def __init__(self, generator: Generator, policies: Policies, stretch: Stretch, text: PromptText, clean: Latents):
        super().__init__(generator, policies, stretch, text, clean)
        self.own = clean[:, stretch.first : stretch.end]

    def predict(self, noisy: Latents, sigma: Sigmas, chunks: slice) -> tuple[Latents, Tensor]:
        """See ``Forward``."""
        made: Any = self.generator._context(self.own, self.text.learner, self.past)  # type: ignore[attr-defined]
        velocity = self.generator.velocity_in_context(noisy, sigma, self.text.learner, made, chunks)
        with torch.no_grad(), self.policies.using("behavior"):
            acting = self.generator.velocity_in_context(noisy, sigma, self.text.behavior, self.context, chunks)
        return flow.to_clean(noisy, velocity, sigma), flow.to_clean(noisy, acting, sigma)


class DeadBehavior(Forward):
    """The loss compares the learner with itself: what a trainer does whose old adapter is never switched on."""

    def predict(self, noisy: Latents, sigma: Sigmas, chunks: slice) -> tuple[Latents, Tensor]:
        """See ``Forward``."""
        learner = self.learner(noisy, sigma, chunks)
        return learner, learner.detach()


FORWARDS = {"": Forward, "full": ThroughContext, "dead": DeadBehavior}


def noises(cell: Cell, seed: int, first: int = NOISE) -> tuple[int, ...]:
    """The noises of every scene that a training seed is judged on: its own, but that settings are tuned on the same."""
    count = cell.noises if first == NOISE else LONG_NOISES
    begin = TUNING_NOISE if cell.tunes else first + 100 * seed
    return tuple(range(begin, begin + count))


@torch.no_grad()
def judged(generator: WanGenerator, suite: Suite) -> dict[str, Tensor]:
    """Every measure [scenes, noises] of the policy in force, and saturation, which needs no prompt."""
    rows, parts = range(len(suite.scenes)), []
    for noise in suite.seeds:  # one by one, since all their videos are looked at
        found = run_suite(generator, Suite(suite.split, (noise,), suite.frames), rows, BATCH)
        shown = to_video(found.videos([(row, 0) for row in rows]))
        parts.append(found.scores | {"saturation": saturation(shown)[:, None]})
    return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}


@torch.no_grad()
def judged_long(generator: WanGenerator, cell: Cell, seed: int) -> dict[str, Any]:
    """Of long videos: joint and right as a whole [scenes], and of each quarter alone [quarters, scenes]."""
    suite = Suite(cell.split, noises(cell, seed, LONG_NOISE), LONGEST)
    found = run_suite(generator, suite, (), BATCH, QUARTERS)
    whole = {measure: digits(found.scores[measure].mean(1)) for measure in ("joint", "right")}
    return whole | {f"{measure} by quarter": digits(found.windows[measure].mean(2)) for measure in ("joint", "right")}


def looks(
    generator: WanGenerator, policies: Policies, cell: Cell, seed: int, folder: RunFolder
) -> list[dict[str, Any]]:  # fmt: skip
    """What the learner was worth at every checkpoint but the last, on the first of its noises; the slot holds what it
    held before when this is done."""
    suite, found, end = Suite(cell.split, noises(cell, seed)[:GLANCES], cell.frames), [], policies.copy("learner")
    for step in folder.checkpoints.steps()[:-1]:
        tensors, _ = folder.checkpoints.load(step)
        own = {key.removeprefix("learner/"): value for key, value in tensors.items() if key.startswith("learner/")}
        policies.load("learner", own)
        with policies.using("learner"):
            scores = judged(generator, suite)
        found.append({"step": step} | {measure: digits(scores[measure].mean(1)) for measure in ALONG})
    policies.load("learner", end)
    return found


def digits(values: Tensor) -> Any:
    """As JSON has them, to five decimals."""
    return values.double().round(decimals=5).tolist()


def outcomes(scores: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Of every scene, which of its noises came out right, as digits: what differs within a scene."""
    return {measure: ["".join(str(int(one)) for one in scene) for scene in scores[measure].tolist()]
            for measure in ("joint", "right")}  # fmt: skip


def trained(cfg: TrainConfig, cell: Cell, out: Path) -> dict[str, Any]:
    """Train; what that took, what was logged of every step, and why it ended early if it diverged."""
    update_module.Forward = FORWARDS[cell.forward]  # type: ignore[misc]
    before, diverged = at_rest(), ""
    reset_peak()
    began = process_time()
    try:
        train(cfg, out)
    except UserError as error:
        if not str(error).startswith("training diverged"):
            raise
        diverged = str(error)
    spent, peak, lines = process_time() - began, peak_of_process() - before, RunFolder(out).metrics()
    phases = [name for name in (lines or [{}])[0] if name.startswith("seconds/")]
    logged = [name for name in (lines or [{}])[0] if name.startswith(LOGGED)]
    return {
        "steps": len(lines), "samples": len(lines) * cfg.rollout.prompts * cfg.rollout.group_size,
        "cpu_seconds": round(spent, 1), "peak_bytes": peak, "diverged": diverged,
        "seconds": {name.removeprefix("seconds/"): round(sum(line[name] for line in lines), 1) for name in phases},
        "by_step": {name: digits(torch.tensor([line[name] for line in lines])) for name in logged},
    }  # fmt: skip


def one_run(name: str, cell: Cell, base: ShapesName, seed: int, out: Path) -> dict[str, Any]:
    """Train and judge one run; what diverged is judged at its last checkpoint."""
    suite = Suite(cell.split, noises(cell, seed), cell.frames)
    record: dict[str, Any] = {
        "cell": name, "base": base, "seed": seed, "digest": digest(cell, base), "commit": commit(),
        "machine": machine(), "command": f"python -m benchmarks.evidence --only {name!r} --seeds {seed}",
        "frames": cell.frames, "noises": len(suite.seeds),
    }  # fmt: skip
    acting: AbstractContextManager[None] = nullcontext()
    along: list[dict[str, Any]] = []
    if cell.config is None:
        generator = load_shapes_model(torch_dtype("bfloat16", "cpu"), base)
    else:
        record |= trained(cell.on(base, seed), cell, out)
        _, generator, policies = open_run(RunFolder(out))
        if cell.along:
            along = looks(generator, policies, cell, seed, RunFolder(out))
        acting = policies.using("learner")
    with acting:
        found = judged(generator, suite)
        last = {"step": record.get("steps", 0)} | {name: digits(found[name][:, :GLANCES].mean(1)) for name in ALONG}
        return record | {
            "scores": {measure: digits(values.mean(1)) for measure, values in found.items()},
            "outcomes": outcomes(found),
            "along": [*along, last] if cell.along else None,
            "long": judged_long(generator, cell, seed) if cell.long else None,
        }
