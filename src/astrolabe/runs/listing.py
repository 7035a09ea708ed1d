"""Every run under a folder in a line or two, from what lies on the disk; no model is opened, and no run can stop it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from astrolabe.runs.folder import RunFolder
from astrolabe.runs.history import events
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import held

DEPTH = 3  # levels of folders in which runs are looked for
ENDS = 10  # steps at the beginning and at the end whose rewards are compared
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Summary:
    """What a table shows of a run, as text. ``state``: running, stopped (it can go on), failed, finished, guard (a
    guard stopped it), or unreadable."""

    name: str
    recipe: str
    steps: str
    state: str
    result: str
    begun: str
    code: str


def runs_under(folder: Path) -> Iterator[RunFolder]:
    """The runs in a folder and in folders of it, in the order of their names; what cannot be listed is passed over."""
    for place, inner, files in os.walk(folder):
        inner.sort()
        if "config.yaml" in files:
            yield RunFolder(Path(place))
            inner.clear()
        elif len(Path(place).relative_to(folder).parts) >= DEPTH:
            inner.clear()


def summaries(folder: Path) -> list[Summary]:
    """All runs under a folder; UserError when there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one with runs in it, as `astrolabe train --out` made them")
    return [summary(run, folder) for run in runs_under(folder)]


def summary(run: RunFolder, above: Path) -> Summary:
    """One run; what is wrong with it stands where its result would."""
    name = str(run.path.relative_to(above)) if run.path != above else str(run.path)
    try:
        cfg = yaml.safe_load(run.config_file.read_text(encoding="utf-8"))
        happened, lines = events(run.path), run.metrics()
        begun, state = run.begun, state_of(run, happened)
        done = lines[-1]["step"] + 1 if lines and state == "running" else run.done
        return Summary(
            name=name,
            recipe=str(begun.get("recipe") or cfg["model"]["name"]),
            steps=f"{done}/{cfg['steps']}",
            state=state,
            result=result_of(run, lines, happened if state == "failed" else []),
            begun=when(begun.get("time"), run.config_file),
            code=" ".join(filter(None, (str(begun.get("version", "")), str(begun.get("commit", ""))))),
        )
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        return Summary(name, "", "", UNREADABLE, why[:160], "", "")


def state_of(run: RunFolder, happened: list[dict[str, Any]]) -> str:
    """See ``Summary``."""
    if held(run.path):
        return "running"
    if run.finished:
        return "guard" if run.stopped_by() else "finished"
    return "failed" if happened and happened[-1].get("what") == "failed" else "stopped"


def result_of(run: RunFolder, lines: list[dict[str, Any]], happened: list[dict[str, Any]]) -> str:
    """Why it failed, how it did on held-out prompts, or else how its first reward went from its beginning to its
    end."""
    if happened and happened[-1].get("why"):
        return str(happened[-1]["why"])
    if (file := run.path / "evaluation.json").exists():
        joint = json.loads(file.read_text(encoding="utf-8"))["measures"]["joint"]
        return f"joint {joint['base']:.3f} -> {joint['aligned']:.3f}, held out"
    rewards = [name for name in (lines[0] if lines else {}) if name.startswith("reward/")]
    if not rewards:
        return ""
    values = [line[rewards[0]] for line in lines if isinstance(line.get(rewards[0]), float)]
    count = min(ENDS, len(values) // 2)
    ends = [sum(part) / count for part in (values[:count], values[-count:])] if count else values
    return f"{rewards[0].removeprefix('reward/')} " + " -> ".join(f"{end:.3g}" for end in ends)


def when(time: Any, file: Path) -> str:
    """A moment as this machine's clock shows it; without one, when the file was written."""
    moment = datetime.fromisoformat(time) if isinstance(time, str) else datetime.fromtimestamp(file.stat().st_mtime)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")
