"""The committed ablations as pictures of docs/evidence.md: ``python -m benchmarks.ablation_page`` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.ablation_tables import JUDGED, PROXY, Cells, Content, group, matched, short, track
from benchmarks.ablations import BASE, interval

IMAGES = Path("docs/images")
COLOURS = ("black", "#9ec5e8", "#3465a4", "#12355f", "#f0a860", "#c0392b", "#8f6ee8", "#b8b8b8", "#6f6f6f", "#2f9e6e")


def dots(axes: Axes, names: Sequence[str], values: Sequence[Sequence[float]], zero: float, title: str) -> None:
    """Means with intervals, seeds as small dots; ``zero`` is dashed."""
    for row, of_seeds in enumerate(values):
        found = interval(of_seeds)
        if found["ci95"]:
            axes.plot(found["ci95"], [row, row], color=COLOURS[2], linewidth=2, solid_capstyle="butt")
        axes.plot(of_seeds, [row] * len(of_seeds), "o", color=COLOURS[7], markersize=3)
        axes.plot(found["mean"], row, "o", color=COLOURS[2], markersize=6)
    axes.axvline(zero, color="black", linestyle="--", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)


def by_seed(cell: Content, measure: str) -> list[float]:
    """A score of every seed."""
    return [run["scores"][measure] for run in cell["runs"]]


def lines(axes: Axes, curves: Sequence[tuple[str, Sequence[float], Sequence[float]]], x: str, title: str) -> None:
    """Curves with their names."""
    for (name, across, up), colour in zip(curves, COLOURS, strict=False):
        axes.plot(across, up, marker="o", markersize=3, linewidth=1.2, color=colour, label=name)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel("joint oracle", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def over_seeds(content: Content, cell: Content, measure: str) -> list[float]:
    """A measure along training, mean over seeds."""
    return [mean(column) for column in zip(*(track(content, run, measure) for run in cell["runs"]), strict=True)]


def save(figure: Any, name: str) -> None:
    """One picture of the page."""
    figure.tight_layout()
    figure.savefig(IMAGES / f"evidence-{name}.svg", metadata={"Date": None})
    plt.close(figure)


def draw(content: Content, cells: Cells, alone: Content) -> None:
    """Every picture of the page."""
    base = content[BASE]["short"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    regularised = group(cells, "b ")
    curves = [(short(cell["name"]), over_seeds(content, cell, PROXY), over_seeds(content, cell, JUDGED))
              for cell in regularised]  # fmt: skip
    lines(left, curves, "saturation of held-out videos (what is trained on)", "what the proxy gains, and what it costs")
    others = [cell for cell in regularised if cell["name"] != "b none"]
    gaps = [matched(content, cell, cells["b none"]) for cell in others]
    dots(right, [short(cell["name"]) for cell in others], gaps, 0, "joint above no regulariser, at equal saturation")
    save(figure, "regularisation")

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    named = group(cells, "c ")
    for axes, measure, title in zip(panels, (JUDGED, PROXY), ("joint oracle", "saturation"), strict=True):
        names = [short(cell["name"]) for cell in named]
        dots(axes, names, [by_seed(cell, measure) for cell in named], base[measure], f"{title} (dashed: base)")
    save(figure, "rewards")

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6))
    named = group(cells, "standard", "d ", "e ")
    values = [by_seed(cell, JUDGED) for cell in named]
    dots(left, [short(cell["name"]) for cell in named], values, base[JUDGED], "joint oracle (dashed: base)")
    for axes, logged, title in (
        (middle, "latents_rms", "size of x0"),
        (right, "reward/motion_fit", "a reward: motion_fit"),
    ):
        pairs = (("standard", COLOURS[1]), ("d adaptive", COLOURS[4]), ("d plain, fast", COLOURS[2]),
                 ("d adaptive, fast", COLOURS[5]))  # fmt: skip
        for name, colour in pairs:
            for number, run in enumerate(cells[name]["runs"]):
                label = short(name) if not number else None
                axes.plot(run["by_step"][logged], color=colour, linewidth=0.8, label=label)
        axes.set_title(f"{title}, by step", fontsize=9)
        axes.legend(fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, "losses")

    figure, panels = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for axes, wall in zip(panels, (False, True), strict=True):
        curves = []
        for cell in group(cells, "standard", "r "):
            per_step = (alone[short(cell["name"]).split(",")[0]]["step"] if wall
                        else cell["samples"] / content["steps"])  # fmt: skip
            steps = [0, *(point["step"] for point in cell["runs"][0]["along"])]
            curves.append((short(cell["name"]), [per_step * step for step in steps], over_seeds(content, cell, JUDGED)))
        unit = "seconds of training, one thread" if wall else "generated videos"
        lines(axes, curves, unit, f"held-out prompts, against {'wall time' if wall else 'samples'}")
    save(figure, "rivals")

    figure, axes = plt.subplots(figsize=(6, 3.4))
    axes.plot(range(1, 5), content[BASE]["long"]["joint_by_window"], color="black", marker="o", label="base")
    for cell, colour in zip(group(cells, "s "), (COLOURS[4], COLOURS[2]), strict=True):
        parts = [
            interval(part) for part in zip(*(run["scores"]["joint_by_window"] for run in cell["runs"]), strict=True)
        ]
        middle = [part["mean"] for part in parts]
        reach = [part["ci95"][1] - part["mean"] if part["ci95"] else 0 for part in parts]
        axes.errorbar(range(1, 5), middle, reach, color=colour, marker="o", capsize=3, label=short(cell["name"]))
    axes.set_xticks(range(1, 5))
    axes.set_xlabel("window of the video, each as long as the clip that was trained", fontsize=8)
    axes.set_title("joint oracle along videos four times as long", fontsize=9)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, "streaming")
