"""The committed ablations as the tables of docs/evidence.md, and how cells are compared."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation_cells import CELLS
from benchmarks.ablations import BASE, RESULT, SEEDS, interval

PROXY, JUDGED = "pixel_saturation", "joint"
Content = Mapping[str, Any]
Cells = Mapping[str, Mapping[str, Any]]


def read(path: Path = RESULT) -> tuple[Content, dict[str, dict[str, Any]]]:
    """The committed numbers, and the cells by name."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content, {cell["name"]: cell for cell in content["cells"]}


def track(content: Content, run: Content, measure: str) -> list[float]:
    """A measure on held-out prompts and one noise, from the base on, checkpoint by checkpoint."""
    return [content[BASE]["first"][measure], *(point[measure] for point in run["along"])]


def at_proxy(proxy: Sequence[float], judged: Sequence[float], level: float) -> float | None:
    """What the judge says where the proxy reward first rises to ``level``, between two checkpoints linearly; None where
    it never does."""
    for step in range(1, len(proxy)):
        before, after = proxy[step - 1], proxy[step]
        if before < level <= after:
            share = (level - before) / (after - before)
            return judged[step - 1] + share * (judged[step] - judged[step - 1])
    return judged[0] if proxy and proxy[0] >= level else None


def matched(content: Content, cell: Content, other: Content) -> list[float]:
    """By how much the joint oracle is above another cell's, seed by seed, where the proxy has risen as far: as far as
    in the one of the two where it rises less."""
    others = {run["seed"]: run for run in other["runs"]}
    found = []
    for run in cell["runs"]:
        if run["seed"] in others:
            pair = [[track(content, one, name) for name in (PROXY, JUDGED)] for one in (run, others[run["seed"]])]
            level = min(max(proxy) for proxy, _ in pair)
            own, free = (at_proxy(proxy, joint, level) for proxy, joint in pair)
            assert own is not None and free is not None
            found.append(own - free)
    return found


def at_the_end(content: Content, cell: Content, other: Content, plain: Content) -> list[float]:
    """By how much the joint oracle ends above another cell's, seed by seed, allowing for their proxies: as much as the
    unregularised run of that seed, base to end, loses on the way from one to the other."""
    base = content[BASE]["short"]
    others, free = ({run["seed"]: run["scores"] for run in one["runs"]} for one in (other, plain))
    found = []
    for run in cell["runs"]:
        own, seed = run["scores"], run["seed"]
        if seed in others and seed in free:
            slope = (free[seed][JUDGED] - base[JUDGED]) / (free[seed][PROXY] - base[PROXY])
            gain = own[JUDGED] - others[seed][JUDGED]
            found.append(gain - slope * (own[PROXY] - others[seed][PROXY]))
    return found


def paired(cell: Content, other: Content, measure: str = JUDGED) -> list[float]:
    """By how much a cell's score is above another's, seed by seed."""
    others = {run["seed"]: run["scores"][measure] for run in other["runs"]}
    return [run["scores"][measure] - others[run["seed"]] for run in cell["runs"] if run["seed"] in others]


def said(values: Sequence[float], form: str = ".3f") -> str:
    """A mean and its interval, as the tables have it."""
    found = interval(values)
    ends = "" if found["ci95"] is None else f" [{found['ci95'][0]:{form}}, {found['ci95'][1]:{form}}]"
    return f"{found['mean']:{form}}{ends}"


def score(cell: Content, measure: str, form: str = ".3f") -> str:
    """One of a cell's scores."""
    return said([run["scores"][measure] for run in cell["runs"]], form)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def group(cells: Cells, *letters: str) -> list[Mapping[str, Any]]:
    """The cells whose names begin so."""
    return [cell for name, cell in cells.items() if name.startswith(letters)]


def short(name: str) -> str:
    """A cell's name without its letter."""
    return name[2:] if name[1] == " " else name


def complete(cells: Cells, *letters: str) -> list[Mapping[str, Any]]:
    """The cells whose names begin so, if all of them were run from all seeds."""
    found = [cell for cell in group(cells, *letters) if set(SEEDS) <= set(cell["seeds"])]
    return found if len(found) == sum(name.startswith(letters) for name in CELLS) else []


def tables(content: Content, cells: Cells, alone: Content) -> dict[str, str]:
    """Every table of the page, by name: those whose cells were all run from all seeds."""
    found = {
        "regularisation": regularisation(content, complete(cells, "b ")),
        "pairs": pairs(content, complete(cells, "b ")),
        "rewards": rewards(content, complete(cells, "c ")),
        "losses": lifts(content, complete(cells, "standard", "d ", "e ")),
        "rivals": lifts(content, complete(cells, "standard", "r ")),
        "costs": costs(alone),
        "streaming": streaming(content, complete(cells, "s ")),
    }
    return {name: table(head, rows) for name, (head, rows) in found.items() if len(rows) > 1}


Table = tuple[list[str], list[list[str]]]


def regularisation(content: Content, cells: Sequence[Content]) -> Table:
    """What regularisers prevent at equal proxies, beside none and beside a random mask with the same reference."""
    head = ["regulariser", "saturation (trained on)", "joint oracle", "above none, along", "above none, at the end",
            "above random, along", "above random, at the end"]  # fmt: skip
    base, by_name = content[BASE]["short"], {cell["name"]: cell for cell in cells}
    rows = [["base", f"{base[PROXY]:.3f}", f"{base[JUDGED]:.3f}", *[""] * 4]]
    for name, cell in by_name.items():
        row = [short(name), score(cell, PROXY), score(cell, JUDGED)]
        for other in ("b none", "b random moving" if "moving" in name else "b random fixed"):
            gaps = [
                matched(content, cell, by_name[other]),
                at_the_end(content, cell, by_name[other], by_name["b none"]),
            ]
            row += ["", ""] if name in (other, "b none") else [said(gap, "+.3f") for gap in gaps]
        rows.append(row)
    return head, rows


def pairs(content: Content, cells: Sequence[Content]) -> Table:
    """The choices of a regulariser, one against the other at equal proxies."""
    head, by_name = ["one", "above the other", "along", "at the end"], {cell["name"]: cell for cell in cells}
    chosen = (("selective moving", "uniform moving"), ("selective moving", "selective moving, descending"),
              ("selective moving", "selective fixed"), ("selective fixed", "uniform fixed"),
              ("uniform fixed", "uniform weak"))  # fmt: skip
    rows: list[list[str]] = []
    for names in chosen if cells else ():
        own, other = (by_name[f"b {name}"] for name in names)
        gaps = [matched(content, own, other), at_the_end(content, own, other, by_name["b none"])]
        rows.append([*names, *(said(gap, "+.3f") for gap in gaps)])
    return head, rows


def rewards(content: Content, cells: Sequence[Content]) -> Table:
    """What is trained on, and what becomes of what is not."""
    base = content[BASE]["short"]
    forms = {PROXY: ".3f", "pixel_steadiness": ".4f", JUDGED: ".3f", "shape": ".3f", "motion": ".3f"}
    rows = [["base", *(f"{base[name]:{form}}" for name, form in forms.items()), ""]]
    for cell in cells:
        parts = [score(cell, name, form) for name, form in forms.items()]
        rows.append([short(cell["name"]), *parts, f"{cell['samples']:g}"])
    return ["rewards", "saturation", "steadiness", "joint oracle", "shape", "motion", "videos made"], rows


def lifts(content: Content, cells: Sequence[Content]) -> Table:
    """What other losses, levels and algorithms do, beside the first cell, the standard one."""
    base = content[BASE]["short"]
    rows = [["base", f"{base[JUDGED]:.3f}", "", f"{base['joint_practised']:.3f}", f"{base['motion_energy']:.4f}"]]
    for cell in cells:
        gap = said(paired(cell, cells[0]), "+.3f") if cell is not cells[0] else ""
        more = [score(cell, "joint_practised"), f"{cell['scores']['motion_energy']['mean']:.4f}"]
        rows.append([short(cell["name"]), score(cell, JUDGED), gap, *more])
    return ["cell", "joint oracle", "above standard, seed by seed", "joint on practised scenes", "motion energy"], rows


def streaming(content: Content, cells: Sequence[Content]) -> Table:
    """The joint oracle along long videos."""
    base = content[BASE]["long"]
    rows = [["base", f"{base[JUDGED]:.3f}", *(f"{value:.3f}" for value in base["joint_by_window"])]]
    for cell in cells:
        parts = zip(*(run["scores"]["joint_by_window"] for run in cell["runs"]), strict=True)
        rows.append([short(cell["name"]), score(cell, JUDGED), *(said(part) for part in parts)])
    return ["trained on", "whole video", *(f"window {i + 1}" for i in range(4))], rows


def costs(alone: Content) -> Table:
    """Seconds and memory of a step."""
    rows = [[name, *(f"{row[key]:.2f}" for key in ("step", "rollout", "update")), f"{row['peak_bytes'] / 1e6:.0f}"]
            for name, row in alone.items()]  # fmt: skip
    return ["algorithm", "seconds a step", "rollout", "update", "peak, MB"], rows


def filled(page: str, found: Mapping[str, str]) -> str:
    """The page with its tables as they are now; KeyError when it asks for one that is not there."""
    for name in re.findall(r"<!-- table: (\w+) -->", page):
        begin, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}{found[name]}\n{rest[rest.index(end) :]}"
    return page
