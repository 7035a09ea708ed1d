"""Scripts: what a video shows when, and how it gets from one scene to the next.

In one line: ``a cat[5s] | a dog[8s] || a bird``. ``|`` switches softly (the model goes on with what it sees, under the
new prompt), ``||`` cuts (it starts afresh), ``[5s]`` says how long; a scene without a length shares what is left.
Only a number of seconds at a scene's end is a length: ``[film stills]`` is text. A bar between square brackets is text
too, ``[red|blue]``, and a backslash before ``|`` or ``[`` makes it a plain character anywhere. In a file (YAML or
JSON), a list:

    - prompt: a cat
      seconds: 5
    - prompt: a dog
      seconds: 8
      enter: switch      # or cut; switch is the default
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from astrolabe.models.wan.config import StreamConfig
from astrolabe.runtime.errors import UserError, within

Enter = Literal["switch", "cut"]
FIELDS = ("prompt", "seconds", "enter")
NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
LENGTH = re.compile(rf"(?<!\\)\[\s*({NUMBER})\s*s\s*\]\s*$")
SIGNS = re.compile(r"(?<!\\)(\|\|?|\[)|(\])")  # bars, and the brackets that make them plain
SPECIAL = re.compile(rf"\||(?<=\\)\[|\[(?=\s*{NUMBER}\s*s\s*\]\s*$)")
DAY = 86_400.0  # seconds: the longest video that is made; what is longer was hardly meant


@dataclass(frozen=True)
class Shot:
    """One prompt of a script: ``seconds`` None shares what is left; ``enter`` says how it follows the shot before."""

    prompt: str
    seconds: float | None = None
    enter: Enter = "switch"

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise UserError(
                "a script has a shot without a prompt; say what is to be seen between the bars, and \\| for a plain bar"
            )
        check_unicode(self.prompt)
        if self.seconds is not None:
            check_length(self.seconds, f"shot {self.prompt!r} lasts {self.seconds:g} s")
        if self.enter not in get_args(Enter):
            known = ", ".join(get_args(Enter))
            raise UserError(f"shot {self.prompt!r} enters by {self.enter!r}; expected one of {known}")


Script = tuple[Shot, ...]


def check_unicode(prompt: str) -> None:
    """UserError for a prompt that no text file could hold: bytes of another encoding, half a character, zero bytes."""
    if "\0" in prompt:
        raise UserError(f"prompt {prompt!r} holds a zero byte as no text does; leave it out")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError(f"prompt {prompt!r} is not valid Unicode; write it in UTF-8") from None


def check_length(seconds: float, said: str) -> None:
    """UserError, beginning with what was ``said``, unless this is a length that a video can have."""
    if not 0 < seconds <= DAY:
        raise UserError(f"{said}; a length must be above zero, and a day ({DAY:.0f} s) at most")


def parse_script(text: str) -> Script:
    """The script of one line; a line without bars and lengths is one shot. UserError says what is wrong."""
    shots, enter = [], ""
    for piece, bar in pieces_of(text):
        seconds = None
        if match := LENGTH.search(piece):
            seconds, piece = float(match[1]), piece[: match.start()]
        shots.append(Shot(re.sub(r"\\([|\[])", r"\1", piece.strip()), seconds, "cut" if enter == "||" else "switch"))
        enter = bar
    return tuple(shots)


def pieces_of(text: str) -> list[tuple[str, str]]:
    """The text between bars, each with the bar after it (none after the last). Bars within brackets do not count."""
    bars: list[tuple[int, int]] = []
    opened: list[int] = []  # for every bracket that is open: how many bars came before it
    for sign in SIGNS.finditer(text):
        if sign[0] == "[":
            opened.append(len(bars))
        elif sign[0] == "]":
            if opened:
                del bars[opened.pop() :]
        else:
            bars.append(sign.span())
    ends = [0, *(place for span in bars for place in span), len(text)]
    parts = [text[first:end] for first, end in pairwise(ends)]
    return list(zip(parts[::2], [*parts[1::2], ""], strict=True))


def escaped(text: str) -> str:
    """Text that ``parse_script`` reads as one shot of this very prompt (without the blanks around it)."""
    text = SPECIAL.sub(r"\\\g<0>", text)
    opened: list[int] = []  # brackets that are not closed: one of a later shot must not close them
    for sign in SIGNS.finditer(text):
        if sign[0] == "[":
            opened.append(sign.start())
        elif sign[0] == "]" and opened:
            opened.pop()
    for place in reversed(opened):
        text = f"{text[:place]}\\{text[place:]}"
    return text


def script_line(prompts: Sequence[str]) -> str:
    """The line that shows these plain prompts one after another, each as a switch."""
    return " | ".join(escaped(prompt) for prompt in prompts)


def read_script(path: Path | str) -> Script:
    """The script of a YAML or JSON file; UserError says where it is not one."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = None
        with suppress(ValueError):  # YAML reads most of JSON, but not all
            content = json.loads(text)
        content = content or yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8 text") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not YAML or JSON ({' '.join(str(error).split())})") from None
    if not isinstance(content, list) or not content:
        raise UserError(f"{path}: expected a list of shots, each with a prompt (and seconds, enter)")
    shots = []
    for number, fields in enumerate(content, 1):
        if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
            raise UserError(
                f"{path}: shot {number} has no prompt; a shot has `prompt:` and may have `seconds:`, `enter:`"
            )
        if unknown := [str(name) for name in fields if name not in FIELDS]:
            raise UserError(f"{path}: shot {number} has {', '.join(unknown)}; known are {', '.join(FIELDS)}")
        seconds = fields.get("seconds")
        if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float)):
            raise UserError(f"{path}: shot {number} lasts {seconds!r}; expected a number of seconds")
        with within(f"{path}: shot {number}"):
            if isinstance(seconds, int):
                seconds = float(min(max(seconds, -1), round(DAY) + 1))  # some whole numbers are too large for a float
            shots.append(Shot(fields["prompt"], seconds, fields.get("enter", "switch")))
    return tuple(shots)


def frames_of(seconds: float, stream: StreamConfig) -> int:
    """Latent frames nearest to a length: whole chunks, at least one."""
    check_length(seconds, f"seconds={seconds:g}")
    stride, chunk = stream.latent_stride, stream.chunk_frames
    chunks = (seconds * stream.fps + stride - 1) / (stride * chunk)
    if chunks < 0.5:
        shortest = stream.seconds(chunk)
        raise UserError(f"seconds={seconds:g} is less than half a chunk; the shortest video has {shortest:.2f} s")
    return max(round(chunks), 1) * chunk


def plan(script: Script, total: float, stream: StreamConfig) -> tuple[int, ...]:
    """Latent frames of every shot for a video of ``total`` seconds; shots without a length share what is left."""
    check_length(total, f"seconds={total:g}")
    known = sum(shot.seconds for shot in script if shot.seconds is not None)
    open_shots = sum(shot.seconds is None for shot in script)
    left = total - known
    if open_shots and left <= 0:
        raise UserError(f"the script's lengths add up to {known:g} s; {total:g} s leave nothing for the other shots")
    share = left / open_shots if open_shots else 0.0
    if not open_shots and frames_of(known, stream) != frames_of(total, stream):
        raise UserError(
            f"the script lasts {known:g} s and {total:g} s were asked for; leave out either, or the length of a shot"
        )
    ends, place = [], 0.0
    for shot in script:
        place += share if shot.seconds is None else shot.seconds
        ends.append(frames_of(place, stream))
    lengths = [end - begin for begin, end in pairwise([0, *ends])]
    if short := [shot.prompt for shot, length in zip(script, lengths, strict=True) if length < stream.chunk_frames]:
        seconds = stream.latent_stride * stream.chunk_frames / stream.fps
        raise UserError(f"shot {short[0]!r} is shorter than a chunk ({seconds:.2f} s); make it longer")
    return tuple(lengths)


def prompts_of(scripts: Sequence[Script]) -> list[str]:
    """Every prompt that occurs, once, in order."""
    return list(dict.fromkeys(shot.prompt for script in scripts for shot in script))
