"""``astrolabe models``."""

from __future__ import annotations

import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from astrolabe.models.released import table


def arguments(parser: ArgumentParser) -> None:
    """It takes none."""


def run(args: Namespace, rest: Sequence[str]) -> None:
    """A few lines a model."""
    for row in table():
        print(f"{row.pop('name')}")
        for name, value in row.items():
            if value:
                print(textwrap.fill(value, 100, initial_indent=f"    {name:9}", subsequent_indent=" " * 13))
