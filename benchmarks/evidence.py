"""``python -m benchmarks.evidence``: three seeds of the demo and a random-reward control, on held-out prompts.

Every run is trained and evaluated as ``astrolabe demo`` does it, in its own process; the numbers go to
``benchmarks/results/demo_evidence.json`` with machine, commit, seeds and command.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astrolabe.recipes.shapes import shapes
from astrolabe.runtime.arguments import Parser, run_program
from astrolabe.runtime.config import to_dict
from astrolabe.shapes.model import SHIPPED
from benchmarks.provenance import commit, write_result

RESULT = Path("benchmarks/results/demo_evidence.json")
RUNS = {
    "seed 0": ("shapes", 0),
    "seed 1": ("shapes", 1),
    "seed 2": ("shapes", 2),
    "random rewards": ("shapes_random", 0),
}


def astrolabe(*arguments: str) -> None:
    """Run one command of the package."""
    subprocess.run([sys.executable, "-m", "astrolabe", *arguments], check=True)


def measure(folder: Path, recipe: str, seed: int) -> dict[str, Any]:
    """Train (or go on) and evaluate one run."""
    began = time.monotonic()
    astrolabe("train", recipe, "--seed", str(seed), "--out", str(folder))
    astrolabe("evaluate", str(folder))
    result = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    windows = [{m: window[m] for m in ("joint",)} for window in result["long"]["windows"]]
    return {
        "recipe": recipe,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "videos": result["videos"],
        "measures": result["measures"],
        "long_windows": windows,
    }


def measured() -> dict[str, Any]:
    """What the numbers belong to: the demo's recipe and the hashes of the embedded model's files."""
    card = json.loads((SHIPPED / "card.json").read_text(encoding="utf-8"))
    return {"recipe": to_dict(shapes()), "files": card["files"]}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every run that is missing and write the result."""
    Parser(prog="python -m benchmarks.evidence", description=__doc__).read(argv)
    folder = Path("runs/evidence") / commit()[:12]
    runs = {name: measure(folder / name.replace(" ", "-"), *what) for name, what in RUNS.items()}
    write_result(RESULT, "make evidence", {"measured": measured(), "runs": runs})
    for name, run in runs.items():
        joint = run["measures"]["joint"]
        low, high = joint["ci95"]
        change = f"{joint['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(f"{name:15} {joint['base']:.3f} -> {joint['aligned']:.3f}  {change}")


if __name__ == "__main__":
    run_program(main)
