"""``astrolabe demo``: train, evaluate, report, on the embedded model."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from astrolabe.runtime.progress import progress
from astrolabe.runtime.world import one_launched

if TYPE_CHECKING:
    from astrolabe.experiment import TrainConfig


def arguments(parser: ArgumentParser) -> None:
    """See ``commands``."""
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="the run's folder (default: runs/demo, or runs/spoiled)"
    )
    parser.add_argument(
        "--spoiled", action="store_true",
        help="show what goes wrong instead: train on one reward alone, then on several with anchoring and a guard, and "
        "lay both beside the base",
    )  # fmt: skip


def run(args: Namespace, rest: Sequence[str]) -> None:
    """A finished demo is kept, and the next one gets a folder of its own."""
    one_launched("demo")
    with progress("starting"):
        from astrolabe.experiment import resolved
        from astrolabe.recipes import RECIPES

    names = {"alone": "shapes_spoiled", "several": "shapes_guarded"} if args.spoiled else {"": "shapes"}
    cfgs = {part: (name, resolved(RECIPES[name]())) for part, name in names.items()}
    out = free(args.out or Path("runs/spoiled" if args.spoiled else "runs/demo"), cfgs)
    (spoiled if args.spoiled else aligned)(out, cfgs)


def free(out: Path, cfgs: dict[str, tuple[str, TrainConfig]]) -> Path:
    """The folder, or that with the first number behind it, that holds no finished demo and no other run."""
    from astrolabe.runs.folder import RunFolder

    number, path = 1, out
    while (path / "summary.json").exists() or any(RunFolder(path / part).holds_another(cfg)
                                                  for part, (_, cfg) in cfgs.items()):  # fmt: skip
        number += 1
        path = out.with_name(f"{out.name}-{number}")
    return path


def aligned(out: Path, cfgs: dict[str, tuple[str, TrainConfig]]) -> None:
    """Align, compare with the base, and show both."""
    import time

    from astrolabe.commands.evaluate import show
    from astrolabe.evaluation.paired import evaluate, summarise, write_json
    from astrolabe.report.page import write_report
    from astrolabe.report.results import one_line
    from astrolabe.runs.folder import RunFolder
    from astrolabe.runs.history import Origin
    from astrolabe.training import train

    folder, (name, cfg) = RunFolder(out), cfgs[""]
    began = time.monotonic() - folder.seconds_trained()  # by earlier sessions of this run
    print(f"aligning the embedded model in {folder.path} ...")
    train(cfg, folder.path, Origin(name, "astrolabe demo"))
    result = evaluate(folder)
    page = write_report(folder)
    summary = summarise(result, time.monotonic() - began)
    write_json(folder.path / "summary.json", summary)
    show(result)
    low, high = summary["ci95"]
    print(f"{one_line(result)}\n"
          f"joint {summary['base']:.3f} -> {summary['aligned']:.3f}: {summary['difference']:+.3f}, "
          f"95 % interval {low:+.3f} .. {high:+.3f}, in {summary['seconds']:.0f} s\n"
          f"look at  {page}\nnumbers  {folder.path / 'summary.json'}")  # fmt: skip


def spoiled(out: Path, cfgs: dict[str, tuple[str, TrainConfig]]) -> None:
    """Train on one reward alone, then on several; compare both with the base."""
    import time

    from astrolabe.evaluation.abreast import abreast
    from astrolabe.evaluation.paired import SEEDS, write_json
    from astrolabe.report.spoiled import three_lines, write_spoiled
    from astrolabe.runs.folder import RunFolder
    from astrolabe.runs.history import Origin
    from astrolabe.training import train

    runs = {part: RunFolder(out / part) for part in cfgs}
    began = time.monotonic() - sum(folder.seconds_trained() for folder in runs.values())
    for part, (name, cfg) in cfgs.items():
        print(f"training {name} in {runs[part].path} ...")
        train(cfg, runs[part].path, Origin(name, "astrolabe demo --spoiled"))
    told, videos = abreast(runs, SEEDS[:2])
    page = write_spoiled(out / "spoiled.html", told, videos, runs)
    write_json(out / "summary.json", told | {"seconds": round(time.monotonic() - began, 1)})
    print("\n".join(three_lines(told)))
    print(f"look at  {page}\nnumbers  {out / 'summary.json'}")
