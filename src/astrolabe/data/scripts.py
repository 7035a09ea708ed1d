"""Scripts: what a video shows when, and how it gets from one scene to the next.

In one line: ``a cat[5s] | a dog[8s] || a bird``. ``|`` switches softly (the model goes on with what it sees, under the
new prompt), ``||`` cuts (it starts afresh), ``[5s]`` says how long; a scene without a length shares what is left.
A backslash before ``|`` or ``[`` makes it a plain character. In a file (YAML or JSON), a list:

    - prompt: a cat
      seconds: 5
    - prompt: a dog
      seconds: 8
      enter: switch      # or cut; switch is the default
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from astrolabe.runtime.errors import UserError

Enter = Literal["switch", "cut"]
FIELDS = ("prompt", "seconds", "enter")
SEPARATOR = re.compile(r"(?<!\\)(\|\|?)")
LENGTH = re.compile(r"(?<!\\)\[\s*([^\]\[]*?)\s*s\s*\]\s*$")


@dataclass(frozen=True)
class Shot:
    """One prompt of a script: ``seconds`` None shares what is left; ``enter`` says how it follows the shot before."""

    prompt: str
    seconds: float | None = None
    enter: Enter = "switch"

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise UserError("a script has a shot without a prompt; write what is to be seen between the bars")
        if self.seconds is not None and not (0 < self.seconds < math.inf):
            raise UserError(f"shot {self.prompt!r} lasts {self.seconds:g} s; a length must be above zero")
        if self.enter not in get_args(Enter):
            known = ", ".join(get_args(Enter))
            raise UserError(f"shot {self.prompt!r} enters by {self.enter!r}; expected one of {known}")


Script = tuple[Shot, ...]


def parse_script(text: str) -> Script:
    """The script of one line; a line without bars and lengths is one shot. UserError says what is wrong."""
    pieces = SEPARATOR.split(text)
    shots = []
    for place in range(0, len(pieces), 2):
        piece, seconds = pieces[place].strip(), None
        if match := LENGTH.search(piece):
            try:
                seconds = float(match[1])
            except ValueError:
                raise UserError(
                    f"{match[0].strip()} in the script {text!r} is no length; write seconds, as in [5s]"
                ) from None
            piece = piece[: match.start()].strip()
        enter: Enter = "cut" if place and pieces[place - 1] == "||" else "switch"
        shots.append(Shot(re.sub(r"\\([|\[])", r"\1", piece), seconds, enter))
    return tuple(shots)


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
        shots.append(Shot(fields["prompt"], seconds, fields.get("enter", "switch")))
    return tuple(shots)


def frames_of(seconds: float, fps: int, chunk: int) -> int:
    """Latent frames nearest to a length: whole chunks, at least one; each is four video frames, the first one alone."""
    if not 0 < seconds < math.inf:
        raise UserError(f"seconds={seconds:g}: a length must be above zero")
    chunks = (seconds * fps + 3) / (4 * chunk)
    if chunks < 0.5:
        shortest = (4 * chunk - 3) / fps
        raise UserError(f"seconds={seconds:g} is less than half a chunk; the shortest video has {shortest:.2f} s")
    return max(round(chunks), 1) * chunk


def plan(script: Script, total: float, fps: int, chunk: int) -> tuple[int, ...]:
    """Latent frames of every shot for a video of ``total`` seconds; shots without a length share what is left."""
    if not 0 < total < math.inf:
        raise UserError(f"seconds={total:g}: a length must be above zero")
    known = sum(shot.seconds for shot in script if shot.seconds is not None)
    open_shots = sum(shot.seconds is None for shot in script)
    left = total - known
    if open_shots and left <= 0:
        raise UserError(f"the script's lengths add up to {known:g} s; {total:g} s leave nothing for the other shots")
    share = left / open_shots if open_shots else 0.0
    if not open_shots and frames_of(known, fps, chunk) != frames_of(total, fps, chunk):
        raise UserError(
            f"the script lasts {known:g} s and {total:g} s were asked for; leave out either, or the length of a shot"
        )
    ends, place = [], 0.0
    for shot in script:
        place += share if shot.seconds is None else shot.seconds
        ends.append(frames_of(place, fps, chunk))
    lengths = [end - begin for begin, end in pairwise([0, *ends])]
    if short := [shot.prompt for shot, length in zip(script, lengths, strict=True) if length < chunk]:
        raise UserError(f"shot {short[0]!r} is shorter than a chunk ({4 * chunk / fps:.2f} s); make it longer")
    return tuple(lengths)


def prompts_of(scripts: Sequence[Script]) -> list[str]:
    """Every prompt that occurs, once, in order."""
    return list(dict.fromkeys(shot.prompt for script in scripts for shot in script))
