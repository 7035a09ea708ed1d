"""``astrolabe report``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from astrolabe.runtime.progress import progress


def arguments(parser: ArgumentParser) -> None:
    """See ``commands``."""
    parser.add_argument("run", type=Path, help="the run's folder; RUN@STEP and RUN@best name an adapter of it")


def run(args: Namespace, rest: Sequence[str]) -> None:
    """Write the page and print where it is."""
    from astrolabe.runs.adapter import split, the_adapter_of

    folder, which = split(args.run)
    adapter = None if which is None else the_adapter_of(args.run)
    with progress("starting"):
        from astrolabe.report.page import write_report

    print(write_report(folder, adapter))
