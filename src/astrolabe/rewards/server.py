"""A vision-language model behind any OpenAI-compatible server as a judge, by a rubric of the user's.

It is shown a few frames and asked for a number. A reply that is not exactly that (``rewards.replies``) is an error: the
video has no score then, never a score of zero. It is asked again only after errors that pass: at temperature 0 an
answer is final.
"""

from __future__ import annotations

import base64
import io
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import requests
import torch
from PIL import Image
from torch import Tensor

from astrolabe.rewards.base import check_batch
from astrolabe.rewards.frames import evenly, to_pictures
from astrolabe.rewards.replies import Failed, Reply, brief, error_text, passes, read_reply, score_of
from astrolabe.rewards.settings import ServerSettings
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import place, refusal
from astrolabe.types import PerSample, Video

BYTES, BYTES_A_TOKEN = 2**17, 64  # that a reply may have, and for each token that it may have
PASSING = (requests.Timeout, requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
ANSWER = '\nAnswer with nothing but JSON: {"score": NUMBER}, a number from LOW to HIGH.'


class ServerReward:
    """See the module. ``failures`` counts the videos that got no score, by reason; ``refusal`` is why the last did."""

    name = "server"

    def __init__(self, settings: ServerSettings):
        self.settings, self.failures, self.refusal = settings, dict[str, int](), ""
        self.rubric = read(settings.rubric, "rubric")
        self.key = read_key(settings.key) if settings.key else ""
        self.headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def __call__(self, video: Video, prompts: Sequence[str]) -> PerSample:
        """See ``rewards.base.Reward``; nan for a video that could not be judged, whatever the reason."""
        check_batch(self.name, video, prompts)
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            found = list(pool.map(self._judge, to_pictures(video).cpu(), prompts))
        failed = [failure for _, failure in found if failure]
        for failure in failed:
            self.failures[failure.reason] = self.failures.get(failure.reason, 0) + 1
            told = f"{failure.reason}: {failure.detail}" if failure.detail else failure.reason
            self.refusal = f"{self.name}: {told} ({self.settings.url}; {len(failed)} of {len(found)} videos)"
        return torch.tensor([score for score, _ in found])

    def _judge(self, frames: Tensor, prompt: str) -> tuple[float, Failed | None]:
        """The score of one video, or why it has none."""
        asked, wait = self._question(frames, prompt), self.settings.wait
        for left in reversed(range(self.settings.tries)):
            try:
                limits = self.settings.lowest, self.settings.highest, self.settings.max_tokens
                return score_of(self._ask(asked), *limits), None
            except Failed as failure:
                if not failure.again or not left:
                    return float("nan"), failure
                # The server's own word counts, but within bounds: it may say hours.
                time.sleep(min(max(wait * random.uniform(0.5, 1.0), failure.wait), self.settings.timeout))
                wait *= 2
        raise AssertionError("there is at least one try")

    def _question(self, frames: Tensor, prompt: str) -> dict[str, Any]:
        limits = ANSWER.replace("LOW", f"{self.settings.lowest:g}").replace("HIGH", f"{self.settings.highest:g}")
        content: list[dict[str, Any]] = [{"type": "text", "text": self.rubric.replace("{prompt}", prompt) + limits}]
        chosen = evenly(len(frames), min(self.settings.shown, len(frames)))
        content += [{"type": "image_url", "image_url": {"url": as_url(frame)}} for frame in frames[chosen]]
        return {"model": self.settings.model, "temperature": 0, "max_tokens": self.settings.max_tokens,
                "messages": [{"role": "user", "content": content}]}  # fmt: skip

    def _ask(self, asked: dict[str, Any]) -> Reply:
        """One request."""
        url, limit = f"{self.settings.url.rstrip('/')}/chat/completions", self.settings.timeout
        end = time.monotonic() + limit
        try:
            with requests.post(
                url, json=asked, headers=self.headers, timeout=limit, stream=True, allow_redirects=False
            ) as reply:
                if reply.is_redirect:  # frames go where the user said, and nowhere else
                    to = brief(reply.headers["Location"])
                    raise Failed(f"the server says {reply.status_code}, and points to {to}: name that as server.url")
                body = received(reply, end, BYTES + BYTES_A_TOKEN * self.settings.max_tokens)
        except requests.RequestException as error:
            passing = isinstance(error, PASSING) and not isinstance(error, requests.exceptions.SSLError)
            raise Failed(f"the server does not answer ({type(error).__name__})", again=passing) from None
        if self.key:  # some servers repeat a key that they refuse
            body = body.replace(self.key.encode(), b"***")
        status = reply.status_code
        if status != 200:
            raise Failed(f"the server says {status}", error_text(body), again=passes(status), wait=told_to_wait(reply))
        return read_reply(body)


def read(path: Path, what: str) -> str:
    """A text file; UserError when it cannot be read, or is empty."""
    try:
        text = place(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"server: {what} {refusal(path, error)}") from None
    except UnicodeDecodeError:
        raise UserError(f"server: {what} {path} cannot be read: it is not UTF-8 text") from None
    if not text.strip():
        raise UserError(f"server: {what} {path} is empty")
    return text


def read_key(path: Path) -> str:
    """An API key; UserError for what no header can carry."""
    key = read(path, "key").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"server: key {path} holds something else than one key: letters and digits on one line")
    return key


def received(reply: requests.Response, end: float, most: int) -> bytes:
    """The body of a reply, if it comes before ``end`` and is not over ``most`` bytes: it may come byte by byte."""
    body = bytearray()
    for byte in reply.iter_content(1):
        body += byte
        if time.monotonic() > end:
            raise Failed("the server does not answer in time", again=True)
        if len(body) > most:
            raise Failed("the reply is too long")
    return bytes(body)


def told_to_wait(reply: requests.Response) -> float:
    """Seconds after which the server wants to be asked again; 0 if it does not say."""
    said = reply.headers.get("Retry-After", "").strip()
    if said.isascii() and said.isdigit():
        return float(said)
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a time zone
        return 0.0


def as_url(frame: Tensor) -> str:
    """One frame [3, y, x] as a PNG within a URL."""
    file = io.BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).numpy()).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
