"""``astrolabe rewards``: try a reward out, score video files, and compare two rewards on the same videos."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as plots
import torch
from jaxtyping import Float
from torch import Tensor

from astrolabe.doctor import Finding
from astrolabe.evaluation.statistics import rank_correlation
from astrolabe.rewards.base import Member, judged
from astrolabe.rewards.cache import ScoreCache, identity
from astrolabe.rewards.files import VideoFile
from astrolabe.rewards.opening import Opening
from astrolabe.rewards.settings import RewardSettings
from astrolabe.rewards.spec import parse_spec
from astrolabe.rl.advantages import indistinct
from astrolabe.runtime.errors import UserError, remark
from astrolabe.runtime.files import write_whole
from astrolabe.runtime.progress import progress
from astrolabe.runtime.video import frame_rate
from astrolabe.shapes.captions import caption, split
from astrolabe.shapes.settings import FPS
from astrolabe.shapes.world import render
from astrolabe.types import Video

CHUNK = 3  # latent frames at a time, as most released models make them
CLOSE = 1e-3  # how far a score may move with its company, beside the spread of scores
MOST_FPS = 1000.0
VIDEO_FILES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv",
               ".ogv", ".3gp", ".gif", ".apng")  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """What became of one file: its score, or why it has none."""

    path: Path
    score: float | None
    refusal: str = ""


def opened(settings: RewardSettings, fps: float = float(FPS), chunk_frames: int = CHUNK) -> Member:
    """The reward that the settings name, and what it sees."""
    return Member(Opening(fps=fps, chunk_frames=chunk_frames).reward(settings), frames=settings.frames)


def check(spec: str) -> Iterator[Finding]:
    """Whether a reward can be trained on; it is tried on videos of the shapes world."""
    member = opened(parse_spec(spec))
    yield Finding("opens", True, f"{member.reward.name}, {type(member.reward).__name__}")
    video, prompts = samples()
    before, began = video.clone(), time.perf_counter()
    try:
        scores, doubts = judged(member, video, prompts)
    except UserError as error:
        yield Finding("scores", False, str(error), "give one finite score a video")
        return
    seconds = time.perf_counter() - began
    well = bool(scores.isfinite().all())
    yield Finding("scores", well, f"one a video: {', '.join(f'{score:.4g}' for score in scores.tolist())}",
                  getattr(member.reward, "refusal", "") or "a score that is not finite drops its video")  # fmt: skip
    if bool(doubts.any()):
        yield Finding("uncertainty", True, ", ".join(f"{doubt:.3g}" for doubt in doubts.tolist()))
    spread = float(scores.max() - scores.min())
    differs = not spread <= float(indistinct(scores, 0))  # nan is told above
    yield Finding("range", differs, f"{float(scores.min()):.4g} to {float(scores.max()):.4g} on four videos",
                  "all scores are alike: nothing could be learned from them")  # fmt: skip
    yield Finding("leaves its input alone", torch.equal(video, before), "videos as they came", "do not write to video")
    yield from check_again(member, before, prompts, scores)
    yield Finding("speed", True, f"{1000 * seconds / len(prompts):.0f} ms a video of 45 frames of 64 x 64")


def check_again(member: Member, video: Video, prompts: list[str], scores: Tensor) -> Iterator[Finding]:
    """Whether the same videos have the same scores once more, each by itself, and in another order."""
    rule, alone = "repeats itself", range(len(prompts))
    try:
        changed = float((scores - judged(member, video.clone(), prompts)[0]).abs().max())
        yield Finding(rule, changed == 0, f"largest change {changed:.2g}",
                      "the same video and prompt should have the same score: seed what is random")  # fmt: skip
        rule = "judges each video alone"
        single = torch.cat([judged(member, video[i : i + 1].clone(), prompts[i : i + 1])[0] for i in alone])
        turned = judged(member, video.flip(0).contiguous(), prompts[::-1])[0].flip(0)
        away = max(float((scores - other).abs().max()) for other in (single, turned))
        spread = float(scores.max() - scores.min())
        yield Finding(rule, away <= CLOSE * max(spread, 1e-6), f"largest change {away:.2g}",
                      "a score must not depend on what else is in the batch, nor on its place")  # fmt: skip
    except UserError as error:
        yield Finding(rule, False, str(error), "it judged these videos before; batches come in any size and order")


def samples() -> tuple[Video, list[str]]:
    """Four videos with their prompts: as it should be, standing still, pale, and noisy."""
    scenes = split("test")[:: len(split("test")) // 4][:4]
    rng = torch.Generator().manual_seed(0)
    video = render(scenes, 45, rng)
    video[1] = video[1, :1]
    video[2] *= 0.5
    video[3] = torch.rand(video[3].shape, generator=rng)
    return video, [caption(scene, 0) for scene in scenes]


def score_files(
    spec: str, paths: Sequence[Path], prompts: Sequence[str], cache: Path | None, chunk_frames: int = CHUNK,
    fps: float = float(FPS),
) -> Iterator[Judged]:  # fmt: skip
    """The score of every file, one after another; a file that cannot be judged does not keep the others from it.

    All are seen at ``fps`` frames a second, so that measures of motion compare; it is said which come at another rate.
    """
    if not 0 < fps <= MOST_FPS:
        raise UserError(f"--fps {fps:g}: expected frames a second above zero, and {MOST_FPS:g} at most")
    if chunk_frames < 1:
        raise UserError(f"--chunk-frames {chunk_frames}: a chunk has one latent frame at least")
    with progress(f"scoring with {spec}", len(paths), "videos") as task:
        for found in one_by_one(spec, paths, prompts, cache, chunk_frames, fps):
            task.advance()
            yield found


def one_by_one(
    spec: str, paths: Sequence[Path], prompts: Sequence[str], cache: Path | None, chunk_frames: int, fps: float
) -> Iterator[Judged]:
    """See ``score_files``."""
    settings, store = parse_spec(spec), ScoreCache(cache) if cache else None
    member, whose = opened(settings, fps, chunk_frames), identity(settings, fps, chunk_frames) if store else ""
    remark_rates(paths, fps)
    for path, prompt in zip(paths, prompts, strict=True):
        try:
            file = VideoFile(path, fps)
            seen = file.fingerprint() if store else ""
            known = store.get(whose, seen, prompt) if store else None
            if known is None:
                found, _, why = file.score(member, prompt)
                if not bool(found.isfinite()):
                    raise UserError(why or f"{member.reward.name}: no finite score")
                known = float(found)
                if store:
                    store.put(whose, seen, prompt, known)
            yield Judged(path, known)
        except UserError as error:
            yield Judged(path, None, str(error).removeprefix(f"{path}: "))


def remark_rates(paths: Sequence[Path], fps: float) -> None:
    """Say which files come at another rate than the one they are seen at."""
    others = [(path, rate) for path in paths if (rate := rate_of(path)) and abs(rate - fps) > 0.01 * fps]
    if others:
        (first, rate), more = others[0], f", and {len(others) - 1} more at other rates" if others[1:] else ""
        remark(f"{first} comes at {rate:g} frames a second{more}: seen at {fps:g}, each frame at its time")


def rate_of(path: Path) -> float:
    """Frames a second of a file; 0 for one that cannot be read."""
    try:
        return frame_rate(path)
    except UserError:
        return 0.0


def files_and_prompts(places: Sequence[Path], prompt: str | None) -> tuple[list[Path], list[str]]:
    """Video files, and those of folders, with what was asked for: ``prompt``, or what stands beside them."""
    paths: list[Path] = []
    prompts: list[str] = []
    for place in places:
        if place.is_dir():
            found, asked = videos_in(place, prompt)
        else:
            found, asked = [place], [prompt or listed_in(place.parent).get(place.name, "")]
        paths, prompts = paths + found, prompts + asked
    return paths, prompts


def videos_in(folder: Path, prompt: str | None) -> tuple[list[Path], list[str]]:
    """The videos of a folder and their prompts: from what ``astrolabe generate`` wrote beside them, or one for all.
    What is left out is said. UserError when there is nothing, or a prompt is unknown."""
    said = listed_in(folder)
    there = sorted(path for path in folder.glob("*") if not path.name.startswith("."))
    videos = [path.name for path in there if path.suffix.lower() in VIDEO_FILES and not path.stem.endswith(".part")]
    if said:
        left, why = [name for name in videos if name not in said], "videos.jsonl does not list them"
    else:
        left, why = [path.name for path in there if path.name not in videos], "no whole videos by their names"
        said = dict.fromkeys(videos, prompt or "")
        if said and not prompt:
            raise UserError(f"{folder}: has no videos.jsonl with the prompts; give --prompt for all of them")
    if not said:
        raise UserError(f"{folder}: no videos there ({', '.join(VIDEO_FILES)})")
    if left:
        shown = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        remark(f"{folder}: {len(left)} left out ({why}): {shown}")
    return [folder / name for name in said], [prompt or text for text in said.values()]


def listed_in(folder: Path) -> dict[str, str]:
    """File names and prompts in the order of the names, as ``astrolabe generate`` lists them; every process of several
    has written a list of its own. UserError for a list that is something else."""
    said: dict[str, str] = {}
    for listed in sorted([*folder.glob("videos.jsonl"), *folder.glob("videos.rank*.jsonl")]):
        try:
            lines = [json.loads(line) for line in listed.read_text(encoding="utf-8").split("\n") if line.strip()]
            said |= {str(line["file"]): str(line["prompt"] or "") for line in lines}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{listed}: not what `astrolabe generate` writes ({error})") from None
    return dict(sorted(said.items()))


@dataclass(frozen=True)
class Correlated:
    """How two rewards rank the same videos."""

    names: tuple[str, str]
    scores: Float[Tensor, "2 n"]
    correlation: float
    ci95: tuple[float, float]
    refused: tuple[str, ...]


def correlate(
    one: str, other: str, folder: Path, prompt: str | None, cache: Path | None, chunk_frames: int = CHUNK,
    fps: float = float(FPS),
) -> Correlated:  # fmt: skip
    """Spearman's rank correlation of two rewards over the videos of a folder, with its 95 % bootstrap interval."""
    paths, prompts = videos_in(folder, prompt)
    columns = [list(score_files(spec, paths, prompts, cache, chunk_frames, fps)) for spec in (one, other)]
    both = [pair for pair in zip(*columns, strict=True) if all(found.score is not None for found in pair)]
    refused = tuple(f"{found.path.name}: {found.refusal}" for column in columns for found in column if found.refusal)
    if len(both) < 3:
        raise UserError(
            f"{folder}: only {len(both)} videos have both scores, and ranks need 3; {'; '.join(refused[:2])}"
        )
    scores = torch.tensor([[found.score for found in pair] for pair in both], dtype=torch.float64).T
    correlation, ci95 = rank_correlation(scores[0], scores[1])
    return Correlated((one, other), scores, correlation, ci95, refused)


def draw(found: Correlated, path: Path) -> None:
    """A page with the two scores of every video against each other."""
    low, high = found.ci95
    figure = plots.Figure(plots.Scatter(x=found.scores[0].tolist(), y=found.scores[1].tolist(), mode="markers"))
    figure.update_layout(
        title=f"rank correlation {found.correlation:.3f} [{low:.3f}, {high:.3f}], {found.scores.shape[1]} videos",
        xaxis_title=found.names[0], yaxis_title=found.names[1], template="simple_white", width=760, height=620,
    )  # fmt: skip
    write_whole(path, figure.to_html(include_plotlyjs=True))
