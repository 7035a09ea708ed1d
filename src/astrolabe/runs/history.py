"""What happened to a run: ``history.jsonl``, a line for every session and its end.

    {"step": 0, "what": "begun", "time": ..., "recipe": ..., "command": ..., "where": ..., "version": ...,
     "commit": ..., "steps": 200, "init": "", "paths": {"prompts": "/home/me/prompts.txt"}}
    {"step": 200, "what": "finished", "time": ...}
    {"step": 200, "what": "resumed", ..., "changes": ["steps: 200 -> 300"]}

``step`` counts the steps done by then. ``paths`` has every setting that named a file or folder at the beginning: the
configuration keeps them as they were written, and from another folder they are found again by this.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from astrolabe import __version__
from astrolabe.runtime.files import place
from astrolabe.runtime.tracking import MetricsLog, read_metrics

HISTORY = "history.jsonl"
What = Literal["begun", "resumed", "finished", "stopped", "interrupted", "failed"]


@dataclass(frozen=True)
class Origin:
    """Where a session comes from: the recipe's name, and the words it was asked with."""

    recipe: str = ""
    command: str = ""

    def told(self) -> dict[str, Any]:
        """For the history: the origin with everything that a person would ask for later."""
        code = {"version": __version__, "commit": commit()}
        return {"recipe": self.recipe, "command": self.command, "where": str(Path.cwd()), **code}


def record(folder: Path, what: What, step: int, **more: Any) -> None:
    """Add an event."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    MetricsLog(folder / HISTORY).write(step, {"what": what, "time": now, **more})


def events(folder: Path) -> list[dict[str, Any]]:
    """All events in order; none of a run that an earlier version made."""
    file = folder / HISTORY
    return read_metrics(file) if file.exists() else []


def commit() -> str:
    """The commit of this package, ``+`` behind it when files differ; empty unless it lies in a checkout of its own."""
    source = Path(__file__).parents[1]

    def git(*words: str) -> str:
        # A package that was installed may lie inside another repository: it must be tracked there itself.
        return subprocess.run(
            ["git", "-C", str(source), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    with suppress(OSError, subprocess.SubprocessError):
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--untracked-files=no", ".")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    return ""


def located(text: str) -> str | None:
    """The absolute name of the file or folder that a setting names, if it is there.

    What follows a colon or an @ may belong to the name or not: ``mine.py:Class``, ``runs/mine@40``.
    """
    for sign in ("", ":", "@"):
        head, tail = (text.rpartition(sign)[0], text[text.rfind(sign) :]) if sign and sign in text else (text, "")
        path = os.path.abspath(place(head))
        if head and os.path.exists(path):
            return path + tail
    return None


def found_again(written: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """Of settings as they were ``written``, those that must be read otherwise from here: by name, absolute.

    ``known`` is where they were. What is at neither place keeps the place it had, to be reported where it is opened.
    """
    found = {}
    for name, there in known.items():
        here = located(written[name]) if name in written else there
        if here != there and (here is None or located(there)):
            found[name] = there
    return found
