"""Several runs of one base beside each other: the same held-out prompts, the same noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from astrolabe.assembly import process_count_for
from astrolabe.evaluation.decomposition import CONDITIONS, passes
from astrolabe.evaluation.statistics import compare
from astrolabe.evaluation.suites import MEASURES, Measured, Suite, run_suite
from astrolabe.runs.adapter import RunAdapter, the_adapter_of
from astrolabe.runs.folder import RunFolder
from astrolabe.runs.opening import open_run
from astrolabe.runtime.processes import one_thread, processes
from astrolabe.runtime.progress import progress
from astrolabe.runtime.world import World
from astrolabe.types import Frames

SHOWN = 6
RULE = "the first prompts that the base got right, one of each colour at most"


def abreast(
    runs: Mapping[str, RunFolder], seeds: tuple[int, ...], batch: int = 44
) -> tuple[dict[str, Any], dict[str, Frames]]:
    """Judge the base and every finished run on clips of the test prompts.

    Returns what is to be told (for every run, how each measure compares with the base's, paired; which videos are shown
    and which conditions each met) and the shown videos by policy, the base's as ``base``.
    """
    adapters = [the_adapter_of(folder.path) for folder in runs.values()]
    cfg = adapters[0].folder.config()
    suite = Suite("test", seeds, cfg.window.frames)
    count = process_count_for(cfg.model, "auto", math.ceil(len(suite) / batch))
    with one_thread(cfg.light), processes(count, follow, adapters, suite, batch) as world:
        measured = dict(zip(("base", *runs), judged(world, adapters, suite, batch), strict=True))
        places = first_right(measured["base"].scores["right"], [scene.colour for scene in suite.scenes])
        videos = {name: one.videos(places) for name, one in measured.items()}
    base = measured["base"]
    told = {
        "split": suite.split,
        "seeds": list(seeds),
        "videos": len(suite),
        "runs": {name: {m: asdict(compare(base.scores[m], measured[name].scores[m])) for m in MEASURES}
                 for name in runs},
        "shown": [
            {"prompt": suite.prompts(seeds[noise])[row], "row": row, "noise": noise,
             "met": {name: conditions(one.scores, row, noise) for name, one in measured.items()}}
            for row, noise in places
        ],
    }  # fmt: skip
    return told, videos


def judged(world: World, adapters: Sequence[RunAdapter], suite: Suite, batch: int) -> list[Measured]:
    """The base of the first, and every learner, by all processes of a world."""
    found = []
    for number, adapter in enumerate(adapters):
        _, generator, policies = open_run(adapter)
        for slot in (None, "learner") if number == 0 else ("learner",):
            name = f"{adapter.folder.path.name}" if slot else "base"
            with progress(f"evaluating {name}", len(suite), "videos") as task, policies.using(slot), torch.no_grad():
                rows = range(len(suite.scenes))
                found.append(run_suite(generator, suite, rows, batch, advance=task.advance, world=world))
    return found


def follow(world: World, adapters: Sequence[RunAdapter], suite: Suite, batch: int) -> None:
    """Judge as one of several processes, behind the first; hand over what is shown."""
    base, *others = judged(world, adapters, suite, batch)
    places = first_right(base.scores["right"], [scene.colour for scene in suite.scenes])
    for one in (base, *others):
        one.videos(places)


def first_right(right: Tensor, colours: Sequence[str]) -> list[tuple[int, int]]:
    """SHOWN places at most in ``right`` [scenes, noises], by RULE."""
    places: dict[str, tuple[int, int]] = {}
    for noise in range(right.shape[1]):
        for row, colour in enumerate(colours):
            if right[row, noise] > 0.5 and colour not in places:
                places[colour] = (row, noise)
    return list(places.values())[:SHOWN]


def conditions(scores: Mapping[str, Tensor], row: int, noise: int) -> dict[str, bool]:
    """Which of CONDITIONS a video met."""
    met = passes(scores).unflatten(1, scores["joint"].shape)[:, row, noise].bool().tolist()
    return dict(zip(CONDITIONS, met, strict=True))
