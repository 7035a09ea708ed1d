"""Scores that were computed before, by reward, its version, the video's pixels and the prompt."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from importlib.util import find_spec
from pathlib import Path

from astrolabe import __version__
from astrolabe.rewards.custom import spec_file
from astrolabe.rewards.opening import RELEASED_REWARDS, TOKENIZER, RewardFiles
from astrolabe.rewards.settings import RewardSettings
from astrolabe.runtime.config import to_dict
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import exists, place
from astrolabe.types import Video


def identity(settings: RewardSettings, fps: float = 16.0, chunk_frames: int = 3) -> str:
    """What tells one reward from another: our version, its settings but weight and role (with nothing left to the
    machine), what it was opened for, and the state of the files that it is made of."""
    fields = {
        name: value for name, value in to_dict(settings).items() if name not in ("weight", "role", "span", "worker")
    }
    if settings.name in RELEASED_REWARDS:
        fields |= {"place": settings.reward_model.place, "computes_in": str(settings.reward_model.computes_in)}
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files_of(settings)]
    return hashlib.sha256(
        json.dumps([__version__, fields, fps, chunk_frames, states], sort_keys=True).encode()
    ).hexdigest()


def files_of(settings: RewardSettings) -> list[Path]:
    """The files that decide what a reward says, as far as its settings name them: its code, its weights, its rubric."""
    found: list[Path | None] = []
    if settings.own:
        module = None if spec_file(settings.name) else find_spec(settings.name.rpartition(":")[0])
        found.append(Path(module.origin) if module and module.origin else spec_file(settings.name))
    elif settings.server is not None:
        found.append(settings.server.rubric)
    elif settings.name in RELEASED_REWARDS:
        files = RewardFiles(settings.name, settings.reward_model, download=False)
        found += [files.weights(), files.tokenizer() / TOKENIZER[0]]
        found += [files.base_weights()] if settings.name == "aesthetic" else []
    return [place(path) for path in found if path and exists(place(path))]


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
    def key(reward: str, seen: Video | str, prompt: str) -> str:
        """Of one score; ``reward`` is an ``identity``, ``seen`` the video or the ``fingerprint`` of its frames."""
        if not isinstance(seen, str):
            pixels = hashlib.sha256((seen * 255).round().byte().cpu().numpy().tobytes()).hexdigest()
            seen = f"{pixels} {list(seen.shape)}"
        return hashlib.sha256(json.dumps([reward, seen, prompt]).encode()).hexdigest()

    def get(self, reward: str, seen: Video | str, prompt: str) -> float | None:
        """The score, if it is known."""
        row = self._do("SELECT score FROM scores WHERE key = ?", self.key(reward, seen, prompt))
        return None if row is None else float(row[0])

    def put(self, reward: str, seen: Video | str, prompt: str, score: float) -> None:
        """Keep a score, unless it is not finite."""
        if score == score and abs(score) != float("inf"):
            self._do("INSERT OR REPLACE INTO scores VALUES (?, ?)", self.key(reward, seen, prompt), score)

    def _do(self, words: str, *values: str | float) -> tuple[float] | None:
        try:
            with self._file:
                row: tuple[float] | None = self._file.execute(words, values).fetchone()
                return row
        except sqlite3.Error as error:
            raise UserError(f"{self.path}: not a cache of scores ({error}); name another file with --cache") from None
