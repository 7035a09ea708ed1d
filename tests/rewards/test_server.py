"""A judge behind a server: its answers are read strictly, and a server may misbehave."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import re
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
from astrolabe.rewards.opening import look_at
from astrolabe.rewards.server import ServerReward
from astrolabe.rewards.settings import RewardSettings, ServerSettings
from astrolabe.runtime.errors import UserError

VIDEO = torch.linspace(0, 1, 4).view(4, 1, 1, 1, 1).expand(4, 9, 3, 8, 8).contiguous()
PROMPTS = ["one", "two {braces}", "three", "four"]


def completion(content: Any, finish: str = "stop", **fields: Any) -> bytes:
    """The body of an answer; ``fields`` are further ones of its message."""
    choice = {"message": {"role": "assistant", "content": content} | fields, "finish_reason": finish}
    return json.dumps({"choices": [choice]}).encode()


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
        self.headers = dict[str, str]()
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
        for name, value in self.server.headers.items():
            self.send_header(name, value)
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
        asked: dict[str, Any] = {"url": url, "model": "judge", "rubric": rubric, "wait": 0.01, "timeout": 10.0} | fields
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


BUSY = json.dumps({"error": {"message": "overloaded", "code": 503}}).encode()


@pytest.mark.parametrize("bad", [(500, b"no"), (503, b"no"), (429, b"later"), (408, b"slow"), None, (200, BUSY)])
def test_what_passes_is_tried_again(bad: tuple[int, bytes] | None, tmp_path: Path) -> None:
    def first_bad(asked: dict[str, Any], number: int) -> tuple[int, bytes] | None:
        return bad if number <= 2 else (200, completion('{"score": 7}'))

    with serving(tmp_path, first_bad) as (server, reward):
        assert reward(VIDEO[:1], PROMPTS[:1]).tolist() == [7.0] and len(server.seen) == 3


FENCED = '```json\n{"score": 8}\n```'


@pytest.mark.parametrize(
    "content",
    [
        '{"score": 8}',
        ' \n{"score": 8.0}\n',
        FENCED,
        '```\n{\n  "score": 8\n}\n```\n',
        '```{"score": 8}```',
        '`{"score": 8}`',
        '**{"score": 8}**',
        '~~~json\n{"score": 8}\n~~~',
        '```json\n{"score": 8}',
        f"The circle moves left, as it should.\n\n{FENCED}\n\nI hope this helps!",
        f"Code first:\n```python\nprint(8)\n```\n{FENCED}",
        '<think>{"score": 3}? No, rather 8.</think>\n\n{"score": 8}',
        f"<think>\nWell, ```json\n{{}}\n```\n</think>\n{FENCED}",
        'It moves left.</think>{"score": 8}',
        '<think>a</think><think>b</think>{"score": 8}',
        '<thinking>a</thinking> {"score": 8}',
        '[THINK]a[/THINK]{"score": 8}',
        '◁think▷a◁/think▷{"score": 8}',
        '<think>a</think><answer>{"score": 8}</answer>',
        '<|begin_of_box|>{"score": 8}<|end_of_box|>',
        [{"type": "text", "text": '{"score": 8}'}],
        [{"type": "text", "text": '{"score"'}, {"type": "text", "text": ": 8}"}],
        [{"type": "thinking", "thinking": '{"score": 3}'}, {"type": "text", "text": '{"score": 8}'}],
    ],
)
def test_one_answer_is_taken_however_it_is_wrapped(content: Any, tmp_path: Path) -> None:
    body = completion(content, reasoning_content='{"score": 3}', refusal=None)
    with serving(tmp_path, lambda asked, number: (200, body)) as (server, reward):
        assert reward(VIDEO[:1], PROMPTS[:1]).tolist() == [8.0] and len(server.seen) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("8", "the answer is no JSON object"),
        ("I would say 8", "the answer is not JSON"),
        ('Surely {"score": 8}', "the answer is not JSON"),
        ('{"score": 11}', "the score is not within 0 and 10"),
        ('{"score": NaN}', "the score is not within 0 and 10"),
        ('{"score": "8"}', "the score is no number"),
        ('{"score": true}', "the score is no number"),
        ('{"score": {"score": 8}}', "the score is no number"),
        ('{"score": 8, "because": "nice"}', "the answer has other fields than score"),
        ('```json\n{"score": 8, "because": "nice"}\n```', "the answer has other fields than score"),
        ('{"score": 1, "score": 9}', "the answer has other fields than score"),
        ('{"score": 1}\n{"score": 1}', "the answer is not JSON"),
        (f"{FENCED}\n{FENCED}", "the answer is not JSON"),
        (f'{{"score": 8}}\n{FENCED}', "the answer is not JSON"),
        (f'Not {{"score": 3}}, but\n{FENCED}', "the answer is not JSON"),
        (f"{FENCED}\nor ```{{'because': 1, 'score': 3}}```", "the answer is not JSON"),
        ("[8]", "the answer is no JSON object"),
        ('[["score", 8]]', "the answer is no JSON object"),
        ("[" * 9999, "the answer is not JSON"),
        ("{" * 9999, "the answer is not JSON"),
        ('<think>I would say {"score": 8}', "the judge thought and gave no answer"),
        ('<think>I would say {"score": 8}</think>', "the judge thought and gave no answer"),
        (None, "the answer is empty"),
        ("", "the answer is empty"),
        ([], "the answer is empty"),
        ({"score": 8}, "the answer is empty"),
    ],
)
def test_an_answer_that_cannot_be_read_is_an_error_and_never_a_zero(content: Any, reason: str, tmp_path: Path) -> None:
    def answer(asked: dict[str, Any], number: int) -> tuple[int, bytes]:
        mine = "three" in asked["messages"][0]["content"][0]["text"]
        return 200, completion(content if mine else '{"score": 5}')

    with serving(tmp_path, answer) as (server, reward):
        scores = reward(VIDEO, PROMPTS)
        assert scores[2].isnan() and scores[[0, 1, 3]].tolist() == [5.0] * 3
        assert reward.failures == {reason: 1} and len(server.seen) == 4  # no answer is asked for twice
        assert f"server: {reason}: it said " in reward.refusal and "1 of 4 videos" in reward.refusal
        assert "finish_reason stop" in reward.refusal


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            completion("Well,\n \x1b[31mit " + "is long " * 99),
            r"it said 'Well, \[31mit is long (is long ){10,12}\w*', f",
        ),
        (
            completion("<think>The clip", "length"),
            r"cut after server.max_tokens=64 tokens; allow more: it said '<think>T",
        ),
        (
            completion(None, "length", reasoning_content="The clip"),
            r"cut after .* it thought 'The clip', finish_reason length",
        ),
        (completion('```json\n{"sco', "length"), r"cut after .* it said '```json {\"sco', finish_reason length"),
        (completion(f"{FENCED} But then ag", "length"), r"cut after .*finish_reason length"),
        (
            completion(None, reasoning_content='{"score": 8}'),
            r"thought and gave no answer: it thought '{\"score\": 8}', f",
        ),
        (completion(None, "content_filter"), r"the answer is empty: it said nothing, finish_reason content_filter"),
        (completion(None, refusal="I cannot."), r"the judge refuses: 'I cannot.', finish_reason stop"),
        (completion([{"type": "refusal", "refusal": "No."}]), r"the judge refuses: 'No.'"),
        (b'{"error": {"message": "no image input", "code": 400}}', "the server answers with an error: no image input"),
        (b'{"error": "no image input"}', "the server answers with an error: no image input"),
        (b"<html>Sign in", "no chat completion: it begins '<html>Sign in'"),
        (b"", "no chat completion: it is empty"),
        (b'{"choices": []}', "no chat completion"),
        (b'{"choices": [8]}', "no chat completion"),
        (b'{"choices": [{"text": "8"}]}', "no chat completion"),
        (b"[" * 9999, "no chat completion"),
    ],
)
def test_what_came_is_shown_once_and_why_it_ended(body: bytes, said: str, tmp_path: Path) -> None:
    with serving(tmp_path, lambda asked, number: (200, body), max_tokens=64) as (server, reward):
        assert reward(VIDEO[:1], PROMPTS[:1]).isnan().all() and re.search(said, reward.refusal), reward.refusal
        assert len(server.seen) == 1 and server.seen[0]["max_tokens"] == 64 and reward.refusal.isprintable()


def test_a_whole_answer_counts_even_at_the_limit(tmp_path: Path) -> None:
    for content in ('{"score": 8}', FENCED):
        body = completion(content, "length")
        with serving(tmp_path, lambda asked, number, body=body: (200, body)) as (_, reward):  # type: ignore[misc]
            assert reward(VIDEO[:1], PROMPTS[:1]).tolist() == [8.0]


@pytest.mark.parametrize(
    ("said", "waits"),
    [("0.3", 0.0), ("1", 1.0), ("99999", 9.5), ("Wed, 21 Oct 2099 07:28:00 GMT", 9.5), ("soon", 0.0), ("-5", 0.0)],
)
def test_a_server_may_say_when_to_ask_again_within_bounds(
    said: str, waits: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("astrolabe.rewards.server.time.sleep", slept.append)

    def first_busy(asked: dict[str, Any], number: int) -> tuple[int, bytes]:
        return (429, b"later") if number == 1 else (200, completion('{"score": 7}'))

    with serving(tmp_path, first_busy, timeout=9.5) as (server, reward):
        server.headers = {"Retry-After": said}
        assert reward(VIDEO[:1], PROMPTS[:1]).tolist() == [7.0] and len(slept) == 1
    assert slept[0] == waits if waits else slept[0] <= 0.01


@pytest.mark.parametrize(
    "body", [b"no such model", b'{"error": {"message": "no such model"}}', b'{"error": "no such model"}']
)
def test_what_will_not_pass_is_not_tried_again(body: bytes, tmp_path: Path) -> None:
    with serving(tmp_path, lambda asked, number: (404, body)) as (server, reward):
        assert reward(VIDEO[:1], PROMPTS[:1]).isnan().all() and len(server.seen) == 1
        assert "the server says 404: no such model (http" in reward.refusal


def test_frames_go_nowhere_but_to_the_server_that_was_named(tmp_path: Path) -> None:
    with (
        serving(tmp_path, lambda asked, number: (200, b"")) as (other, _),
        serving(tmp_path, lambda asked, number: (307, b"")) as (server, reward),
    ):
        server.headers = {"Location": f"http://127.0.0.1:{other.server_port}/v1/chat/completions"}
        assert reward(VIDEO[:1], PROMPTS[:1]).isnan().all() and len(server.seen) == 1
        assert not other.seen and "the server says 307, and points to http" in reward.refusal


def test_a_key_that_a_server_repeats_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret", encoding="utf-8")
    refuses = lambda asked, number: (401, b"secret is no key of ours")  # noqa: E731
    with serving(tmp_path, refuses, key=tmp_path / "key") as (_, reward):
        assert reward(VIDEO[:1], PROMPTS[:1]).isnan().all() and "401: *** is no key of ours" in reward.refusal


def test_a_server_that_takes_too_long_or_is_not_there_is_an_error(tmp_path: Path) -> None:
    def asleep(asked: dict[str, Any], number: int) -> tuple[int, bytes]:
        time.sleep(1)
        return 200, completion('{"score": 5}')

    with serving(tmp_path, asleep, tries=1, timeout=0.4) as (_, reward):
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
        ({"max_tokens": 0}, "max_tokens"),
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
    with pytest.raises(UserError, match=r"rubric .*r\.txt: cannot be read \(No such file"):
        ServerReward(ServerSettings(url="http://x/v1", model="m", rubric=tmp_path / "r.txt"))


def test_what_a_judge_needs_is_looked_at_before_it_is_asked(tmp_path: Path) -> None:
    judge = RewardSettings(name="server", server=ServerSettings(url="http://x/v1", model="m", rubric=tmp_path / "r"))
    with pytest.raises(UserError, match=r"rubric .*cannot be read"):
        look_at(judge)
    (tmp_path / "r").write_text("How is it?", encoding="utf-8")
    assert look_at(judge) == "asks m at http://x/v1"


def test_a_rubric_that_is_kept_from_us_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "r.txt").write_text("How is it?", encoding="utf-8")
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match=r"rubric .*r\.txt: permission denied"):
        ServerReward(ServerSettings(url="http://x/v1", model="m", rubric=tmp_path / "r.txt"))


def test_a_home_is_written_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.txt").write_text("How is it?", encoding="utf-8")
    assert ServerReward(ServerSettings(url="http://x/v1", model="m", rubric=Path("~/r.txt"))).rubric == "How is it?"
