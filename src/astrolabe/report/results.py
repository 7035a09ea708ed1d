"""What an evaluation says, in words and in table rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astrolabe.evaluation.suites import ATTRIBUTES, LOWER_IS_BETTER, MEASURES
from astrolabe.runs.adapter import RunAdapter
from astrolabe.runs.folder import RunFolder
from astrolabe.runtime.errors import UserError

MEANINGS = {
    "joint": "share of videos that are right and well made",
    "right": "share of videos with colour, shape and motion all as asked",
    "made": "share of videos that are vivid, clean and smooth enough",
    "colour": "share of videos with the colour asked for",
    "shape": "share of videos with the shape asked for",
    "motion": "share of videos with the motion asked for",
    "vividness": "contrast with the background; 1 is the colour's own",
    "cleanliness": "1 when nothing but the object is visible",
    "smoothness": "1 when the object moves without jitter",
    "flicker": "unexplained change from frame to frame",
    "motion_energy": "mean change between neighbouring frames; neither more nor less is better",
}
WORDS = {"vividness": "vivid", "cleanliness": "clean", "smoothness": "smooth"}  # conditions as yes or no
UNBOUNDED = ("flicker", "motion_energy")  # not in [0, 1], and small: one more digit, and no place on a common scale
NEUTRAL = ("motion_energy",)


@dataclass(frozen=True)
class Strip:
    """A difference and its interval on a scale from -reach to reach, in percent of the width."""

    low: float
    width: float
    point: float


@dataclass(frozen=True)
class Row:
    """One measure of the table, as text. ``verdict`` is better, worse, changed (without a direction) or unclear."""

    name: str
    meaning: str
    part: bool  # one of the parts of the joint oracle
    lower_is_better: bool
    base: str
    aligned: str
    difference: str
    interval: str
    verdict: str
    strip: Strip | None


@dataclass(frozen=True)
class Part:
    """What one condition brings of a difference: a share of all videos, and how wide its bar is, in percent."""

    name: str
    points: float
    width: float


@dataclass(frozen=True)
class Headline:
    """The joint oracle: in videos, in percent, and in points."""

    before: int
    after: int
    mended: int
    broken: int
    base: str
    aligned: str
    difference: str
    low: str
    high: str
    verdict: str
    videos: int
    prompts: int
    seeds: int
    split: str


def evaluation_file(folder: RunFolder, adapter: RunAdapter | None = None) -> Path:
    """Where the evaluation of an adapter is, if there is one; for the run alone the finished adapter's, else that of
    the newest checkpoint that has one."""
    if adapter is not None and adapter.name:
        return folder.path / f"evaluation-{adapter.name}.json"
    whole = folder.path / "evaluation.json"
    of_steps = sorted(folder.path.glob("evaluation-step_*.json"))
    return of_steps[-1] if adapter is None and of_steps and not whole.exists() else whole


def read_evaluation(path: Path, subject: str) -> dict[str, Any] | None:
    """An ``evaluation.json``, or None when there is none; UserError when it is broken. ``subject`` was evaluated."""
    if not path.exists():
        return None
    again = f"run `astrolabe evaluate {subject}` again"
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = [measure for measure in MEASURES if measure not in result["measures"]]
        missing += [part for part in ("decomposition", "mended", "broken", "shown") if part not in result]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not readable ({error}); {again}") from error
    if missing:
        raise UserError(f"{path}: no {', '.join(missing)}; {again}")
    return result


def headline(result: Mapping[str, Any]) -> Headline:
    """The one number that matters, with its uncertainty."""
    joint = result["measures"]["joint"]
    low, high = joint["ci95"]
    seeds = len(result["seeds"])
    before, after = counted(result)
    return Headline(
        before=before,
        after=after,
        mended=result["mended"],
        broken=result["broken"],
        base=f"{100 * joint['base']:.1f}",
        aligned=f"{100 * joint['aligned']:.1f}",
        difference=points(joint["difference"]),
        low=points(low),
        high=points(high),
        verdict=verdict("joint", low, high),
        videos=result["videos"],
        prompts=result["videos"] // seeds,
        seeds=seeds,
        split=result["split"],
    )


def counted(result: Mapping[str, Any]) -> tuple[int, int]:
    """How many of the videos are right and well made, before and after."""
    joint, videos = result["measures"]["joint"], result["videos"]
    return round(joint["base"] * videos), round(joint["aligned"] * videos)


def one_line(result: Mapping[str, Any]) -> str:
    """What changed, for somebody who has read nothing."""
    before, after = counted(result)
    return f"Of {result['videos']} videos, {before} were right and well made before, and {after} after."


def parts(result: Mapping[str, Any]) -> list[Part]:
    """What every condition brings of the difference of joint."""
    found = {name: part["points"] for name, part in result["decomposition"].items()}
    most = max(map(abs, found.values())) or 1.0
    return [Part(name, value, 100 * abs(value) / most) for name, value in found.items()]


def table(result: Mapping[str, Any]) -> list[Row]:
    """Every measure, in the order of MEASURES."""
    measures = result["measures"]
    ends = [abs(end) for name in MEASURES if name not in UNBOUNDED for end in measures[name]["ci95"]]
    return [_row(name, measures[name], max(*ends, 0.05) * 1.08) for name in MEASURES]


def _row(name: str, values: Mapping[str, Any], reach: float) -> Row:
    low, high = values["ci95"]
    digits = 4 if name in UNBOUNDED else 3
    return Row(
        name=name.replace("_", " "),
        meaning=MEANINGS[name],
        part=name in ATTRIBUTES,
        lower_is_better=name in LOWER_IS_BETTER,
        base=f"{values['base']:.{digits}f}",
        aligned=f"{values['aligned']:.{digits}f}",
        difference=signed(values["difference"], digits),
        interval=f"{signed(low, digits)} to {signed(high, digits)}",
        verdict=verdict(name, low, high),
        strip=None if name in UNBOUNDED else _strip(low, high, values["difference"], reach),
    )


def _strip(low: float, high: float, difference: float, reach: float) -> Strip:
    return Strip(50 * (1 + low / reach), 50 * (high - low) / reach, 50 * (1 + difference / reach))


def verdict(name: str, low: float, high: float) -> str:
    """What an interval of the difference says of a measure."""
    if low <= 0 <= high:
        return "unclear"
    if name in NEUTRAL:
        return "changed"
    return "better" if (low > 0) != (name in LOWER_IS_BETTER) else "worse"


def long_reading(windows: list[Mapping[str, Any]]) -> str:
    """One sentence: how the joint oracle went from the first window to the last."""
    first, last = windows[0]["joint"], windows[-1]["joint"]
    low, high = last["ci95"]
    sure = "an interval that includes zero" if low <= 0 <= high else "an interval that excludes zero"
    return (
        f"From the first window to the last the base goes from {100 * first['base']:.0f} to {100 * last['base']:.0f} % "
        f"and the aligned model from {100 * first['aligned']:.0f} to {100 * last['aligned']:.0f} %; the aligned "
        f"model's lead of {points(first['difference'])} points becomes {points(last['difference'])} "
        f"({points(low)} to {points(high)}: {sure})."
    )


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return signed(100 * share, 1)


def signed(value: float, digits: int) -> str:
    """``+0.12`` or ``−0.12``, with a true minus; what rounds to zero has no sign."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(text[1:]) == 0 else text
