"""The one error that the user can fix, and how the command line shows it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache


class UserError(Exception):
    """What came, what was expected, what to do: one line, shown without a traceback, exit code 2."""


class NotPermitted(UserError):
    """The file is there, as far as can be seen, but the system does not let this user read it."""


@contextmanager
def within(place: str) -> Iterator[None]:
    """A UserError in this block is one of ``place``, a file and a line of it, say."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{place}: {error}") from None


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """``"; did you mean a, b?"`` for the names closest to ``word``, or the empty string when none is close."""
    close = difflib.get_close_matches(word, list(known), n=count, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""


@cache
def remark(text: str) -> None:
    """What a user should know, though nothing is wrong: a line on standard error, however often it is found."""
    print(f"astrolabe: {text}", file=sys.stderr)
