"""How the checkpoints of a run are named, ``step_000040``, and which are there; known without opening one."""

from __future__ import annotations

import re
from pathlib import Path

FINISHED = re.compile(r"step_(\d{6,})")


def step_name(step: int) -> str:
    """What belongs to the state after ``step`` steps."""
    return f"step_{step:06d}"


def finished_steps(folder: Path) -> list[int]:
    """The steps that have a finished checkpoint in ``folder``, oldest first."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := FINISHED.fullmatch(name)))
