"""The committed evidence belongs to the recipe and the weights of today, and shows what the README says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from astrolabe.experiment import TrainConfig
from astrolabe.recipes.shapes import shapes
from astrolabe.runtime.config import changes, from_dict
from benchmarks.ablations import interval
from benchmarks.evidence import RESULT, measured


@pytest.fixture(scope="module")
def evidence() -> dict[str, Any]:
    """What ``make evidence`` wrote."""
    content: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return content


def test_the_evidence_was_measured_with_the_recipe_and_the_weights_of_today(evidence: dict[str, Any]) -> None:
    recorded, today = evidence["measured"], measured()
    # A setting that is newer than the evidence must stand at its default, unless it changes no more than rounding.
    since = changes(from_dict(TrainConfig, recorded["recipe"], str(RESULT)), shapes())
    assert [str(change) for change in since if change.affects == "results"] == []
    assert recorded["files"] == today["files"]


def test_every_seed_lifts_and_training_does_by_more_than_chance(evidence: dict[str, Any]) -> None:
    joint = {name: run["measures"]["joint"] for name, run in evidence["runs"].items() if name.startswith("seed")}
    assert set(joint) == {"seed 0", "seed 1", "seed 2"}
    lifts = [values["difference"] for values in joint.values()]
    assert min(lifts) > 0 and interval(lifts)["ci95"][0] > 0  # over training seeds


def test_the_documentation_says_what_was_measured_of_every_run(evidence: dict[str, Any]) -> None:
    readme, shapes_page = (Path(name).read_text(encoding="utf-8") for name in ("README.md", "docs/shapes.md"))
    readme = " ".join(readme.split())
    for name, run in evidence["runs"].items():
        joint = run["measures"]["joint"]
        low, high = joint["ci95"]
        assert f"| {name} | {joint['base']:.3f} | {joint['aligned']:.3f} | {joint['difference']:+.3f} " in shapes_page
        lift, span = f"{100 * joint['difference']:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}"
        if name == "seed 0":  # the demo's own run, told at length
            assert f"from {100 * joint['base']:.1f} % to {100 * joint['aligned']:.1f} %" in readme
            assert f"difference of {lift} points with a 95 % interval of {span}" in readme
        else:
            assert f"{lift} ({span})" in readme, name


def test_a_run_under_random_rewards_does_not_lift(evidence: dict[str, Any]) -> None:
    assert evidence["runs"]["random rewards"]["measures"]["joint"]["ci95"][0] <= 0
