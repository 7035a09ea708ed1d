"""``astrolabe demo``: train, evaluate, report, on the embedded model."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from astrolabe.runtime.progress import progress
from astrolabe.runtime.world import one_launched


def arguments(parser: ArgumentParser) -> None:
    """See ``commands``."""
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="FOLDER", help="the run's folder (default: runs/demo)"
    )


def run(args: Namespace, rest: Sequence[str]) -> None:
    """A finished demo is kept, and the next one gets a folder of its own."""
    one_launched("demo")
    import time

    with progress("starting"):
        from astrolabe.commands.evaluate import show
        from astrolabe.evaluation.paired import evaluate, summarise, write_json
        from astrolabe.experiment import resolved
        from astrolabe.recipes import RECIPES
        from astrolabe.report.page import write_report
        from astrolabe.runs.folder import RunFolder
        from astrolabe.runs.history import Origin
        from astrolabe.training import train

    began, out = time.monotonic(), args.out
    cfg = resolved(RECIPES["shapes"]())
    number, folder = 1, RunFolder(out)
    while (folder.path / "summary.json").exists() or folder.holds_another(cfg):
        number += 1
        folder = RunFolder(out.with_name(f"{out.name}-{number}"))
    began -= folder.seconds_trained()  # by earlier sessions of this run
    print(f"aligning the embedded model in {folder.path} ...")
    train(cfg, folder.path, Origin("shapes", "astrolabe demo"))
    result = evaluate(folder)
    page = write_report(folder)
    summary = summarise(result, time.monotonic() - began)
    write_json(folder.path / "summary.json", summary)
    show(result)
    (low, high), videos = summary["ci95"], summary["videos"]
    before, after = (round(summary[who] * videos) for who in ("base", "aligned"))
    print(f"of {videos} videos, {before} were right and well made before, and {after} after")
    print(f"joint oracle: {summary['base']:.3f} -> {summary['aligned']:.3f}  "
          f"({summary['difference']:+.3f}, 95 % interval {low:+.3f} .. {high:+.3f}) in {summary['seconds']:.0f} s\n"
          f"look at  {page}\nnumbers  {folder.path / 'summary.json'}")  # fmt: skip
