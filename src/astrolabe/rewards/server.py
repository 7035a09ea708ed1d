"""A vision-language model behind any OpenAI-compatible server as a judge, by a rubric of the user's.

It is shown a few frames and asked for a number. A reply that is not exactly that is an error: the video has no score
then, never a score of zero.
"""

from __future__ import annotations

import base64
import io
import json
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
import torch
from PIL import Image
from torch import Tensor

from astrolabe.rewards.base import check_batch
from astrolabe.rewards.frames import evenly, to_pictures
from astrolabe.rewards.settings import ServerSettings
from astrolabe.runtime.errors import UserError
from astrolabe.types import PerSample, Video

LONGEST, SAID = 2**17, 120  # bytes of a reply; characters of an error that are told
ANSWER = '\nAnswer with nothing but JSON: {"score": NUMBER}, a number from LOW to HIGH.'


class Failed(Exception):
    """One request came to nothing; ``final`` ones would again."""

    def __init__(self, reason: str, final: bool = False):
        super().__init__(reason)
        self.final = final


class ServerReward:
    """See the module. ``failures`` counts the videos that got no score, by reason; ``refusal`` is why the last did."""

    name = "server"

    def __init__(self, settings: ServerSettings):
        self.settings, self.failures, self.refusal = settings, dict[str, int](), ""
        self.rubric = read(settings.rubric, "rubric")
        self.headers = {"Authorization": f"Bearer {read_key(settings.key)}"} if settings.key else {}

    def __call__(self, video: Video, prompts: Sequence[str]) -> PerSample:
        """See ``rewards.base.Reward``; nan for a video that could not be judged, whatever the reason."""
        check_batch(self.name, video, prompts)
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            found = list(pool.map(self._judge, to_pictures(video).cpu(), prompts))
        reasons = [reason for _, reason in found if reason]
        for reason in reasons:
            self.failures[reason] = self.failures.get(reason, 0) + 1
            self.refusal = f"{self.name}: {reason} ({self.settings.url}; {len(reasons)} of {len(found)} videos)"
        return torch.tensor([score for score, _ in found])

    def _judge(self, frames: Tensor, prompt: str) -> tuple[float, str]:
        """The score of one video and why it has none."""
        wait = self.settings.wait
        for number in range(self.settings.tries):
            if number:
                time.sleep(wait * random.uniform(0.5, 1.0))
                wait *= 2
            try:
                return self._ask(frames, prompt), ""
            except Failed as failure:
                reason = str(failure)
                if failure.final:
                    break
        return float("nan"), reason

    def _ask(self, frames: Tensor, prompt: str) -> float:
        limits = ANSWER.replace("LOW", f"{self.settings.lowest:g}").replace("HIGH", f"{self.settings.highest:g}")
        content: list[dict[str, Any]] = [{"type": "text", "text": self.rubric.replace("{prompt}", prompt) + limits}]
        chosen = evenly(len(frames), min(self.settings.shown, len(frames)))
        content += [{"type": "image_url", "image_url": {"url": as_url(frame)}} for frame in frames[chosen]]
        asked = {"model": self.settings.model, "temperature": 0, "max_tokens": 64,
                 "messages": [{"role": "user", "content": content}]}  # fmt: skip
        try:
            place = f"{self.settings.url.rstrip('/')}/chat/completions"
            limit = self.settings.timeout
            end = time.monotonic() + limit
            with requests.post(place, json=asked, headers=self.headers, timeout=limit, stream=True) as reply:
                body = received(reply, end)
        except requests.RequestException as error:
            raise Failed(f"the server does not answer ({type(error).__name__})") from None
        if reply.status_code != 200:
            mine = 400 <= reply.status_code < 500 and reply.status_code not in (408, 429)
            why = " ".join(body.decode(errors="replace").split())[:SAID]
            raise Failed(f"the server says {reply.status_code}: {why}", final=mine)
        try:
            text = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise Failed("the reply is no chat completion") from None
        return self._score(text)

    def _score(self, text: Any) -> float:
        try:
            answer = json.loads(text, object_pairs_hook=tuple)  # pairs, so that a field given twice shows
        except (ValueError, TypeError, RecursionError):
            raise Failed("the answer is not JSON") from None
        if not isinstance(answer, tuple) or [name for name, _ in answer] != ["score"]:
            raise Failed("the answer has other fields than score")
        score = answer[0][1]
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise Failed("the score is no number")
        if not self.settings.lowest <= score <= self.settings.highest:
            raise Failed(f"the score is not within {self.settings.lowest:g} and {self.settings.highest:g}")
        return float(score)


def read(path: Path, what: str) -> str:
    """A text file; UserError when it cannot be read, or is empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"server: {what} {path} cannot be read ({error})") from None
    if not text.strip():
        raise UserError(f"server: {what} {path} is empty")
    return text


def read_key(path: Path) -> str:
    """An API key; UserError for what no header can carry."""
    key = read(path, "key").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"server: key {path} holds something else than one key: letters and digits on one line")
    return key


def received(reply: requests.Response, end: float) -> bytes:
    """The body of a reply, if it comes before ``end`` and is not too long: a server may send it byte by byte."""
    body = b""
    for byte in reply.iter_content(1):
        body += byte
        if time.monotonic() > end:
            raise Failed("the server does not answer in time")
        if len(body) > LONGEST:
            raise Failed("the reply is too long")
    return body


def as_url(frame: Tensor) -> str:
    """One frame [3, y, x] as a PNG within a URL."""
    file = io.BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).numpy()).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
