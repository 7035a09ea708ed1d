"""What a judge said: from the body of a chat completion to one number, or to a sentence why there is none.

Models wrap their answers: in a code fence, after thoughts. The answer must still be exactly one JSON object
``{"score": NUMBER}``; wherever there may be two, or more than that in it, there is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

SAID = 120  # characters of an answer or an error that are told
AGAIN = (408, 429)  # with 5xx, the codes of errors that pass
# Where thoughts end, as families of models write it. Some templates put the opening mark into the question.
THOUGHTS = re.compile(r"(?i)</(?:think|thinking|thought|reasoning)>|\[/THINK\]|◁/think▷")
THINKING = re.compile(r"(?i)\s*(?:<(?:think|thinking|thought|reasoning)>|\[THINK\]|◁think▷)")
FENCE = re.compile(r"(`{3,}|~{3,})[\w+-]*\s*(.*?)\s*(?:\1|\Z)", re.DOTALL)
OBJECT = re.compile(r"\{[^{}]*\bscore\b", re.IGNORECASE)
# The marks of an answer that some models are trained to set.
WRAPPED = re.compile(r"(?:<answer>|<\|begin_of_box\|>)\s*(.*?)\s*(?:</answer>|<\|end_of_box\|>)", re.DOTALL)


class Failed(Exception):
    """A request came to nothing. ``detail``: what came. ``again``: another try may fare better, after ``wait`` seconds
    if the server said so."""

    def __init__(self, reason: str, detail: str = "", again: bool = False, wait: float = 0.0):
        super().__init__(reason)
        self.reason, self.detail, self.again, self.wait = reason, detail, again, wait


@dataclass(frozen=True)
class Reply:
    """One answer: its text, why the model stopped, what it refused, and what it thought apart from the text."""

    text: str
    finish: str
    refusal: str = ""
    thoughts: str = ""

    @property
    def cut(self) -> bool:
        """Whether the limit of tokens ended it."""
        return self.finish == "length"

    def failed(self, reason: str) -> Failed:
        """No score, for this reason, with the beginning of what came."""
        came = brief(THOUGHTS.split(self.text)[-1]) or brief(self.text)
        said = f"it said {came!r}" if came else "it said nothing"
        if self.thoughts and not came:
            said = f"it thought {self.thoughts!r}"
        return Failed(reason, f"{said}, finish_reason {self.finish}")


def brief(text: str) -> str:
    """The beginning of foreign text, on one line, without what a terminal might obey."""
    clean = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(clean.split())[:SAID].rstrip()


def passes(status: int) -> bool:
    """Whether an error of this status may be gone at the next try."""
    return status in AGAIN or status >= 500


def read_reply(body: bytes) -> Reply:
    """The answer in a chat completion; Failed for anything else, and for an error that came under status 200."""
    try:
        whole = json.loads(body)
        if isinstance(whole, dict) and whole.get("error"):
            raise error_of(whole["error"])
        choice = whole["choices"][0]
        if choice.get("error"):
            raise error_of(choice["error"])
        message = dict(choice["message"])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        came = brief(body.decode(errors="replace"))
        raise Failed("the reply is no chat completion", f"it begins {came!r}" if came else "it is empty") from None
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    parts = [part for part in parts if isinstance(part, dict)]
    refusals = [message.get("refusal"), *(part.get("refusal") for part in parts)]
    thoughts = [message.get(name) for name in ("reasoning_content", "reasoning")]
    return Reply(
        text=joined(part.get("text") for part in parts if part.get("type") == "text"),
        finish=brief(str(choice.get("finish_reason") or "not given")),
        refusal=brief(joined(refusals)),
        thoughts=brief(joined(thoughts)),
    )


def joined(parts: Iterable[Any]) -> str:
    """Those that are text."""
    return "".join(part for part in parts if isinstance(part, str))


def error_of(error: Any) -> Failed:
    """An error in a body; its code, where that is one of HTTP's, tells whether it passes."""
    fields = error if isinstance(error, dict) else {"message": error}
    code = str(fields.get("code"))
    again = code.isdecimal() and passes(int(code))
    return Failed("the server answers with an error", brief(str(fields.get("message") or error)), again=again)


def error_text(body: bytes) -> str:
    """What a server says under another status than 200."""
    try:
        error = json.loads(body)["error"]
        return brief(str(error["message"] if isinstance(error, dict) else error))
    except (ValueError, KeyError, TypeError, RecursionError):
        return brief(body.decode(errors="replace"))


def score_of(reply: Reply, lowest: float, highest: float, limit: int) -> float:
    """The number in an answer; Failed, with what came, unless it is exactly one, within its bounds. ``limit``: the most
    tokens that were allowed."""
    if reply.refusal:
        raise Failed("the judge refuses", f"{reply.refusal!r}, finish_reason {reply.finish}")
    try:
        fields = json.loads(answer_in(reply), object_pairs_hook=tuple)  # pairs, so that a field given twice shows
    except (ValueError, RecursionError):
        raise reply.failed(why_not(reply, limit)) from None
    if not isinstance(fields, tuple):
        raise reply.failed("the answer is no JSON object")
    if [name for name, _ in fields] != ["score"]:
        raise reply.failed("the answer has other fields than score")
    score = fields[0][1]
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise reply.failed("the score is no number")
    if not lowest <= score <= highest:
        raise reply.failed(f"the score is not within {lowest:g} and {highest:g}")
    return float(score)


def why_not(reply: Reply, limit: int) -> str:
    """Why an answer holds no JSON."""
    if reply.cut:
        return f"the answer was cut after server.max_tokens={limit} tokens; allow more"
    text = THOUGHTS.split(reply.text)[-1].strip()
    if THINKING.match(text) or (not text and (reply.thoughts or reply.text.strip())):
        return "the judge thought and gave no answer"
    return "the answer is not JSON" if text else "the answer is empty"


def answer_in(reply: Reply) -> str:
    """The part of an answer that should be JSON; empty where it cannot be told which it is.

    That is all that follows the thoughts, or the one object in a code fence. Of an answer that was cut, what stands
    around a fence may have gone on to another.
    """
    text = THOUGHTS.split(reply.text)[-1].strip()
    if THINKING.match(text):
        return ""
    if wrapped := WRAPPED.fullmatch(text):
        text = wrapped[1]
    held = [] if text.startswith("{") else [found for found in FENCE.finditer(text) if found[2].startswith("{")]
    if not held:
        return text.strip("`*")  # marks of code and bold on one line
    around = text[: held[0].start()] + text[held[0].end() :]
    unsure = len(held) > 1 or OBJECT.search(around) or (reply.cut and around.strip())
    return "" if unsure else held[0][2]
