"""Scores that were computed before, by reward, its version, the video's pixels and the prompt."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path

from astrolabe.rewards.custom import spec_file
from astrolabe.rewards.settings import RewardSettings
from astrolabe.runtime.config import to_dict
from astrolabe.runtime.errors import UserError
from astrolabe.types import Video


def identity(settings: RewardSettings) -> str:
    """What tells one reward from another: its settings but weight and role, and the state of the files it names."""
    fields = {name: value for name, value in to_dict(settings).items() if name not in ("weight", "role", "span")}
    named = [spec_file(settings.name)] if settings.own else []
    named += [Path(settings.model.weights)] if settings.model and settings.model.weights else []
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in named if path and path.is_file()]
    return hashlib.sha256(json.dumps([fields, states], sort_keys=True).encode()).hexdigest()


class ScoreCache:
    """A file of scores; several processes may use it at once. UserError for a file that is something else."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = sqlite3.connect(path, timeout=60)
            with self._file:
                self._file.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score REAL NOT NULL)")
        except sqlite3.Error as error:
            raise UserError(f"{path}: not a cache of scores ({error}); name another file with --cache") from None

    @staticmethod
    def key(reward: str, video: Video, prompt: str) -> str:
        """Of one score; ``reward`` is an ``identity``."""
        pixels = hashlib.sha256((video * 255).round().byte().cpu().numpy().tobytes()).hexdigest()
        return hashlib.sha256(json.dumps([reward, pixels, list(video.shape), prompt]).encode()).hexdigest()

    def get(self, reward: str, video: Video, prompt: str) -> float | None:
        """The score, if it is known."""
        found = self._file.execute("SELECT score FROM scores WHERE key = ?", (self.key(reward, video, prompt),))
        row = found.fetchone()
        return None if row is None else float(row[0])

    def put(self, reward: str, video: Video, prompt: str, score: float) -> None:
        """Keep a score, unless it is not finite."""
        if score == score and abs(score) != float("inf"):
            with self._file:
                values = (self.key(reward, video, prompt), score)
                self._file.execute("INSERT OR REPLACE INTO scores VALUES (?, ?)", values)
