"""``spoiled.html``: one reward alone, and several with anchoring and a guard, beside the base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from astrolabe import __version__
from astrolabe.evaluation.abreast import RULE
from astrolabe.evaluation.suites import LOWER_IS_BETTER
from astrolabe.report.figures import ALIGNED, WARNING, Chart, axis, chart, numbers
from astrolabe.report.media import data_uri, ticked
from astrolabe.report.page import environment
from astrolabe.report.results import MEANINGS, signed, verdict
from astrolabe.runs.folder import RunFolder
from astrolabe.runtime.files import write_whole
from astrolabe.types import Frames

PROXY, MEASURED_AS = "steadiness", "flicker"
ROWS = (MEASURED_AS, "right", "joint", "shape", "motion", "vividness", "motion_energy")
TITLES = {"base": "before", "alone": "steadiness alone", "several": "several rewards"}
WHAT = {
    "base": "the model as it is",
    "alone": "trained on one reward, which knows nothing of the prompt",
    "several": "the same reward among others, selective anchoring, a guard",
}


def write_spoiled(
    path: Path, told: Mapping[str, Any], videos: Mapping[str, Frames], runs: Mapping[str, RunFolder]
) -> Path:
    """Write the page of what ``evaluation.abreast`` told of the runs ``alone`` and ``several``; returns ``path``."""
    text = environment().get_template("spoiled.html").render(
        run="what goes wrong", version=__version__, plotly=get_plotlyjs(), rule=RULE,
        proxy={"reward": PROXY}, videos=told["videos"], right=counts(told),
        columns=[{"title": TITLES[name], "what": WHAT[name]} for name in TITLES],
        shown=[
            {"prompt": one["prompt"],
             "videos": [{"name": TITLES[name], "source": data_uri(videos[name][row]), "met": ticked(one["met"][name])}
                        for name in TITLES]}
            for row, one in enumerate(told["shown"])
        ],
        rows=[table_row(name, told["runs"]) for name in ROWS],
        charts=[
            along(runs, f"reward/{PROXY}", "Steadiness: what is paid for", "Mean over the candidates of a step."),
            along(runs, "reward/right", "Right: what was asked for", "Watched in both runs and trained on in none."),
        ],
    )  # fmt: skip
    write_whole(path, text)
    return path


def counts(told: Mapping[str, Any]) -> dict[str, int]:
    """How many videos show what was asked for, by policy."""
    shares = {name: run["right"]["aligned"] for name, run in told["runs"].items()}
    shares["base"] = told["runs"]["alone"]["right"]["base"]
    return {name: round(share * told["videos"]) for name, share in shares.items()}


def three_lines(told: Mapping[str, Any]) -> list[str]:
    """What happened, for somebody who has read nothing."""
    number, runs = counts(told), told["runs"]
    flicker = {name: run[MEASURED_AS]["aligned"] for name, run in runs.items()}
    flicker["base"] = runs["alone"][MEASURED_AS]["base"]
    said = {"base": "before", "alone": f"paid for {PROXY} alone", "several": "several rewards, anchored and guarded"}
    return [
        f"{said[name]}: {number[name]} of {told['videos']} videos show what was asked for, flicker {flicker[name]:.4f}"
        for name in said
    ]


def table_row(name: str, runs: Mapping[str, Any]) -> dict[str, Any]:
    """One measure of the three policies as text."""
    digits = 4 if name in (MEASURED_AS, "motion_energy") else 3
    lower = " (lower is better)" if name in LOWER_IS_BETTER else ""
    return {
        "name": name.replace("_", " "),
        "first": name == "right",
        "meaning": MEANINGS[name] + lower,
        "base": f"{runs['alone'][name]['base']:.{digits}f}",
        "cells": [
            {"value": f"{run[name]['aligned']:.{digits}f}", "verdict": verdict(name, *run[name]["ci95"]),
             "interval": " to ".join(signed(end, digits) for end in run[name]["ci95"])}
            for run in runs.values()
        ],
    }  # fmt: skip


def along(runs: Mapping[str, RunFolder], metric: str, title: str, caption: str) -> Chart:
    """A metric over the steps of both runs."""
    data = []
    for (name, folder), colour in zip(runs.items(), (WARNING, ALIGNED), strict=True):
        records = folder.metrics()
        data.append({
            "type": "scatter", "mode": "lines", "x": [record["step"] + 1 for record in records],
            "y": numbers(records, metric), "name": TITLES[name], "line": {"color": colour, "width": 1.8},
            "hovertemplate": "%{y:.4g}",
        })  # fmt: skip
    return chart(title, caption, data, {"xaxis": axis("step"), "yaxis": axis(), "showlegend": True})
