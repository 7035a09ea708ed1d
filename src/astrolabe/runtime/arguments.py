"""Command lines of programs: what they do not know is refused in one line, and no half-written name is completed.

    parser = Parser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--workers", type=whole(1), default=2)
    args = parser.read(argv)

``run_program(main)`` makes a UserError the one line and exit code 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from astrolabe.runtime.errors import UserError, nearest
from astrolabe.runtime.files import place

INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors of one line."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.register("type", Path, place)  # the shell leaves the ~ in --out=~/x as it is

    def error(self, message: str) -> None:  # type: ignore[override]
        """UserError that says where help is."""
        raise UserError(f"{message}; `{self.prog} --help` shows what is accepted")

    def read(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """The arguments (None: the process's own); UserError with the nearest names for one that is unknown."""
        found, rest = self.parse_known_args(argv)
        if rest:
            self.refuse(rest[0])
        return found

    def refuse(self, word: str) -> None:
        """UserError for an unknown argument, with the nearest of those there are."""
        flags = [flag for action in self._actions if action.help != argparse.SUPPRESS for flag in action.option_strings]
        self.error(f"unknown argument {word!r}{nearest(word.partition('=')[0], flags)}")


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """The type of an argument that names one of these."""
    known = list(names)

    def parse(word: str) -> str:
        if word not in known:
            raise argparse.ArgumentTypeError(
                f"{word!r} is unknown{nearest(word, known)}; there are: {', '.join(known)}"
            )
        return word

    return parse


def whole(least: int, most: int | None = None, multiple_of: int = 1) -> Callable[[str], int]:
    """The type of an argument that is a whole number within bounds, both included."""
    wanted = f"a whole number from {least} to {most}" if most is not None else f"a whole number of at least {least}"
    wanted += f", a multiple of {multiple_of}" if multiple_of > 1 else ""

    def parse(word: str) -> int:
        try:
            number = int(word)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r}: expected {wanted}") from None
        if number < least or (most is not None and number > most) or number % multiple_of:
            raise argparse.ArgumentTypeError(f"{word}: expected {wanted}")
        return number

    return parse


def new_file(word: str) -> Path:
    """The type of an argument that names a file to be written hours later: its folder is there, or can be made."""
    path = Path(word)
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not word or path.is_dir() or not there.is_dir() or not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"{word!r} cannot be written: expected a file in a folder that can")
    return path


def run_program(main: Callable[[], None]) -> None:
    """Run ``main``; a UserError ends the process with one line and exit code 2, Ctrl-C with 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
