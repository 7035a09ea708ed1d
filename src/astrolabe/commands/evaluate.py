"""``astrolabe evaluate``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astrolabe.commands.choosing import RUN_HELP, processes_argument
from astrolabe.runtime.progress import progress
from astrolabe.runtime.world import one_launched


def arguments(parser: ArgumentParser) -> None:
    """See ``commands``."""
    parser.add_argument("run", type=Path, help=RUN_HELP)
    parser.add_argument(
        "--split", choices=("test", "validation"), default="test", help="held-out prompts (default: test)"
    )
    parser.add_argument("--no-long", action="store_true", help="leave out the videos of twice the length")
    processes_argument(parser)


def run(args: Namespace, rest: Sequence[str]) -> None:
    """Compare, write the result into the run, and show it."""
    one_launched("evaluate")
    from astrolabe.runs.adapter import the_adapter_of

    adapter = the_adapter_of(args.run)
    with progress("starting"):
        from astrolabe.evaluation.paired import evaluate

    show(evaluate(adapter, args.split, long=not args.no_long, processes=args.processes))


def show(result: dict[str, Any]) -> None:
    """The comparison as a table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    from astrolabe.evaluation.suites import ATTRIBUTES, MEASURES

    table = Table(title=f"{result['videos']} videos of split {result['split']}, {len(result['seeds'])} noise seeds")
    for heading in ("measure", "base", "aligned", "difference", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for measure in MEASURES:
        row = result["measures"][measure]
        low, high = row["ci95"]
        name = f"[bold]{measure}" if measure == "joint" else measure if measure not in ATTRIBUTES else f"  {measure}"
        table.add_row(name, f"{row['base']:.3f}", f"{row['aligned']:.3f}", f"{row['difference']:+.3f}",
                      f"{low:+.3f} .. {high:+.3f}")  # fmt: skip
    Console().print(table)
