"""Charts of the report, as plain Plotly figures: data and layout in JSON, drawn by the page in its own colours."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from astrolabe.shapes.settings import FPS

Records = Sequence[Mapping[str, Any]]
Series = Sequence[float | None]  # None is a gap

# Of middling lightness, so that they read on light and on dark paper.
BASE, ALIGNED, WARNING = "#8d95a5", "#4f7df0", "#d0453a"
PALETTE = (ALIGNED, "#16a394", "#e0901f", "#dd5a8d", "#8f6ee8", "#5b9bd5", "#93a52e", "#c4703f", "#8d95a5", "#2fa8c7")
GRID = "rgba(128, 134, 150, 0.20)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Chart:
    """One figure with its words. ``spec`` is JSON that may stand inside a script element."""

    title: str
    caption: str
    spec: str


def chart(title: str, caption: str, data: list[dict[str, Any]], layout: Mapping[str, Any]) -> Chart:
    """A chart from Plotly traces, and what its layout adds to the common one."""
    text = json.dumps({"data": data, "layout": house_layout() | dict(layout)}, allow_nan=False)
    return Chart(title, caption, text.replace("<", "\\u003c"))


def house_layout() -> dict[str, Any]:
    """Transparent, quiet, the legend above the plot; the page adds the colour of the ink."""
    return {
        "height": 270,
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.04, "yanchor": "bottom",
                   "bgcolor": "rgba(0,0,0,0)", "itemwidth": 30},
        "hovermode": "x unified",
        "xaxis": axis(),
        "yaxis": axis(),
        "showlegend": False,
    }  # fmt: skip


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """A quiet axis that makes room for its own labels."""
    quiet = {"gridcolor": GRID, "zeroline": False, "automargin": True, "nticks": 6, "ticks": "", "showline": False}
    return quiet | {"title": {"text": title, "standoff": 8, "font": {"size": 12}}} | more


def value_axis(series: Sequence[Series], title: str = "") -> dict[str, Any]:
    """0 to 1 for what lies in there and fills a good part of it; else from zero to what is needed."""
    values = [value for line in series for value in line if value is not None]
    inside = bool(values) and min(values) >= 0 and max(values) <= 1
    if inside and max(values) > 0.4:
        return axis(title, range=[0, 1.02])
    return axis(title, rangemode="tozero", exponentformat="power")


def numbers(records: Records, name: str) -> list[float | None]:
    """A metric over the records; None where it is missing or not finite."""
    found = [record.get(name) for record in records]
    return [float(v) if isinstance(v, int | float) and math.isfinite(v) else None for v in found]


def names_under(records: Records, prefix: str) -> list[str]:
    """What follows ``prefix/`` in the metrics' names, in the order of their first appearance."""
    return list(dict.fromkeys(
        key.removeprefix(f"{prefix}/") for record in records for key in record if key.startswith(f"{prefix}/")
    ))  # fmt: skip


def smooth(values: Series, window: int) -> list[float | None]:
    """Centred mean over ``window`` (odd) values, over fewer at the ends; gaps are left out of the mean, and stay."""
    half, result = window // 2, list[float | None]()
    for index, value in enumerate(values):
        near = [v for v in values[max(0, index - half) : index + half + 1] if v is not None]
        result.append(None if value is None else sum(near) / len(near))
    return result


def smoothing_window(steps: int) -> int:
    """About a tenth of the run, odd, at least 5."""
    return max(5, steps // 10) | 1


def curves(records: Records, lines: Mapping[str, str], title: str, caption: str) -> Chart:
    """Metrics over steps, ``lines`` from metric to label: each raw and faint, smoothed and strong. Where a guard of one
    of them spoke, there is a mark."""
    steps = [record["step"] + 1 for record in records]
    window, data, raws = smoothing_window(len(records)), [], []
    for (metric, label), colour in zip(lines.items(), cycle(PALETTE), strict=False):
        raw = numbers(records, metric)
        raws.append(raw)
        shared = {"type": "scatter", "mode": "lines", "x": steps, "name": label, "legendgroup": metric}
        data.append(shared | {"y": raw, "line": {"color": colour, "width": 1}, "opacity": 0.3, "showlegend": False,
                              "hoverinfo": "skip"})  # fmt: skip
        data.append(shared | {"y": smooth(raw, window), "line": {"color": colour, "width": 1.8},
                              "hovertemplate": "%{y:.4g}"})  # fmt: skip
    marks = [(record["step"] + 1, action) for record in records for metric in lines
             for action in names_under([record], metric.replace("watch/", "alarm/", 1))]  # fmt: skip
    layout = {
        "xaxis": axis("step"), "yaxis": value_axis(raws), "showlegend": len(lines) > 1,
        "shapes": [{"type": "line", "x0": step, "x1": step, "yref": "paper", "y0": 0, "y1": 1,
                    "line": {"color": WARNING, "width": 1.2, "dash": "dot"}} for step, _ in marks],
        "annotations": [{"x": step, "yref": "paper", "y": 0.02, "yanchor": "bottom", "xanchor": "right", "text": action,
                         "showarrow": False, "font": {"color": WARNING}} for step, action in marks],
    }  # fmt: skip
    return chart(title, caption, data, layout)


def phases(records: Records) -> Chart:
    """Seconds of a step by phase, stacked."""
    steps = [record["step"] + 1 for record in records]
    data = [
        {"type": "scatter", "mode": "lines", "stackgroup": "all", "x": steps, "y": numbers(records, f"seconds/{name}"),
         "name": name, "line": {"color": colour, "width": 0.8}, "hovertemplate": "%{y:.2f} s"}
        for name, colour in zip(names_under(records, "seconds"), cycle(PALETTE), strict=False)
    ]  # fmt: skip
    layout = {"xaxis": axis("step"), "yaxis": axis("seconds", rangemode="tozero"), "showlegend": True}
    caption = "What the time goes to: making videos, scoring them, learning from them."
    return chart("Seconds a step", caption, data, layout)


def training_charts(records: Records) -> list[Chart]:
    """Everything that a run logs and a reader would ask for; a metric that was never logged has no chart."""
    rewards = {f"reward/{name}": name.replace("_", " ") for name in names_under(records, "reward")}
    spreads = {f"group_std/{name}": name.replace("_", " ") for name in names_under(records, "group_std")}
    shares = {f"contribution/{name}": name.replace("_", " ") for name in names_under(records, "contribution")}
    guarded = [name.removeprefix("base_") for name in names_under(records, "watch") if name.startswith("base_")]
    wanted = (
        (rewards, "Rewards", "Mean of every reward over all candidates of a step. Each step has prompts of its own."),
        (spreads, "Spread within a group", "Standard deviation of a reward among the candidates of one prompt: what "
         "there is to choose from. At zero nothing can be learned."),
        (shares if len(shares) > 1 else {}, "What the weights do", "The share of the advantages that each reward "
         "brought in, together one; below zero where the others outvoted it."),
        ({"disagreement": "disagreement"}, "Disagreement", "By how many ranks the primary reward puts a sample above "
         "the others, mean over the samples where it does. A rise means that one reward is being served alone."),
        ({"anchored": "anchored", "rho": "rho"}, "Anchored", "Share of the samples that are held near the reference, "
         "and the share rho of the disagreeing ones that should be."),
        *(({f"watch/{name}": "this run", f"watch/base_{name}": "base"}, f"Guard: {name.replace('_', ' ')}",
           "Running averages: this run, and the base in the same places. A mark: it spoke.") for name in guarded),
        ({"judgement": "judges"}, "Judges", "By how much they like this run better than the base in the same places, "
         "running average; the best adapter is that of its peak."),
        ({"lr": "learning rate"} if guarded else {}, "Learning rate", "Guards may have slowed it."),
        ({"loss": "loss"}, "Loss", "No measure of quality: the model makes its own data, and they move with it."),
        ({"grad_norm": "gradient norm"}, "Gradient norm", "Before clipping."),
        ({"old_gap": "from the behavior policy", "drift_reference": "anchored ones from the reference"}, "Drift",
         "Mean squared difference between what the learner predicts and what the behavior policy (which makes the "
         "videos) and the reference do."),
    )  # fmt: skip
    made = [curves(records, lines, title, caption) for lines, title, caption in wanted
            if any(metric in record for metric in lines for record in records)]  # fmt: skip
    return [*made, phases(records)] if names_under(records, "seconds") else made


def window_chart(windows: Records, measure: str, clip: int, frames: int, caption: str) -> Chart:
    """One measure by window of videos of ``frames`` video frames, of which training knew the first ``clip``.

    The bars are the interval of the paired difference, set upon the base: where a bar misses the base's line, the
    difference is not zero.
    """
    size = (frames - 1) / len(windows) / FPS
    middle = [round((index + 0.5) * size, 3) for index in range(len(windows))]
    base, aligned = ([window[measure][who] for window in windows] for who in ("base", "aligned"))
    reach = [[abs(w[measure]["ci95"][end] - w[measure]["difference"]) for w in windows] for end in (0, 1)]
    shared = {"type": "scatter", "mode": "lines+markers", "x": middle, "hovertemplate": "%{y:.3f}"}
    data = [
        shared | {"y": base, "name": "base", "line": {"color": BASE, "width": 1.8}, "marker": {"size": 6}},
        shared | {"y": aligned, "name": "aligned", "line": {"color": ALIGNED, "width": 1.8}, "marker": {"size": 6},
                  "error_y": {"type": "data", "array": reach[1], "arrayminus": reach[0], "thickness": 1.2, "width": 4}},
    ]  # fmt: skip
    end, edge = len(windows) * size, clip / FPS
    layout = {
        "xaxis": axis("seconds", range=[0, end], tick0=0, dtick=1, nticks=0),
        "yaxis": axis(range=[0, 1.04], tick0=0, dtick=0.2, nticks=0),
        "showlegend": True,
        "shapes": [{"type": "rect", "xref": "x", "yref": "paper", "x0": edge, "x1": end, "y0": 0, "y1": 1,
                    "fillcolor": "rgba(128, 134, 150, 0.09)", "line": {"width": 0}, "layer": "below"}],
        "annotations": [{"x": edge, "xref": "x", "y": 0.02, "yref": "paper", "xanchor": "left", "yanchor": "bottom",
                         "text": "longer than trained on", "showarrow": False, "xshift": 6, "font": {"size": 11},
                         "opacity": 0.75}],
    }  # fmt: skip
    return chart(measure, caption, data, layout)
