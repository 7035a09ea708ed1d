"""``python -m benchmarks.ablation_plots``: the committed ablations as pictures, and regularisers at a matched proxy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.ablations import RESULT
from benchmarks.plots import BLUE, GREY, RED

OUT = Path("docs/images/ablations.svg")
TITLES = {"b": "regularisation of a hackable reward", "c": "which rewards", "d": "adaptive weighting",
          "e": "beta, levels, context", "r": "rivals", "s": "on videos four times as long"}  # fmt: skip
PROXY, JUDGED, SMOOTHED = "reward/pixel_saturation", "reward/joint", 5


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over the last few steps."""
    return [mean(values[max(0, step - SMOOTHED + 1) : step + 1]) for step in range(len(values))]


def at_proxy(proxy: Sequence[float], judged: Sequence[float], level: float) -> float | None:
    """What the judge says where the proxy reward first rises to ``level``, between two steps linearly; None where it
    never does."""
    for step in range(1, len(proxy)):
        before, after = proxy[step - 1], proxy[step]
        if before < level <= after:
            share = (level - before) / (after - before)
            return judged[step - 1] + share * (judged[step] - judged[step - 1])
    return judged[0] if proxy and proxy[0] >= level else None


def matched(cells: Sequence[dict[str, Any]], rise: float) -> dict[str, list[float | None]]:
    """For every regulariser and seed the joint oracle where the proxy has risen by the share ``rise`` of what it rises
    by without any regulariser."""
    plain = next(cell for cell in cells if cell["name"] == "b none")
    tracks = [smooth(run["by_step"][PROXY]) for run in plain["runs"]]
    start, end = mean(track[SMOOTHED - 1] for track in tracks), mean(track[-1] for track in tracks)
    level = start + rise * (end - start)
    return {
        cell["name"]: [at_proxy(smooth(run["by_step"][PROXY]), smooth(run["by_step"][JUDGED]), level)
                       for run in cell["runs"]]
        for cell in cells if cell["name"].startswith("b ")
    }  # fmt: skip


def main() -> None:
    """Draw what is there."""
    cells = json.loads(RESULT.read_text(encoding="utf-8"))["cells"]
    by_letter = {letter: [cell for cell in cells if cell["name"].startswith(f"{letter} ")] for letter in TITLES}
    shown = {letter: found for letter, found in by_letter.items() if found}
    figure, grid = plt.subplots(len(shown) + 1, 1, figsize=(9, 2.6 * (len(shown) + 1)), squeeze=False)
    standard = next((cell for cell in cells if cell["name"] == "standard"), None)
    for (letter, found), axes in zip(shown.items(), grid[:, 0], strict=False):
        rows = [standard, *found] if standard and letter in "der" else found
        values = [row["scores"]["joint"] for row in rows]
        reach = [abs(value["ci95"][1] - value["mean"]) if value["ci95"] else 0 for value in values]
        names = [row["name"].removeprefix(f"{letter} ") for row in rows]
        axes.barh(names, [value["mean"] for value in values], xerr=reach, color=BLUE, ecolor="black", capsize=3)
        axes.axvline(rows[0]["base"]["joint"], color=GREY, linestyle="--")
        axes.set_title(f"joint oracle on held-out prompts: {TITLES[letter]} (dashed: base)", fontsize=9)
        axes.invert_yaxis()
    axes = grid[-1, 0]
    for cell, colour in ((c, RED if c["name"] == "d adaptive" else BLUE) for c in cells if c["name"] in (
            "standard", "d adaptive")):  # fmt: skip
        for run in cell["runs"]:
            axes.plot(run["by_step"]["latents_rms"], color=colour, linewidth=0.8)
    axes.set_title("size of the latents by step: red with adaptive weighting", fontsize=9)
    figure.tight_layout()
    figure.savefig(OUT, metadata={"Date": None})
    print(OUT)
    if by_letter["b"]:
        for rise in (0.25, 0.5, 0.75):
            print(f"joint where the proxy has risen by {rise:.0%}:", matched(cells, rise))


if __name__ == "__main__":
    main()
