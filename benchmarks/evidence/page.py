"""``python -m benchmarks.evidence.page``: docs/evidence.md from the runs that are there, by the rules of the plan.

Tables and verdicts stand between marks and are written anew; words around them are left alone. So are the tables of
cells and claims in docs/evidence_plan.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp, isfinite
from pathlib import Path
from statistics import mean

from astrolabe.experiment import TrainConfig
from astrolabe.runtime.arguments import Parser, run_program
from astrolabe.runtime.config import changes
from astrolabe.runtime.files import write_whole
from benchmarks.evidence.cells import Cell, cells, recipe, tunings
from benchmarks.evidence.claims import CLAIMS, Claim, Comparison
from benchmarks.evidence.statistics import LEVEL, Estimate, estimate
from benchmarks.evidence.store import Store

PAGE, PLAN = Path("docs/evidence.md"), Path("docs/evidence_plan.md")
MEASURES = ("joint", "right", "made", "colour", "shape", "motion", "vividness", "cleanliness", "smoothness", "flicker",
            "saturation")  # fmt: skip
Cells = Mapping[str, Cell]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def shown(comparison: Comparison, value: float) -> str:
    """A difference in points, or as a factor."""
    if not isfinite(value):
        return "?"
    return f"x{exp(value):.2f}" if comparison.factor else f"{100 * value:+.1f}"


def with_interval(comparison: Comparison, found: Estimate) -> str:
    """A mean and its interval."""
    low, high = found.interval()
    return f"{shown(comparison, found.mean)} [{shown(comparison, low)}, {shown(comparison, high)}]"


def row(comparison: Comparison, level: float | None, store: Store, known: Cells) -> list[str]:
    """A comparison, over all its bases and on each; one of a ``level`` decides its claim."""
    asked = f"{comparison.what}: {comparison.rule.says}"
    head = [f"{comparison.one} against {comparison.other}", f"**{asked}**" if level else asked]
    differences = comparison.differences(store, known)
    if not differences.size:
        return [*head, "", "", ", ".join(comparison.bases), "not run"]
    found, bases = estimate(differences), list[str](comparison.bases)
    if len(bases) > 1:
        parts = [with_interval(comparison, estimate(part[None])) for part in differences]
        bases = [f"{base} {part}" for base, part in zip(bases, parts, strict=True)]
    said: str = comparison.rule.verdict(found, level or LEVEL)
    if said == "undecided" and found.freedom:
        count = comparison.rule.seeds(found)
        said += f"; takes about {count} seeds" if count else "; more seeds alone would not decide it"
    seeds = " ".join(shown(comparison, value) for value in differences.mean((0, 2)))
    return [*head, with_interval(comparison, found), seeds, "<br>".join(bases), said]


def scores(claim: Claim, store: Store, known: Cells) -> str:
    """What the cells of a claim came to, mean over scenes and seeds, and what they took."""
    rows = []
    for name in dict.fromkeys(name for one in (*claim.decides, *claim.also) for name in (one.other, one.one)):
        for base in known[name].bases:
            if runs := list(store.runs(known[name], base).values()):
                means = [mean(mean(run["scores"][key]) for run in runs) for key in MEASURES]
                took = [mean(run.get(key, 0) for run in runs) for key in ("samples", "cpu_seconds", "peak_bytes")]
                numbers = [f"{value:.4f}" if value < 0.1 else f"{value:.3f}" for value in means]
                numbers += [f"{took[0]:.0f}", f"{took[1]:.0f}", f"{took[2] / 1e6:.0f}"]
                rows.append([name, base, str(len(runs)), *numbers])
    return table(["cell", "base", "seeds", *MEASURES, "videos", "s", "MB"], rows) if rows else ""


def section(claim: Claim, store: Store, known: Cells) -> str:
    """A claim, its verdict, and what it rests on."""
    rows = [row(one, claim.level, store, known) for one in claim.decides]
    rows += [row(one, None, store, known) for one in claim.also]
    there, planned = claim.seeds(store, known)
    so_far = f" so far, {there} of {planned} seeds" * (there < planned)
    parts = (
        f"**Claim.** {claim.sentence}",
        f"**Verdict{so_far}: {claim.verdict(store, known)}.**",
        table(["cells", "asked", "difference [95 %]", "by training seed", "bases", "verdict"], rows),
        scores(claim, store, known),
    )
    return "\n\n".join(part for part in parts if part)


def verdicts(store: Store, known: Cells) -> str:
    """All claims in short."""
    rows = [[one.letter, one.sentence, f"**{one.verdict(store, known)}**"] for one in CLAIMS]
    return table(["", "claim", "verdict"], rows)


def tuned(store: Store) -> str:
    """What was chosen on validation scenes, and among what."""
    known, chosen, rows = cells({}), store.chosen(), []
    for name, tuning in tunings().items():
        found = [(value, store.scores(known[f"t {name} {value:g}"])) for value in tuning.values]
        tried = [f"{value:g}: " + (f"{one['joint']:.3f}, {one['flicker']:.4f}" if one else "") for value, one in found]
        rows.append([name, "; ".join(tried), f"{chosen[name]:g}" if name in chosen else "not run"])
    return table(["setting", "value: joint, flicker", "chosen"], rows)


def differs(cfg: TrainConfig) -> list[str]:
    """In what a configuration is not the recipe."""
    found = [change for change in changes(recipe(), cfg) if change.affects == "results" and change.new != "(absent)"]
    said = [f"{change.name} {change.new}" for change in found
            if not change.name.startswith("rewards.") and (change.old, change.new) != ("(absent)", "none")]  # fmt: skip
    names = [f"{one.name} {one.weight:g}" + f" ({one.role})" * (one.role != "auxiliary") for one in cfg.rewards]
    return said + [f"rewards {' + '.join(names)}"] * (cfg.rewards != recipe().rewards)


def planned() -> str:
    """Every cell: in what it differs from the recipe, where it is run, and how it is judged."""
    rows = []
    for name, cell in cells({}).items():
        said = differs(cell.config) if cell.config is not None else ["no training"]
        said += [f"{cell.after} as tuned"] * bool(cell.after) + [f"forward {cell.forward}"] * bool(cell.forward)
        looks = [f"{cell.split} x {cell.noises}", *(part for part in ("long", "along") if getattr(cell, part))]
        rows.append([name, "; ".join(said), ", ".join(cell.bases), str(len(cell.all_seeds)), ", ".join(looks)])
    return table(["cell", "differs from the recipe in", "bases", "seeds", "judged on"], rows)


def claimed() -> str:
    """Every claim with the comparisons that decide it."""
    rows = [
        [claim.letter, f"{one.one} against {one.other}", f"{one.what}: {one.rule.says}", ", ".join(one.bases)]
        for claim in CLAIMS
        for one in claim.decides
    ]
    return table(["claim", "cells", "asked", "bases"], rows)


def filled(page: str, found: Mapping[str, str]) -> str:
    """The page with these of its blocks as they are now."""
    for name, block in found.items():
        before, begin, rest = page.partition(f"<!-- begin: {name} -->\n")
        if begin:
            page = f"{before}{begin}{block}\n{rest[rest.index('<!-- end -->') :]}"
    return page


def blocks(store: Store) -> dict[str, str]:
    """Everything that the two pages show."""
    known = cells(store.chosen())
    found = {f"claim {claim.letter}": section(claim, store, known) for claim in CLAIMS}
    return found | {"verdicts": verdicts(store, known), "tuned": tuned(store), "cells": planned(), "claims": claimed()}


def main(argv: Sequence[str] | None = None) -> None:
    """Put what is there into the pages."""
    Parser(prog="python -m benchmarks.evidence.page", description=__doc__).read(argv)
    found = blocks(Store())
    for page in (PAGE, PLAN):
        write_whole(page, filled(page.read_text(encoding="utf-8"), found))
        print(page)


if __name__ == "__main__":
    run_program(main)
