"""``python -m benchmarks.ablation_plots``: the committed ablations as pictures, and regularisers at a matched proxy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.ablations import RESULT, interval
from benchmarks.plots import BLUE, GREY, RED

OUT = Path("docs/images/ablations.svg")
TITLES = {"b": "regularisation of a hackable reward", "c": "which rewards", "e": "beta, levels, context", "r": "rivals",
          "s": "on videos four times as long"}  # fmt: skip
PROXY, JUDGED = "pixel_saturation", "joint"
COLOURS = ("black", "#9ec5e8", BLUE, "#e0901f", RED, "#8f6ee8", GREY, "#2f9e6e", "#c9a0dc", "#7a4b2a")


def at_proxy(proxy: Sequence[float], judged: Sequence[float], level: float) -> float | None:
    """What the judge says where the proxy reward first rises to ``level``, between two checkpoints linearly; None where
    it never does."""
    for step in range(1, len(proxy)):
        before, after = proxy[step - 1], proxy[step]
        if before < level <= after:
            share = (level - before) / (after - before)
            return judged[step - 1] + share * (judged[step] - judged[step - 1])
    return judged[0] if proxy and proxy[0] >= level else None


def track(run: Mapping[str, Any], measure: str) -> list[float]:
    """A measure on held-out prompts, from the base on, checkpoint by checkpoint."""
    values: list[float] = run["along"][measure]
    return values


def matched(cells: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """For every regulariser and seed, by how much the joint oracle is above what it is without any, from the same
    seed and where the proxy has risen as far: as far as in the one of the two where it rises less."""
    plain = {run["seed"]: run for cell in cells if cell["name"] == "b none" for run in cell["runs"]}
    found: dict[str, list[float]] = {}
    for cell in cells:
        for run in cell["runs"] if cell["name"].startswith("b ") and cell["name"] != "b none" else ():
            pair = (run, plain[run["seed"]])
            level = min(max(track(one, PROXY)) for one in pair)
            own, free = (at_proxy(track(one, PROXY), track(one, JUDGED), level) for one in pair)
            assert own is not None and free is not None
            found.setdefault(cell["name"], []).append(own - free)
    return found


def bars(axes: Axes, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """The joint oracle of every cell with its interval; the base is dashed."""
    values = [row["scores"]["joint"] for row in rows]
    reach = [abs(value["ci95"][1] - value["mean"]) if value["ci95"] else 0 for value in values]
    names = [row["name"][2:] if row["name"][1] == " " else row["name"] for row in rows]
    axes.set_xlim(0, 1)
    axes.barh(names, [value["mean"] for value in values], xerr=reach, color=BLUE, ecolor="black", capsize=3)
    axes.axvline(rows[0]["base"]["joint"], color=GREY, linestyle="--")
    axes.set_title(f"joint oracle on held-out prompts: {title} (dashed: base)", fontsize=9)
    axes.invert_yaxis()


def hacking(axes: Axes, cells: Sequence[Mapping[str, Any]]) -> None:
    """What the proxy gains and what it costs, checkpoint by checkpoint, mean over seeds."""
    for cell, colour in zip(cells, COLOURS[: len(cells)], strict=True):
        proxy, joint = ([mean(column) for column in zip(*(track(run, name) for run in cell["runs"]), strict=True)]
                        for name in (PROXY, JUDGED))  # fmt: skip
        axes.plot(proxy, joint, marker="o", markersize=3, color=colour, label=cell["name"][2:], linewidth=1)
    axes.set_xlabel("saturation of held-out videos: the proxy reward", fontsize=8)
    axes.set_ylabel("joint oracle", fontsize=8)
    axes.set_title("hacking: what the proxy gains and what it costs", fontsize=9)
    axes.legend(fontsize=7)


def by_step(axes: Axes, cells: Sequence[Mapping[str, Any]], name: str, title: str) -> None:
    """A logged number by step, a line a seed, red with adaptive weighting."""
    for cell in cells:
        for run in cell["runs"]:
            axes.plot(run["by_step"][name], color=RED if cell["name"] == "d adaptive" else BLUE, linewidth=0.8)
    axes.set_title(f"{title} by step (red: with adaptive weighting)", fontsize=9)


def race(axes: Axes, cells: Sequence[Mapping[str, Any]], wall: bool) -> None:
    """The joint oracle at the checkpoints, mean over seeds, against samples or against the seconds they took."""
    for cell, colour in zip(cells, COLOURS[: len(cells)], strict=True):
        joint = [mean(column) for column in zip(*(track(run, JUDGED) for run in cell["runs"]), strict=True)]
        steps = track(cell["runs"][0], "step")
        whole = cell["seconds"] if wall else cell["samples"]
        axes.plot([whole * step / steps[-1] for step in steps], joint, marker="o", markersize=3, color=colour,
                  label=cell["name"].removeprefix("r "), linewidth=1)  # fmt: skip
    axes.set_xlabel("seconds of training on one thread" if wall else "generated samples", fontsize=8)
    axes.set_ylabel("joint oracle", fontsize=8)
    axes.set_title(f"rivals: against {'wall time' if wall else 'samples'}", fontsize=9)
    axes.legend(fontsize=7)


def main() -> None:
    """Draw what is there, and say what the regularisers cost at equal proxies."""
    cells = json.loads(RESULT.read_text(encoding="utf-8"))["cells"]
    by_letter = {letter: [cell for cell in cells if cell["name"].startswith(f"{letter} ")] for letter in TITLES}
    shown = {letter: found for letter, found in by_letter.items() if found}
    figure, grid = plt.subplots(len(shown) + 5, 1, figsize=(9, 2.7 * (len(shown) + 5)), squeeze=False)
    standard = [cell for cell in cells if cell["name"] == "standard"]
    for (letter, found), axes in zip(shown.items(), grid[:, 0], strict=False):
        bars(axes, [*standard, *found] if letter in "er" else found, TITLES[letter])
    hacking(grid[-5, 0], by_letter["b"])
    race(grid[-4, 0], [*standard, *by_letter["r"]], wall=False)
    race(grid[-3, 0], [*standard, *by_letter["r"]], wall=True)
    adaptive = [*standard, *(cell for cell in cells if cell["name"] == "d adaptive")]
    by_step(grid[-2, 0], adaptive, "latents_rms", "size of the latents")
    by_step(grid[-1, 0], adaptive, "reward/motion_fit", "reward motion_fit")
    figure.tight_layout()
    figure.savefig(OUT, metadata={"Date": None})
    print(OUT)
    print("joint oracle above that of no regulariser where the proxy has risen as far, seed by seed:")
    for name, differences in matched(cells).items():
        print(f"  {name:34} {interval(differences)}")


if __name__ == "__main__":
    main()
