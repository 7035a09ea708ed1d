"""What was measured: one JSON line a run in ``benchmarks/results/evidence/``, a file for each cell.

A line counts for whatever cell has the digest that it bears: of what decides a run's results, and of the weights that
it began with. So cells that are the same run once, and lines of other settings or other weights are left aside.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from statistics import mean
from threading import Lock
from typing import Any

from astrolabe.evaluation.suites import MEASURES
from astrolabe.experiment import TrainConfig
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import write_whole
from astrolabe.runtime.settings import affects_of, leaves_of, shown
from astrolabe.shapes.model import SHIPPED
from astrolabe.shapes.settings import ShapesName
from benchmarks.evidence.cells import Cell, cells, tunings

RESULTS = Path("benchmarks/results/evidence")
Record = Mapping[str, Any]


@cache
def weights(base: ShapesName) -> str:
    """A hash of what a base is; empty where its files are not."""
    files = [SHIPPED / f"{base}.safetensors", SHIPPED / "codec.safetensors"]
    if not all(file.exists() for file in files):
        return ""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def decisive(cfg: TrainConfig) -> dict[str, str]:
    """What decides results and is not at its default, so that a setting that is newer than a run, and stands where the
    run stood without it, changes no digest."""
    leaves = [leaf for leaf in leaves_of(cfg) if not leaf.group and affects_of(leaf.info) == "results"]
    return {leaf.name: shown(leaf.value) for leaf in leaves if leaf.value != leaf.info.get_default()}


def digest(cell: Cell, base: ShapesName) -> str:
    """Tells the runs of a cell on a base from all others; its seeds apart."""
    said: dict[str, Any] = {"weights": weights(base), "base": base, "forward": cell.forward}
    said |= {"split": cell.split, "noises": cell.noises, "frames": cell.frames, "lean": cell.lean}
    said |= {"config": decisive(cell.on(base, 0)) if cell.config is not None else None}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


class Store:
    """The lines of a folder; those that are added are on the disk at once."""

    def __init__(self, folder: Path = RESULTS):
        self.folder, self.lock = folder, Lock()
        self.lines: dict[Path, list[Record]] = {file: read(file) for file in sorted(folder.glob("*.jsonl"))}

    @property
    def records(self) -> Iterator[Record]:
        """All, of today's cells or not."""
        return (record for lines in self.lines.values() for record in lines)

    def runs(self, cell: Cell, base: ShapesName) -> dict[int, Record]:
        """The runs of a cell, by training seed, that have all that is measured of it."""
        own, wanted = digest(cell, base), [part for part in ("long", "along") if getattr(cell, part)]
        found = (record for record in self.records if record["digest"] == own)
        return {record["seed"]: record for record in found if all(record[part] for part in wanted)}

    def add(self, record: Record) -> None:
        """Keep a run, in the place of an earlier one of the same base and seed."""
        file = self.folder / f"{slug(record['cell'])}.jsonl"
        key = ("base", "seed")
        with self.lock:
            others = [old for old in self.lines.get(file, []) if any(old[part] != record[part] for part in key)]
            self.lines[file] = sorted([*others, record], key=lambda line: [line[part] for part in key])
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(file, "".join(json.dumps(line) + "\n" for line in self.lines[file]))

    def chosen(self) -> dict[str, float]:
        """The settings that tuning chose, those whose runs are all there."""
        known, found = cells({}), {}
        for name, tuning in tunings().items():
            scores = {value: self.scores(known[f"t {name} {value:g}"]) for value in tuning.values}
            base = self.scores(known["t base"])
            if base and all(scores.values()):
                found[name] = tuning.choose({value: one for value, one in scores.items() if one}, base)
        return found

    def scores(self, cell: Cell) -> dict[str, float] | None:
        """Mean scores of a cell over scenes and all its seeds, on its first base; None while one is missing."""
        runs = self.runs(cell, cell.bases[0])
        if not runs.keys() >= set(cell.all_seeds):
            return None
        return {measure: mean(mean(runs[seed]["scores"][measure]) for seed in cell.all_seeds) for measure in MEASURES}


def read(file: Path) -> list[Record]:
    """The lines of a file. UserError for one that is no record."""
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert all(line.keys() >= {"cell", "base", "seed", "digest", "scores"} for line in lines)
    except (ValueError, AttributeError, AssertionError) as error:
        raise UserError(
            f"{file}: expected a run in every line; restore it (git checkout {file}), or delete it"
        ) from error
    return lines


def slug(name: str) -> str:
    """A cell's name as that of a file."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
