"""The demo and its opposite, as commands, on two steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from astrolabe import recipes
from astrolabe.cli import main
from astrolabe.evaluation import abreast as abreast_module
from astrolabe.evaluation import paired
from astrolabe.evaluation.suites import MEASURES, Suite
from astrolabe.experiment import TrainConfig
from astrolabe.recipes.shapes import shapes_guarded, shapes_spoiled, shapes_tiny
from astrolabe.report.spoiled import counts
from astrolabe.shapes.captions import split
from astrolabe.shapes.world import Scene


def small(cfg: TrainConfig) -> TrainConfig:
    """Two steps of it."""
    tiny = shapes_tiny()
    optimizer = replace(cfg.optimizer, minibatches=1, micro_batch=2)
    return replace(cfg, steps=2, rollout=tiny.rollout, window=tiny.window, lora=tiny.lora, optimizer=optimizer)


class Few(Suite):
    """Nine scenes of every split."""

    @property
    def scenes(self) -> tuple[Scene, ...]:
        return split(self.split)[::5]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"shapes": shapes_tiny, "shapes_spoiled": lambda: small(shapes_spoiled()),
             "shapes_guarded": lambda: small(shapes_guarded())}  # fmt: skip
    monkeypatch.setattr(recipes, "RECIPES", recipes.RECIPES | found)
    for module in (paired, abreast_module):
        monkeypatch.setattr(module, "Suite", Few)
        monkeypatch.setattr(module, "process_count_for", lambda *_: 1)


def test_the_demo_says_in_one_line_what_changed(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["demo", "--out", str(tmp_path / "demo")])
    said = capsys.readouterr().out
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    before, after = (round(summary[who] * summary["videos"]) for who in ("base", "aligned"))
    line = f"Of {summary['videos']} videos, {before} were right and well made before, and {after} after."
    assert line in said.splitlines()
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count('<figure class="pair together">') == 8 + 3  # clips, and long videos
    assert {"metric", "base", "aligned", "difference", "ci95", "seconds", "quality", "right", "made"} <= {*summary}
    assert sum(part["points"] for part in summary["decomposition"].values()) == pytest.approx(summary["difference"])
    assert max(len(line) for line in said.splitlines() if str(tmp_path) not in line) <= 80


def test_what_goes_wrong_is_laid_beside_the_base(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "spoiled"
    main(["demo", "--spoiled", "--out", str(out)])
    said, told = capsys.readouterr().out, json.loads((out / "summary.json").read_text())
    assert set(told["runs"]) == {"alone", "several"} and all({*run} == {*MEASURES} for run in told["runs"].values())
    number = counts(told)
    for name, line in (("base", "before"), ("alone", "paid for steadiness alone"), ("several", "several rewards")):
        lines = [text for text in said.splitlines() if text.startswith(line)]
        assert len(lines) == 1 and f": {number[name]} of {told['videos']} videos" in lines[0]
    page = (out / "spoiled.html").read_text()
    assert page.count("<video") == 3 * len(told["shown"]) and len(told["shown"]) <= 6
    assert all(one["met"]["base"][name] for one in told["shown"] for name in ("colour", "shape", "motion"))
    # a finished one is kept, and one that was cut short goes on
    (out / "summary.json").rename(out / "kept.json")
    before = (out / "alone" / "metrics.jsonl").read_bytes()
    main(["demo", "--spoiled", "--out", str(out)])
    assert (out / "alone" / "metrics.jsonl").read_bytes() == before
    again = json.loads((out / "summary.json").read_text())
    assert again["runs"] == told["runs"] and not out.with_name("spoiled-2").exists()
    capsys.readouterr()
    main(["demo", "--spoiled", "--out", str(out)])
    assert (out.with_name("spoiled-2") / "spoiled.html").exists()
