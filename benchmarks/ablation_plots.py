"""The committed ablations as pictures of docs/evidence.md: ``python -m benchmarks.ablation_page`` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.ablation_tables import JUDGED, PROXY, Cells, Content, complete, matched, short, track
from benchmarks.ablations import BASE, interval

plt.rcParams["svg.hashsalt"] = "astrolabe"  # the same numbers make the same file

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
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=7)
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


def save(figure: Figure, name: str) -> None:
    """One picture of the page."""
    figure.tight_layout()
    figure.savefig(IMAGES / f"evidence-{name}.svg", metadata={"Date": None})
    plt.close(figure)


def draw(content: Content, cells: Cells, alone: Content) -> None:
    """Every picture of the page: those whose cells were all run from all seeds."""
    pictures = {
        "regularisation": (regularisation, ("b ",)),
        "rewards": (rewards, ("c ",)),
        "losses": (losses, ("standard", "d ", "e ")),
        "streaming": (streaming, ("s ",)),
    }
    for name, (picture, letters) in pictures.items():
        if shown := complete(cells, *letters):
            save(picture(content, shown), name)
    if alone and (shown := complete(cells, "standard", "r ")):
        save(rivals(content, shown, alone), "rivals")


def names_of(cells: Sequence[Content]) -> list[str]:
    """What the axes call them."""
    return [short(cell["name"]) for cell in cells]


def regularisation(content: Content, cells: Sequence[Content]) -> Figure:
    """Proxy against judge along training; at equal proxies, beside no regulariser."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    curves = [(short(cell["name"]), over_seeds(content, cell, PROXY), over_seeds(content, cell, JUDGED))
              for cell in cells]  # fmt: skip
    lines(left, curves, "saturation of held-out videos (what is trained on)", "what the proxy gains, and what it costs")
    plain, others = cells[0], cells[1:]
    gaps = [matched(content, cell, plain) for cell in others]
    dots(right, names_of(others), gaps, 0, "joint above no regulariser, at equal saturation")
    return figure


def rewards(content: Content, cells: Sequence[Content]) -> Figure:
    """The judge, and the proxy that may be hacked."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for axes, measure, title in zip(panels, (JUDGED, PROXY), ("joint oracle", "saturation"), strict=True):
        values = [by_seed(cell, measure) for cell in cells]
        dots(axes, names_of(cells), values, content[BASE]["short"][measure], f"{title} (dashed: base)")
    return figure


def losses(content: Content, cells: Sequence[Content]) -> Figure:
    """The judge, and by step what adaptive weighting does."""
    figure, (left, *panels) = plt.subplots(1, 3, figsize=(12, 3.6))
    values = [by_seed(cell, JUDGED) for cell in cells]
    dots(left, names_of(cells), values, content[BASE]["short"][JUDGED], "joint oracle (dashed: base)")
    colours = {"standard": COLOURS[1], "d adaptive": COLOURS[4], "d plain, fast": COLOURS[2],
               "d adaptive, fast": COLOURS[5]}  # fmt: skip
    titles = {"latents_rms": "size of x0", "reward/motion_fit": "a reward: motion_fit"}
    for axes, (logged, title) in zip(panels, titles.items(), strict=True):
        for cell in (cell for cell in cells if cell["name"] in colours):
            of_seeds = [run["by_step"][logged] for run in cell["runs"]]
            for values in of_seeds:
                axes.plot(values, color=colours[cell["name"]], linewidth=0.5, alpha=0.3)
            middle = [mean(column) for column in zip(*of_seeds, strict=True)]
            axes.plot(middle, color=colours[cell["name"]], linewidth=1.8, label=short(cell["name"]))
        axes.set_title(f"{title}, by step (bold: mean over seeds)", fontsize=9)
        axes.legend(fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def rivals(content: Content, cells: Sequence[Content], alone: Content) -> Figure:
    """The judge along training, by samples and by seconds."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for axes, wall in zip(panels, (False, True), strict=True):
        curves = []
        for cell in cells:
            algorithm = short(cell["name"]).split(",")[0]
            per_step = alone[algorithm]["step"] if wall else cell["samples"] / content["steps"]
            across = [0.0, *(per_step * point["step"] for point in cell["runs"][0]["along"])]
            curves.append((short(cell["name"]), across, over_seeds(content, cell, JUDGED)))
        unit = "seconds of training, one thread" if wall else "generated videos"
        lines(axes, curves, unit, f"held-out prompts, against {'wall time' if wall else 'samples'}")
    return figure


def streaming(content: Content, cells: Sequence[Content]) -> Figure:
    """The judge along long videos."""
    figure, axes = plt.subplots(figsize=(6, 3.4))
    places = range(1, 5)
    axes.plot(places, content[BASE]["long"]["joint_by_window"], color="black", marker="o", label="base")
    for cell, colour in zip(cells, (COLOURS[4], COLOURS[2]), strict=True):
        windows = zip(*(run["scores"]["joint_by_window"] for run in cell["runs"]), strict=True)
        parts = [interval(part) for part in windows]
        middle = [part["mean"] for part in parts]
        reach = [part["ci95"][1] - part["mean"] if part["ci95"] else 0 for part in parts]
        axes.errorbar(places, middle, reach, color=colour, marker="o", capsize=3, label=short(cell["name"]))
    axes.set_xticks(places)
    axes.set_xlabel("window of the video, each as long as the clip that was trained", fontsize=8)
    axes.set_title("joint oracle along videos four times as long", fontsize=9)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
