"""``astrolabe runs``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

COLOURS = {"running": "cyan", "finished": "green", "guard": "yellow", "failed": "red", "unreadable": "red"}


def arguments(parser: ArgumentParser) -> None:
    """See ``commands``."""
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs"), help="the folder to look in (default: runs)"
    )


def run(args: Namespace, rest: Sequence[str]) -> None:
    """A row a run: below its name the recipe, below its beginning the version and commit that made it."""
    from astrolabe.runs.listing import summaries
    from astrolabe.runtime.files import place

    found = summaries(place(args.folder))
    if not found:
        print(f"no runs in {args.folder}")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(
        Column("run", overflow="fold", ratio=3), Column("steps", justify="right"), Column("state"),
        Column("result", overflow="fold", ratio=4), Column("begun, with"), box=None, padding=(0, 2, 0, 0), expand=True,
    )  # fmt: skip
    for row in found:
        colour = COLOURS.get(row.state, "default")
        table.add_row(
            f"[bold]{escape(row.name)}[/]\n[dim]{escape(row.recipe)}[/]", row.steps, f"[{colour}]{row.state}[/]",
            escape(row.result), f"{row.begun}\n[dim]{escape(row.code)}[/]",
        )  # fmt: skip
    Console(highlight=False).print(table)
