"""``report.html``: one file that shows a run, for readers who have not seen it before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from astrolabe import __version__
from astrolabe.evaluation.choice import RULE
from astrolabe.evaluation.suites import ATTRIBUTES
from astrolabe.experiment import TrainConfig
from astrolabe.report.figures import Records, names_under, numbers, smoothing_window, training_charts, window_chart
from astrolabe.report.media import Videos, read_groups, read_videos
from astrolabe.report.results import (
    MEANINGS,
    evaluation_file,
    headline,
    long_reading,
    parts,
    read_evaluation,
    signed,
    table,
)
from astrolabe.runs.adapter import RunAdapter
from astrolabe.runs.folder import RunFolder
from astrolabe.runtime.config import describe
from astrolabe.runtime.files import write_whole
from astrolabe.runtime.steps import FINISHED
from astrolabe.shapes.settings import FPS


def write_report(folder: RunFolder, adapter: RunAdapter | None = None) -> Path:
    """Write ``report.html`` into the run, whole or not at all, from whatever the run holds so far; returns its path.

    ``adapter``: a page about this one, ``report-step_000040.html`` say, of the run as it was then. The page needs no
    network and no other file. Parts that have no data yet are a sentence that says which command fills them. UserError
    when the folder is no run, or when a file in it is broken.
    """
    path = folder.path / f"{'-'.join(filter(None, ('report', adapter.name if adapter else '')))}.html"
    text = render_page(folder, adapter)
    write_whole(path, text)
    return path


def render_page(folder: RunFolder, adapter: RunAdapter | None = None) -> str:
    """The page as text."""
    cfg, until = folder.written(), adapter.step if adapter else None
    records = [line for line in folder.metrics() if until is None or line["step"] < until]
    return (
        environment()
        .get_template("page.html")
        .render(
            run=folder.path.resolve().name + str(adapter or "").removeprefix(str(folder.path)),
            folder=str(adapter or folder.path),
            place=str(folder.path),
            cfg=cfg,
            settings=describe(cfg),
            yaml=folder.config_file.read_text(encoding="utf-8"),
            version=__version__,
            plotly=get_plotlyjs(),
            groups=read_groups(folder, until),
            **training(folder, cfg, records),
            **evaluation(folder, adapter),
        )
    )


def environment() -> Environment:
    """Where templates are found. Prompts and paths are anybody's text: all is escaped but what is ours, marked
    `safe`."""
    made = Environment(
        loader=PackageLoader("astrolabe.report", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.globals["signed"] = signed
    return made


def training(folder: RunFolder, cfg: TrainConfig, records: Records) -> dict[str, Any]:
    """What the page says of training so far."""
    done = records[-1]["step"] + 1 if records else 0
    spent = [numbers(records, f"seconds/{name}") for name in names_under(records, "seconds")]
    return {
        "finished": folder.finished,
        "steps_done": done,
        "duration": duration(sum(value for phase in spent for value in phase if value is not None)),
        "smoothing": smoothing_window(len(records)),
        "charts": training_charts(records),
        "candidates": cfg.rollout.prompts * cfg.rollout.group_size,
    }


def evaluation(folder: RunFolder, adapter: RunAdapter | None = None) -> dict[str, Any]:
    """What the page says of the evaluation; every part is empty when there is none."""
    file = evaluation_file(folder, adapter)
    result = read_evaluation(file, str(adapter or folder.path))
    if result is None:
        return {"headline": None, "rows": [], "parts": [], "videos": None, "long": None, "judged": ""}
    videos = read_videos(file.with_suffix(".safetensors"), result, str(adapter or folder.path))
    long = long_part(result["long"], videos) if "long" in result else None
    of_step = FINISHED.fullmatch(file.stem.removeprefix("evaluation-"))
    judged = f" {int(of_step[1])} steps" if of_step else " (its best adapter)" if adapter and adapter.name else ""
    return {"headline": headline(result), "rows": table(result), "parts": parts(result), "videos": videos, "long": long,
            "judged": judged, "rule": RULE}  # fmt: skip


def long_part(long: Mapping[str, Any], videos: Videos) -> dict[str, Any]:
    """The videos twice as long: charts by window and how to read them."""
    clip, frames, windows = videos.frames, videos.long_frames, long["windows"]
    return {
        "joint": window_chart(windows, "joint", clip, frames, MEANINGS["joint"]),
        "parts": [window_chart(windows, measure, clip, frames, MEANINGS[measure]) for measure in ATTRIBUTES],
        "reading": long_reading(windows),
        "videos": long["videos"],
        "clip_seconds": f"{clip / FPS:.1f}",
        "seconds": f"{frames / FPS:.1f}",
    }


def duration(seconds: float) -> str:
    """A time for people: ``48 s``, ``5 min``, ``2 h 10 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
