"""Base against aligned: the same held-out prompts, the same noise, paired intervals."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from astrolabe.assembly import process_count_for
from astrolabe.evaluation.choice import Choice, choose, outcomes
from astrolabe.evaluation.decomposition import decomposition
from astrolabe.evaluation.statistics import compare
from astrolabe.evaluation.suites import MEASURES, Measured, Suite, run_suite
from astrolabe.experiment import TrainConfig
from astrolabe.models.base import Generator
from astrolabe.rl.policies import Policies
from astrolabe.runs.adapter import RunAdapter, the_adapter_of
from astrolabe.runs.folder import RunFolder
from astrolabe.runs.opening import open_run
from astrolabe.runtime.checkpoint import save_tensors
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import check_writable, claimed, write_whole
from astrolabe.runtime.processes import one_thread
from astrolabe.runtime.processes import processes as several
from astrolabe.runtime.progress import progress
from astrolabe.runtime.world import ALONE, World
from astrolabe.shapes.settings import SHORTEST, ShapesSettings
from astrolabe.types import Frames

SEEDS = (1001, 1002, 1003, 1004, 1005, 1006)
LONG_SEEDS = (2001, 2002)
LONG = 2  # long videos are this many clips long
LONG_WINDOWS = 4
LONG_PAIRS = 3  # prompts whose long videos are kept for the report


@dataclass(frozen=True)
class Compared:
    """Base and aligned on clips; the clips that are shown, and their videos by the name they are saved under; both on
    long videos, where there are any."""

    base: Measured
    aligned: Measured
    shown: list[Choice]
    videos: dict[str, Frames]
    long: tuple[Measured, Measured] | None = None


def evaluate(
    source: RunFolder | RunAdapter,
    split: str = "test",
    seeds: tuple[int, ...] = SEEDS,
    long: bool = True,
    batch: int = 44,
    processes: Literal["auto"] | int = "auto",
) -> dict[str, Any]:
    """Compare a run's adapter with its base and write ``evaluation.json`` (and some videos) into the run; another
    split, and an adapter other than the finished one, get files of their own names. On the CPU ``processes`` share the
    videos; auto: as many as torch would use threads.

    Returns what was written: for every measure base, aligned, difference and 95 % interval over ``split``; the same by
    window for videos twice as long as the clips trained on.
    """
    began = time.monotonic()
    adapter = source if isinstance(source, RunAdapter) else the_adapter_of(source.path)
    folder = adapter.folder
    if not isinstance(folder.config().model, ShapesSettings):
        raise UserError(
            f"{folder.path} aligned {folder.config().model.name}: held-out prompts and oracles are those of the "
            "shapes world; compare its videos with `astrolabe generate`, with and without --adapter"
        )
    with claimed(folder.path):  # what would be refused at the end is refused now
        check_writable(folder.path)
    cfg = folder.config()
    suite, far = suites_of(cfg, split, seeds, long)
    count = process_count_for(cfg.model, processes, math.ceil(len(suite) / batch))
    with (
        one_thread(cfg.light),
        several(count, follow, adapter, suite, far, batch) as world,
    ):
        found = compared(world, adapter, suite, far, batch)
    base, aligned = found.base, found.aligned
    changes = outcomes(base.scores, aligned.scores)
    result: dict[str, Any] = {
        "split": split,
        "adapter": str(adapter),
        "seeds": list(seeds),
        "videos": len(suite),
        "frames": suite.frames,
        "measures": {m: asdict(compare(base.scores[m], aligned.scores[m])) for m in MEASURES},
        "decomposition": decomposition(base.scores, aligned.scores),
        "mended": int((changes > 0).sum()),
        "broken": int((changes < 0).sum()),
        "shown": [asdict(one) | {"prompt": suite.prompts(seeds[one.noise])[one.row]} for one in found.shown],
    }
    if far and found.long:
        before, after = found.long
        result["long"] = {
            "frames": far.frames,
            "videos": len(far),
            "seeds": list(far.seeds),
            "prompts": [far.prompts(far.seeds[0])[row] for row in long_rows(far)],
            "windows": [
                {m: asdict(compare(before.windows[m][w], after.windows[m][w])) for m in MEASURES}
                for w in range(LONG_WINDOWS)
            ],
        }
    result["seconds"] = time.monotonic() - began
    name = "-".join(["evaluation", *([split] if split != "test" else []), *([adapter.name] if adapter.name else [])])
    with claimed(folder.path):
        save_tensors(folder.path / f"{name}.safetensors", found.videos, {})
        write_json(folder.path / f"{name}.json", result)
    return result


def suites_of(cfg: TrainConfig, split: str, seeds: tuple[int, ...], long: bool) -> tuple[Suite, Suite | None]:
    """What is measured: clips as long as those trained on, and videos of twice the length."""
    suite = Suite(split, seeds, cfg.window.frames)
    if long and (window := 4 * (LONG * suite.frames - 1) // LONG_WINDOWS) < SHORTEST:
        raise UserError(
            f"this run trained on clips of {suite.frames} latent frames: a quarter of twice that is {window} video "
            f"frames, and the oracles need {SHORTEST}; leave the long videos out with --no-long"
        )
    return suite, Suite(split, LONG_SEEDS, LONG * cfg.window.frames) if long else None


def compared(world: World, adapter: RunAdapter, suite: Suite, far: Suite | None, batch: int) -> Compared:
    """Both suites, or the one there is, by all processes of a world."""
    _, generator, policies = open_run(adapter)
    base, aligned = both(generator, policies, suite, batch, world=world)
    shown = choose(base.scores, aligned.scores, suite.scenes)
    places = [(choice.row, choice.noise) for choice in shown]
    videos = {"base": base.videos(places), "aligned": aligned.videos(places)}
    if far is None:
        return Compared(base, aligned, shown, videos)
    long = both(generator, policies, far, batch, LONG_WINDOWS, world, keep=long_rows(far))
    places = [(row, 0) for row in long_rows(far)]
    for name, one in zip(("long_base", "long_aligned"), long, strict=True):
        videos[name] = one.videos(places)
    return Compared(base, aligned, shown, videos, long)


def follow(world: World, adapter: RunAdapter, suite: Suite, far: Suite | None, batch: int) -> None:
    """Measure as one of several processes, behind the first."""
    compared(world, adapter, suite, far, batch)


def long_rows(far: Suite) -> range:
    """The scenes whose long videos are shown: evenly spaced."""
    return range(0, len(far.scenes), max(len(far.scenes) // LONG_PAIRS, 1))[:LONG_PAIRS]


def both(
    generator: Generator, policies: Policies, suite: Suite, batch: int, windows: int = 1, world: World = ALONE,
    keep: range | None = None,
) -> tuple[Measured, Measured]:  # fmt: skip
    """The suite under the bare base and under the learner; all videos are kept, or those of some scenes."""
    measured = []
    for name, slot in (("base", None), ("aligned", "learner")):
        what = f"evaluating {name}, {suite.frames} latent frames"
        with progress(what, len(suite), "videos") as task, policies.using(slot), torch.no_grad():
            rows = range(len(suite.scenes)) if keep is None else keep
            measured.append(run_suite(generator, suite, rows, batch, windows, task.advance, world))
    return measured[0], measured[1]


def summarise(result: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The one-page answer: did the joint oracle rise, by what, and what did it cost."""
    quality = dict(result["measures"])
    joint, right, made = (quality.pop(name) for name in ("joint", "right", "made"))
    return {"metric": "joint", **joint, "seconds": round(seconds, 1), "videos": result["videos"],
            "seeds": result["seeds"], "split": result["split"], "right": right, "made": made,
            "decomposition": result["decomposition"], "quality": quality}  # fmt: skip


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write whole or not at all."""
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
