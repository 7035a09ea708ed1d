"""``astrolabe models``."""

from __future__ import annotations

import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from astrolabe.models.released import streaming, table
from astrolabe.shapes.settings import STREAMS


def arguments(parser: ArgumentParser) -> None:
    """It takes none."""


def run(args: Namespace, rest: Sequence[str]) -> None:
    """A few lines a model."""
    embedded = [
        {"name": name, "files": "embedded in the package", **streaming(stream), "note": "moving shapes, 64x64"}
        for name, stream in STREAMS.items()
    ]
    for row in [*embedded, *table()]:
        print(f"{row.pop('name')}")
        for name, value in row.items():
            if value:
                print(textwrap.fill(value, 100, initial_indent=f"    {name:9}", subsequent_indent=" " * 13))
