"""Videos of the report: mp4 in data URIs, so that the page needs nothing beside itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from astrolabe.report.results import WORDS
from astrolabe.runs.folder import RunFolder
from astrolabe.runtime.checkpoint import load_tensors
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.video import mp4_bytes
from astrolabe.shapes.settings import FPS

SCALE = 3  # every pixel is encoded this large: codecs blur edges of a single pixel
SMALL_SCALE = 2  # candidates are many, and shown small


@dataclass(frozen=True)
class Pair:
    """One prompt before and after, from the same noise; videos as data URIs. ``kind``: mended, broken, same or not
    said; ``met``: the conditions and whether they are met, before and after, where that is known."""

    prompt: str
    base: str
    aligned: str
    kind: str = ""
    met: tuple[list[tuple[str, bool]], ...] = ()


@dataclass(frozen=True)
class Videos:
    """The videos that an evaluation kept, and their lengths in video frames (0 when there are none)."""

    pairs: tuple[Pair, ...]
    long_pairs: tuple[Pair, ...]
    frames: int
    long_frames: int


@dataclass(frozen=True)
class Candidate:
    """One video of a group: its advantage, and every raw reward by name."""

    video: str
    advantage: float
    rewards: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Group:
    """The candidates of one prompt, best first; ``step`` counts from 1."""

    step: int
    prompt: str
    candidates: tuple[Candidate, ...]


def data_uri(video: Tensor, scale: int = SCALE) -> str:
    """``video`` [t, 3, y, x] (uint8) as an mp4 that an ``src`` can hold."""
    return "data:video/mp4;base64," + base64.b64encode(mp4_bytes(video, FPS, scale)).decode("ascii")


def read_videos(path: Path, result: Mapping[str, Any], subject: str) -> Videos:
    """The videos of an ``evaluation.safetensors``, beside what ``evaluation.json`` says of them. ``subject`` was
    evaluated."""
    again = f"run `astrolabe evaluate {subject}` again"
    tensors, _ = load_tensors(path)
    try:
        short = tuple(
            Pair(one["prompt"], *_both(tensors, "", row), one["kind"], (ticked(one["base"]), ticked(one["aligned"])))
            for row, one in enumerate(result["shown"])
        )
        long = tuple(
            Pair(prompt, *_both(tensors, "long_", row))
            for row, prompt in enumerate(result.get("long", {}).get("prompts", ()))
        )
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{path}: not what an evaluation writes ({error}); {again}") from error
    return Videos(short, long, tensors["base"].shape[1], tensors["long_base"].shape[1] if long else 0)


def _both(tensors: Mapping[str, Tensor], prefix: str, row: int) -> tuple[str, str]:
    return data_uri(tensors[f"{prefix}base"][row]), data_uri(tensors[f"{prefix}aligned"][row])


def ticked(met: Mapping[str, bool]) -> list[tuple[str, bool]]:
    """Conditions in words, and whether they are met."""
    return [(WORDS.get(name, name), holds) for name, holds in met.items()]


def read_groups(folder: RunFolder, until: int | None = None) -> tuple[Group, ...]:
    """The last group that training kept (of the first ``until`` steps) and the first, in this order; fewer when fewer
    were kept."""
    paths = sorted((folder.path / "samples").glob("step_*.safetensors"))
    paths = [path for path in paths if until is None or int(path.stem.removeprefix("step_")) < until]
    ends = paths if len(paths) < 2 else [paths[-1], paths[0]]
    return tuple(map(read_group, ends))


def read_group(path: Path) -> Group:
    """One kept group, its candidates in order of advantage, best first."""
    tensors, metadata = load_tensors(path)
    names = metadata["rewards"].split(",")
    advantages = tensors["advantages"].tolist()
    candidates = tuple(
        Candidate(
            video=data_uri(tensors["video"][row], SMALL_SCALE),
            advantage=advantages[row],
            rewards=tuple(zip(names, tensors["scores"][row].tolist(), strict=True)),
        )
        for row in sorted(range(len(advantages)), key=lambda row: -advantages[row])
    )
    return Group(int(path.stem.removeprefix("step_")) + 1, metadata["prompt"], candidates)
