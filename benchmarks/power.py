"""``python -m benchmarks.power CELL [--against OTHER]``: what so many training seeds and noises would show.

From the runs of one cell on several seeds: how much its scores vary between training seeds, between scenes, and within
a scene. Two such cells that differ in nothing share their scenes and nothing else; with ``--against`` their real
differences are taken, which also share noises. ``--write`` puts the table into docs/evidence_plan.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from astrolabe.runtime.arguments import Parser, one_of, run_program
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import write_whole
from astrolabe.shapes.settings import ShapesName
from benchmarks.evidence.cells import ALL, Cell, cells
from benchmarks.evidence.page import PLAN, filled, table
from benchmarks.evidence.statistics import DETECTED, Components, Values, estimate, half_width, power
from benchmarks.evidence.store import RESULTS, Store

SEEDS, NOISES = (3, 5, 6, 8), (2, 4, 6, 12)


def outcomes(store: Store, cell: Cell, base: ShapesName, measure: str) -> dict[int, Values]:
    """Of every training seed that is there: [scenes, noises], 0 or 1."""
    return {
        seed: np.array([[float(one) for one in scene] for scene in run["outcomes"][measure]])
        for seed, run in store.runs(cell, base).items()
    }


def foreseen(values: Values, alone: bool) -> list[list[str]]:
    """Of outcomes [seeds, scenes, noises], or differences: half-width of the interval in points, and power to find what
    is to be found, by number of bases, seeds and noises. What is left of a seed on a scene has ``within / noises`` in
    it. Two cells that are alike (``alone``) have every variance twice, but that scenes are the same."""
    parts, within, (_, scenes, had) = estimate(values.mean(2)[None]).components, spread(values), values.shape
    times, rows = (2 if alone else 1), []
    for bases in (1, 2):
        for seeds in SEEDS:
            rows.append([str(bases), str(seeds)])
            for noises in NOISES:
                rest = max(parts.rest - within / had, 0.0) + within / noises
                pair = Components(times * parts.seed, 0.0 if alone else parts.scene, times * rest)
                error = pair.error(bases, seeds, scenes)
                rows[-1].append(f"±{100 * half_width(*error):.1f}, {power(*error):.0%}")
    return rows


def spread(values: Values) -> float:
    """Variance between the noises of a scene, mean over seeds and scenes."""
    return float(values.var(2, ddof=1).mean())


def main(argv: Sequence[str] | None = None) -> None:
    """Say it."""
    known: Mapping[str, Cell] = cells(Store().chosen())
    parser = Parser(prog="python -m benchmarks.power", description=__doc__)
    parser.add_argument("cell", type=one_of(known))
    parser.add_argument("--against", type=one_of(known), help="another cell, on the same seeds")
    parser.add_argument("--base", type=one_of(ALL), default="shapes")
    parser.add_argument("--measure", type=one_of(("joint", "right")), default="joint")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help=f"into {PLAN}")
    args = parser.read(argv)
    store = Store(args.folder)
    runs = [outcomes(store, known[name], args.base, args.measure) for name in (args.cell, args.against) if name]
    seeds = sorted(set.intersection(*(set(one) for one in runs)))
    if len(seeds) < 2:
        raise UserError(f"{args.cell} on {args.base}: {len(seeds)} seeds are there, at least 2 are needed: "
                        f"python -m benchmarks.evidence --only {args.cell!r}")  # fmt: skip
    values = np.array([runs[0][seed] - (runs[1][seed] if args.against else 0) for seed in seeds])
    parts, (_, scenes, had) = estimate(values.mean(2)[None]).components, values.shape
    what = f"{args.cell} against {args.against}" if args.against else args.cell
    said = (
        f"{what} on {args.base}, {args.measure}, {len(seeds)} seeds x {scenes} scenes x {had} noises: deviations "
        f"{parts.seed**0.5:.3f} (seeds), {parts.scene**0.5:.3f} (scenes), {spread(values) ** 0.5:.3f} (within a scene)"
    )
    head = ["bases", "seeds", *(f"{noises} noises" for noises in NOISES)]
    shown = f"{said}\n\n{table(head, foreseen(values, not args.against))}"
    print(f"{shown}\n\nHalf-width of the 95 % interval in points; power to find {100 * DETECTED:g}.")
    if args.write:
        write_whole(PLAN, filled(PLAN.read_text(encoding="utf-8"), {"power": shown}))


if __name__ == "__main__":
    run_program(main)
