"""The report: one page that needs nothing beside itself, from whatever a run holds so far."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import torch

from astrolabe.evaluation.choice import RULE
from astrolabe.evaluation.decomposition import CONDITIONS
from astrolabe.evaluation.suites import MEASURES
from astrolabe.recipes import RECIPES
from astrolabe.report.figures import smooth, training_charts
from astrolabe.report.page import write_report
from astrolabe.report.results import long_reading, one_line, signed, table, verdict
from astrolabe.runs.folder import ADAPTER, RunFolder
from astrolabe.runtime.checkpoint import save_tensors
from astrolabe.runtime.config import save_yaml
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.tracking import MetricsLog, read_metrics

SCRIPT = "<script>alert('a prompt')</script>"
ADVANTAGES = (-0.5, 1.25, 0.0, -0.75)
STEPS = 4


def videos(count: int, frames: int = 9) -> torch.Tensor:
    return torch.randint(0, 255, (count, frames, 3, 16, 16), dtype=torch.uint8)


def comparison(base: float, difference: float, reach: float = 0.05) -> dict[str, Any]:
    ci95 = [difference - reach, difference + reach]
    return {"base": base, "aligned": base + difference, "difference": difference, "ci95": ci95}


def evaluation(long: bool = True) -> dict[str, Any]:
    measures = {name: comparison(0.6, 0.1) for name in MEASURES} | {"motion": comparison(0.9, -0.2)}
    shown = [
        {"row": row, "noise": 0, "kind": kind, "prompt": prompt, "base": dict.fromkeys(CONDITIONS, kind == "broken"),
         "aligned": dict.fromkeys(CONDITIONS, kind == "mended")}
        for row, (kind, prompt) in enumerate([("mended", "a red circle bouncing"), ("broken", f"held out {SCRIPT}")])
    ]  # fmt: skip
    result: dict[str, Any] = {
        "split": "test", "seeds": [1, 2], "videos": 10, "frames": 3, "measures": measures, "shown": shown,
        "mended": 2, "broken": 1, "decomposition": {name: {"points": 0.02, "share": 0.2} for name in CONDITIONS},
    }  # fmt: skip
    windows = [{name: comparison(0.6, 0.2 - 0.1 * window) for name in MEASURES} for window in range(4)]
    return result | ({"long": {"frames": 6, "videos": 8, "seeds": [1, 2], "windows": windows,
                               "prompts": [one["prompt"] for one in shown]}} if long else {})  # fmt: skip


def make_run(path: Path) -> RunFolder:
    """A run whose training has begun: configuration, metrics, two kept groups."""
    path.mkdir()
    save_yaml(RECIPES["shapes_tiny"](), path / "config.yaml")
    log = MetricsLog(path / "metrics.jsonl")
    for step in range(STEPS):
        log.write(step, {
            "reward/shape_fit": 0.5 + 0.1 * step, "group_std/shape_fit": 0.1, "loss": 0.02, "grad_norm": float("nan"),
            "old_gap": 0.001, "useful_samples": 1.0, "seconds/rollout": 2.0, "seconds/update": 3.0,
        })  # fmt: skip
    (path / "samples").mkdir()
    for step in (0, STEPS - 1):
        size = len(ADVANTAGES)
        tensors = {"video": videos(size), "scores": torch.rand(size, 2), "advantages": torch.tensor(ADVANTAGES)}
        metadata = {"prompt": f"group {step} {SCRIPT}", "rewards": "shape_fit,motion_fit"}
        save_tensors(path / "samples" / f"step_{step:06d}.safetensors", tensors, metadata)
    return RunFolder(path)


def evaluate(folder: RunFolder, long: bool = True) -> RunFolder:
    """Add what ``astrolabe evaluate`` would, and the adapter that it needs."""
    save_tensors(folder.path / ADAPTER, {"weight": torch.zeros(1)}, {})
    tensors = {"base": videos(2), "aligned": videos(2)}
    if long:
        tensors |= {"long_base": videos(2, 21), "long_aligned": videos(2, 21)}
    save_tensors(folder.path / "evaluation.safetensors", tensors, {})
    (folder.path / "evaluation.json").write_text(json.dumps(evaluation(long)), encoding="utf-8")
    return folder


class Page(HTMLParser):
    """What a browser would see: text outside of scripts, resources, the JSON of the charts, open elements."""

    def __init__(self, html: str):
        super().__init__()
        self.resources: list[str] = []
        self.labels: list[str] = []
        self.charts: list[str] = []
        self.scripts = 0
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.resources += [values[name] for name in ("src", "href", "poster", "srcset") if name in values]
        self.labels += [values["aria-label"]] if tag == "video" else []
        self.scripts += tag == "script"
        if tag in ("script", "style"):
            self._inside = values.get("type", tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "application/json":
            self.charts.append(data)
        elif not self._inside:
            self.text += data


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = evaluate(make_run(tmp_path_factory.mktemp("runs") / "full"))
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_is_one_file_that_asks_the_network_for_nothing(html: str, page: Page):
    assert page.resources and all(source.startswith("data:") for source in page.resources)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in html
    assert html.count("* plotly.js v") == 1


def test_a_prompt_is_shown_as_text_and_never_run(html: str, page: Page):
    assert SCRIPT not in html
    assert f"held out {SCRIPT}" in page.text and f"group 0 {SCRIPT}" in page.text
    assert page.scripts == len(page.charts) + 2  # plotly.js and the page's own


def test_every_measure_appears_with_its_verdict(html: str, page: Page):
    for name in MEASURES:
        assert re.search(rf'<th scope="row">{name.replace("_", " ")}\b', html), name
    assert "60.0 %" in page.text and "70.0 %" in page.text and "+10.0" in page.text
    assert page.text.count("+2.0") == len(CONDITIONS)
    verdicts = {row.name.replace(" ", "_"): row.verdict for row in table(evaluation())}
    odd = {"motion": "worse", "flicker": "worse", "motion_energy": "changed"}
    assert verdicts == dict.fromkeys(MEASURES, "better") | odd
    assert "lower is better" in page.text


def test_the_page_opens_with_one_line_and_pairs_with_ticks_and_crosses(html: str, page: Page):
    line = "Of 10 videos, 6 were right and well made before, and 7 after."
    assert one_line(evaluation()) == line and line in " ".join(page.text.split())
    first = html[html.index("<h1>") : html.index('class="lead"')]
    pairs = first.split('<figure class="pair')[1:]
    assert [pair.count("✓") for pair in pairs] == [pair.count("✗") for pair in pairs] == [len(CONDITIONS)] * 2
    mended, broken = ([pair.split('class="tag')[side].count("✓") for side in (1, 2)] for pair in pairs)
    assert (mended, broken) == ([0, len(CONDITIONS)], [len(CONDITIONS), 0])
    assert RULE in " ".join(first.split()) and "2 videos were mended and 1 broken" in " ".join(first.split())


def test_candidates_come_in_order_of_advantage(html: str, page: Page):
    shown = re.findall(r'class="advantage"><span>advantage</span><b>([^<]+)</b>', html)
    best_first = [signed(advantage, 2) for advantage in sorted(ADVANTAGES, reverse=True)]
    assert shown == best_first * 2
    assert page.text.index(f"Step {STEPS}") < page.text.index("Step 1 ")


def test_every_video_says_what_it_shows(page: Page):
    assert len(page.labels) == 2 * 2 + 2 * 2 + 2 * len(ADVANTAGES)
    assert all(page.labels)
    assert sum(source.startswith("data:video/mp4;base64,") for source in page.resources) == len(page.labels)


def test_every_chart_is_a_figure_that_plotly_accepts(page: Page):
    figures = [go.Figure(json.loads(text)) for text in page.charts]
    assert len(figures) == 4 + 6  # by window; over training
    assert all(figure.data for figure in figures)
    assert tuple(figures[0].layout.yaxis.range) == (0, 1.04)


def test_error_bars_end_where_the_interval_of_the_difference_ends(page: Page):
    base, aligned = json.loads(page.charts[0])["data"]
    low, high = evaluation()["long"]["windows"][0]["joint"]["ci95"]
    assert aligned["y"][0] - aligned["error_y"]["arrayminus"][0] == pytest.approx(base["y"][0] + low)
    assert aligned["y"][0] + aligned["error_y"]["array"][0] == pytest.approx(base["y"][0] + high)


def test_a_run_without_evaluation_names_the_command(tmp_path: Path):
    folder = make_run(tmp_path / "young")
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    assert f"astrolabe evaluate {folder.path}" in text
    assert f"astrolabe train {folder.path}/config.yaml --out {folder.path}" in text
    assert "held-out videos the aligned" not in text


def test_an_evaluation_without_long_videos_says_how_to_have_them(tmp_path: Path):
    folder = evaluate(make_run(tmp_path / "short"), long=False)
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    assert "Long videos were left out" in text and "+10.0" in text


def test_a_run_that_has_only_begun_gives_a_page(tmp_path: Path):
    save_yaml(RECIPES["shapes_tiny"](), tmp_path / "config.yaml")
    text = Page(write_report(RunFolder(tmp_path)).read_text(encoding="utf-8")).text
    assert "0 of 2 steps" in text and "No group has been kept yet" in text


def test_what_is_no_run_or_broken_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="is no run"):
        write_report(RunFolder(tmp_path))
    folder = evaluate(make_run(tmp_path / "broken"))
    (folder.path / "evaluation.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="astrolabe evaluate"):
        write_report(folder)
    assert not (folder.path / "report.html").exists()


def test_a_guard_has_a_chart_of_its_own_beside_the_base():
    line = {"step": 0, "lr": 1.0, "watch/flicker": 0.02, "watch/base_flicker": 0.01, "watch/rate": 1.0}
    charts = {chart.title: json.loads(chart.spec)["data"] for chart in training_charts([line])}
    assert list(charts) == ["Guard: flicker", "Learning rate"]
    assert {trace["name"]: trace["y"] for trace in charts["Guard: flicker"]} == {"this run": [0.02], "base": [0.01]}
    assert not training_charts([{"step": 0, "lr": 1.0}])
    spoke = line | {"step": 4, "alarm/flicker/slow": 1.0}
    guard, rate = (json.loads(chart.spec)["layout"] for chart in training_charts([line, spoke]))
    assert [(mark["x"], mark["text"]) for mark in guard["annotations"]] == [(5, "slow")]
    assert [shape["x0"] for shape in guard["shapes"]] == [5] and not rate["shapes"]


def test_a_metric_that_is_not_finite_is_a_gap(tmp_path: Path):
    charts = training_charts(read_metrics(make_run(tmp_path / "run").path / "metrics.jsonl"))
    norm = next(chart for chart in charts if chart.title == "Gradient norm")
    assert json.loads(norm.spec)["data"][0]["y"] == [None] * STEPS
    assert smooth([1.0, None, 3.0], 3) == [1.0, None, 3.0]


@pytest.mark.parametrize(
    ("measure", "low", "high", "said"),
    [("joint", 0.1, 0.2, "better"), ("joint", -0.2, -0.1, "worse"), ("joint", -0.1, 0.1, "unclear"),
     ("flicker", 0.1, 0.2, "worse"), ("flicker", -0.2, -0.1, "better"), ("motion_energy", 0.1, 0.2, "changed")],
)  # fmt: skip
def test_a_verdict_knows_which_way_is_better(measure: str, low: float, high: float, said: str):
    assert verdict(measure, low, high) == said


def test_the_reading_of_long_videos_says_what_the_numbers_say():
    said = long_reading(evaluation()["long"]["windows"])
    assert "from 60 to 60 %" in said and "from 80 to 50 %" in said and "+20.0 points becomes −10.0" in said
