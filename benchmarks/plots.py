"""``python -m benchmarks.plots``: the committed numbers of streaming training as pictures for the documentation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from astrolabe.runtime.arguments import Parser, run_program

RESULTS, OUT = Path("benchmarks/results"), Path("docs/images/streaming.svg")
BLUE, GREY, RED = "#3465a4", "#b8b8b8", "#c0392b"


def bars(axes: Any, names: list[str], values: list[float], colours: list[str], form: str) -> None:
    """Bars with their numbers."""
    drawn = axes.bar(names, values, color=colours)
    axes.bar_label(drawn, [form.format(value) for value in values], fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=8)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what is there."""
    Parser(prog="python -m benchmarks.plots", description=__doc__).read(argv)
    streaming = json.loads((RESULTS / "streaming.json").read_text(encoding="utf-8"))
    plan = json.loads((RESULTS / "plan.json").read_text(encoding="utf-8"))
    figure, ((along, wide), (ratio, phases), (savings, plans)) = plt.subplots(3, 2, figsize=(10, 10.5))
    for axes, key, title in (
        (along, "memory_vs_length", "peak of a step, MB, by the window's place (latent frames)"),
        (wide, "memory_vs_group", "peak of a step, MB, by G at one micro-batch"),
    ):
        peaks = streaming[key]
        bars(axes, list(peaks), [value / 1e6 for value in peaks.values()], [BLUE] * len(peaks), "{:.0f}")
        axes.set_title(f"{title}: +{streaming[key + '_growth']:.1%}", fontsize=9)
    pairs = streaming["rollout_ratio"]
    names = [f"G = {group}, {what}" for group in pairs for what in ("measured", "ideal")]
    values = [pair[what] for pair in pairs.values() for what in ("measured", "ideal")]
    bars(ratio, names, values, [BLUE, GREY] * len(pairs), "{:.2f}")
    ratio.set_title("rollout: times as fast as candidates made from the beginning", fontsize=9)
    seconds = {name: value for name, value in streaming["phases_seconds"].items() if name != "whole step"}
    bars(phases, list(seconds), list(seconds.values()), [BLUE] * len(seconds), "{:.2f}")
    phases.set_title(f"seconds of a step, {streaming['phases_seconds']['whole step']:.2f} in all", fontsize=9)
    phases.tick_params(axis="x", rotation=30)
    speedup = streaming["speedup"]
    bars(savings, list(speedup), list(speedup.values()), [BLUE if value >= 1 else RED for value in speedup.values()],
         "{:.2f}")  # fmt: skip
    savings.axhline(1, color="black", linewidth=0.8)
    savings.set_title("how much faster each saving makes its part (rollout, update, update)", fontsize=9)
    rows = plan["configurations"]
    place = range(len(rows))
    plans.bar([i - 0.2 for i in place], [row["predicted_bytes"] / 1e6 for row in rows], 0.4, color=GREY)
    plans.bar([i + 0.2 for i in place], [row["measured_bytes"] / 1e6 for row in rows], 0.4, color=BLUE)
    plans.set_title(f"memory planned (grey) and measured, MB; worst {plan['worst_error']:.0%}", fontsize=9)
    plans.set_xticks(list(place), [str(i + 1) for i in place])
    plans.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(OUT, metadata={"Date": None})
    print(OUT)


if __name__ == "__main__":
    run_program(main)
