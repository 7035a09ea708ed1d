"""``astrolabe report``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path


def arguments(parser: ArgumentParser) -> None:
    """See ``commands``."""
    parser.add_argument("run", type=Path, help="the run's folder")


def run(args: Namespace, rest: Sequence[str]) -> None:
    """Write the page and print where it is."""
    from astrolabe.report.page import write_report
    from astrolabe.runs import RunFolder

    print(write_report(RunFolder(args.run)))
