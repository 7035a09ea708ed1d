"""A judge behind a server: its answers are read strictly, and a server may misbehave."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from astrolabe.rewards.base import Member, attempt
from astrolabe.rewards.server import ServerReward
from astrolabe.rewards.settings import ServerSettings
from astrolabe.runtime.errors import UserError

VIDEO = torch.linspace(0, 1, 4).view(4, 1, 1, 1, 1).expand(4, 9, 3, 8, 8).contiguous()
PROMPTS = ["one", "two {braces}", "three", "four"]


def completion(content: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


def brightness(asked: dict[str, Any]) -> str:
    """An honest judge: ten times the brightness of the first frame."""
    picture = base64.b64decode(asked["messages"][0]["content"][1]["image_url"]["url"].partition(",")[2])
    pixel = Image.open(io.BytesIO(picture)).getpixel((0, 0))
    return json.dumps({"score": round(pixel[0] / 25.5, 3)})  # type: ignore[index]


class Server(ThreadingHTTPServer):
    """Answers with what ``answer(request, number of the request)`` gives: (status, body), or None to hang up."""

    daemon_threads = True

    def __init__(self, answer: Callable[[dict[str, Any], int], tuple[int, bytes] | None]):
        self.answer, self.seen = answer, list[dict[str, Any]]()
        self.busy, self.busiest, self.lock = 0, 0, threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append({"path": self.path, "key": self.headers.get("Authorization")} | asked)
            number = len(self.server.seen)
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
        answer = self.server.answer(asked, number)
        with self.server.lock:
            self.server.busy -= 1
        if answer is None:
            self.connection.close()
            return
        self.send_response(answer[0])
        self.send_header("Content-Length", str(len(answer[1])))
        self.end_headers()
        self.wfile.write(answer[1])

    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def serving(
    tmp_path: Path, answer: Callable[[dict[str, Any], int], tuple[int, bytes] | None], **fields: Any
) -> Iterator[tuple[Server, ServerReward]]:
    """A server, and a reward that asks it."""
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("Is it {prompt}?", encoding="utf-8")
    with Server(answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1/"
        asked: dict[str, Any] = {"url": url, "model": "judge", "rubric": rubric, "wait": 0.01, "timeout": 0.5} | fields
        yield server, ServerReward(ServerSettings(**asked))
        server.shutdown()


def test_it_shows_frames_and_reads_the_score(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n", encoding="utf-8")
    honest = lambda asked, number: (200, completion(brightness(asked)))  # noqa: E731
    with serving(tmp_path, honest, shown=3, key=tmp_path / "key") as (server, reward):
        torch.testing.assert_close(reward(VIDEO, PROMPTS), torch.tensor([0.0, 3.333, 6.667, 10.0]), atol=0.05, rtol=0)
        assert len(server.seen) == 4 and not reward.failures
        for asked in server.seen:
            text, *pictures = asked["messages"][0]["content"]
            assert asked["path"] == "/v1/chat/completions" and asked["key"] == "Bearer secret" and len(pictures) == 3
            assert asked["model"] == "judge" and "a number from 0 to 10" in text["text"]
        said = {asked["messages"][0]["content"][0]["text"].partition("?")[0] for asked in server.seen}
        assert said == {f"Is it {prompt}" for prompt in PROMPTS}


def test_no_more_requests_at_once_than_allowed(tmp_path: Path) -> None:
    def slow(asked: dict[str, Any], number: int) -> tuple[int, bytes]:
        time.sleep(0.05)
        return 200, completion('{"score": 1}')

    with serving(tmp_path, slow, concurrency=2) as (server, reward):
        reward(VIDEO.repeat(2, 1, 1, 1, 1), PROMPTS * 2)
        assert server.busiest == 2


@pytest.mark.parametrize("bad", [(500, b"no"), (429, b"later"), None, (200, b"garbage"), (200, completion("fine!"))])
def test_what_passes_is_tried_again(bad: tuple[int, bytes] | None, tmp_path: Path) -> None:
    def first_bad(asked: dict[str, Any], number: int) -> tuple[int, bytes] | None:
        return bad if number <= 2 else (200, completion('{"score": 7}'))

    with serving(tmp_path, first_bad) as (server, reward):
        assert reward(VIDEO[:1], PROMPTS[:1]).tolist() == [7.0] and len(server.seen) == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("8", "the answer has other fields than score"),
        ("I would say 8", "the answer is not JSON"),
        ('{"score": 11}', "the score is not within 0 and 10"),
        ('{"score": NaN}', "the score is not within 0 and 10"),
        ('{"score": "8"}', "the score is no number"),
        ('{"score": true}', "the score is no number"),
        ('{"score": 8, "because": "nice"}', "the answer has other fields than score"),
        ('{"score": 1, "score": 9}', "the answer has other fields than score"),
        ("[8]", "the answer has other fields than score"),
        ('[["score", 8]]', "the answer has other fields than score"),
        ("[" * 9999, "the answer is not JSON"),
        (None, "the answer is not JSON"),
        ({"score": 8}, "the answer is not JSON"),
    ],
)
def test_an_answer_that_cannot_be_read_is_an_error_and_never_a_zero(content: Any, reason: str, tmp_path: Path) -> None:
    def answer(asked: dict[str, Any], number: int) -> tuple[int, bytes]:
        mine = "three" in asked["messages"][0]["content"][0]["text"]
        return 200, completion(content if mine else '{"score": 5}')

    with serving(tmp_path, answer, tries=2) as (server, reward):
        scores = reward(VIDEO, PROMPTS)
        assert scores[2].isnan() and scores[[0, 1, 3]].tolist() == [5.0] * 3
        assert reward.failures == {reason: 1} and len(server.seen) == 5
        assert f"server: {reason} (http" in reward.refusal and "1 of 4 videos" in reward.refusal


def test_what_will_not_pass_is_not_tried_again(tmp_path: Path) -> None:
    with serving(tmp_path, lambda asked, number: (404, b"no such model")) as (server, reward):
        assert reward(VIDEO[:1], PROMPTS[:1]).isnan().all() and len(server.seen) == 1
        assert "the server says 404: no such model (http" in reward.refusal


def test_a_server_that_takes_too_long_or_is_not_there_is_an_error(tmp_path: Path) -> None:
    def asleep(asked: dict[str, Any], number: int) -> tuple[int, bytes]:
        time.sleep(1)
        return 200, completion('{"score": 5}')

    with serving(tmp_path, asleep, tries=1, timeout=0.1) as (_, reward):
        assert reward(VIDEO[:1], PROMPTS[:1]).isnan().all() and "does not answer (ReadTimeout)" in reward.refusal
    assert reward(VIDEO[:1], PROMPTS[:1]).isnan().all() and "does not answer (ConnectionError)" in reward.refusal


def test_an_answer_that_comes_byte_by_byte_does_not_hold_a_run_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            asking, _ = listening.accept()
            with asking, suppress(OSError):
                asking.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(200):
                    asking.sendall(b" ")
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        (tmp_path / "rubric").write_text("How is it?", encoding="utf-8")
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        reward = ServerReward(ServerSettings(url=url, model="m", rubric=tmp_path / "rubric", tries=1, timeout=0.4))
        began = time.monotonic()
        assert reward(VIDEO[:1], PROMPTS[:1]).isnan().all() and time.monotonic() - began < 4
        assert "does not answer in time" in reward.refusal


def test_one_bad_answer_costs_one_video_and_is_told(tmp_path: Path) -> None:
    def answer(asked: dict[str, Any], number: int) -> tuple[int, bytes]:
        return 200, completion("?" if "three" in asked["messages"][0]["content"][0]["text"] else '{"score": 5}')

    with serving(tmp_path, answer, tries=1) as (_, reward):
        found, _, refusal = attempt(Member(reward), VIDEO, PROMPTS)
    assert found.isnan().tolist() == [False, False, True, False] and "the answer is not JSON" in refusal


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"url": "localhost:8000"}, "does not begin with http"),
        ({"lowest": 10.0}, "must be under"),
        ({"tries": 0}, "tries"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        asked: dict[str, Any] = {"url": "http://x/v1", "model": "m", "rubric": tmp_path / "r"}
        ServerSettings(**(asked | fields))


def test_a_key_that_no_header_can_carry_is_named_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "rubric").write_text("How is it?", encoding="utf-8")
    (tmp_path / "key").write_text("se\ncret", encoding="utf-8")
    with pytest.raises(UserError, match="something else than one key") as told:
        ServerReward(ServerSettings(url="http://x/v1", model="m", rubric=tmp_path / "rubric", key=tmp_path / "key"))
    assert "cret" not in str(told.value).replace("something", "")


def test_a_rubric_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rubric .*r\.txt cannot be read"):
        ServerReward(ServerSettings(url="http://x/v1", model="m", rubric=tmp_path / "r.txt"))
