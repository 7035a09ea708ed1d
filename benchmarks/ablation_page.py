"""``python -m benchmarks.ablation_page``: put the committed ablations into docs/evidence.md, tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astrolabe.runtime.arguments import Parser, run_program
from benchmarks.ablation_plots import IMAGES, draw
from benchmarks.ablation_tables import filled, read, tables
from benchmarks.rivals import RESULT as ALONE

PAGE = Path("docs/evidence.md")


def costs_alone() -> dict[str, Any]:
    """What a step of each algorithm costs, if that was measured."""
    return dict(json.loads(ALONE.read_text(encoding="utf-8"))["algorithms"]) if ALONE.exists() else {}


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what is there and put the tables into the page."""
    Parser(prog="python -m benchmarks.ablation_page", description=__doc__).read(argv)
    content, cells = read()
    alone = costs_alone()
    draw(content, cells, alone)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tables(content, cells, alone)), encoding="utf-8")
    print(f"{PAGE}, {IMAGES}/evidence-*.svg")


if __name__ == "__main__":
    run_program(main)
