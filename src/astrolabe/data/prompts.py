"""Prompt lists, and the batch of a step as a function of the step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from astrolabe.data.foreign import what_it_is
from astrolabe.data.scripts import escaped, parse_script, prompts_of, script_line
from astrolabe.data.tables import Record, field_of, records_of
from astrolabe.runtime.errors import UserError, remark, within

LONGEST = 4096  # characters of one prompt: beyond that a file is hardly a prompt list
COMMENT = re.compile(r"#+(\s.*)?$")
YAML = re.compile(r"(-\s+)?prompts?\s*:(\s|$)")
OTHERS = (".toml", ".ini", ".xml", ".html", ".htm", ".srt", ".vtt", ".py")  # text in which lines are no prompts
LITERAL = re.compile(r"""\{\s*['"][^'"]*['"]\s*:|[\[(]\s*(['"])[^'"]*\1\s*[,\])]""")  # in Python, or JSON gone wrong


@dataclass(frozen=True)
class Entry:
    """One prompt or one-line script of a file, and where it stands: ``mine.txt: line 3``."""

    text: str
    place: str


def read_prompts(path: Path | str) -> list[str]:
    """The prompts and one-line scripts of a file; see ``read_entries``."""
    return [entry.text for entry in read_entries(path)]


def read_entries(path: Path | str) -> list[Entry]:
    """What a text file, JSON, JSON Lines, CSV or TSV holds in prompts, told by its content.

    In plain text, a prompt or one-line script a line; only newlines end one. Blank lines are left out, and comments:
    ``#`` alone or with a blank after it. ``\\#`` begins a prompt with that sign. Records of a table hold plain prompts,
    and several in one record become a script of switches (``data.tables``). What was left out is said.

    Raises UserError, with file and line, for what cannot be read as either.
    """
    path = Path(path)
    text = read_text(path)
    lines = re.split("\r\n|\r|\n", text)
    with within(str(path)):
        records = records_of(path.suffix.lower(), lines, text)
        entries = plain_lines(path, lines) if records is None else from_records(path, records)
    if not entries:
        raise UserError(f"{path} has no prompts; expected one prompt a line, or a table that has some")
    if records is None:
        remark_comments(path, lines)
    return entries


def read_text(path: Path) -> str:
    """A file's text, without a byte order mark; UserError says what else it is."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
            found = what_it_is(path, start)
            if found:
                raise UserError(f"{path} is {found[0]}: no list of prompts; {found[1]}")
            content = start + file.read()
        text = content.decode().lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8 text, one prompt a line") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); expected a text file, one prompt a line") from None
    if "\0" in text:
        raise UserError(f"{path} holds zero bytes as no text does; save it as UTF-8 text, one prompt a line")
    return text


def plain_lines(path: Path, lines: Sequence[str]) -> list[Entry]:
    """A prompt or script a line."""
    entries: list[Entry] = []
    filled = sum(bool(line.strip()) for line in lines)
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not COMMENT.match(line):
            if not entries and path.suffix.lower() in OTHERS:
                raise UserError(f"is {path.suffix.lower()[1:]} and no list of prompts; save plain lines as .txt")
            if LITERAL.match(line):
                raise UserError(f"line {number} is data and no prompt ({line[:30]}...), but not JSON; write it as JSON")
            if not entries and field_of([line]) and filled > 1:
                remark(f"{path}: line {number}, {line!r}, is a name of a column and no prompt, left out")
                continue
            if not entries and (path.suffix.lower() in (".yaml", ".yml") or YAML.match(line)):
                raise UserError(
                    "is YAML and no list of prompts; give a script with `astrolabe generate --script`, and prompts as "
                    "text, one a line"
                )
            if len(line) > LONGEST:
                raise UserError(f"line {number} has {len(line)} characters; at most {LONGEST} are accepted")
            entries.append(entry_of(path, f"line {number}", line[1:] if line.startswith("\\#") else line))
    return entries


def from_records(path: Path, records: Iterable[Record]) -> list[Entry]:
    """A prompt or a script of switches a record, its text taken as it stands."""
    entries: list[Entry] = []
    empty, signs = 0, 0
    for record in records:
        if long := [len(prompt) for prompt in record.prompts if len(prompt) > LONGEST]:
            raise UserError(f"{record.place} has {long[0]} characters; at most {LONGEST} are accepted")
        empty += not record.prompts
        signs += any(escaped(prompt) != prompt for prompt in record.prompts)
        if record.prompts:
            entries.append(entry_of(path, record.place, script_line(record.prompts)))
    if entries and empty:
        remark(f"{path}: {counted(empty, 'record')} without a prompt, left out")
    if signs:
        remark(f"{path}: {counted(signs, 'record')} with bars or lengths, which are plain text in a table; "
               "a list of prompts in one record is a script")  # fmt: skip
    return entries


def entry_of(path: Path, place: str, text: str) -> Entry:
    """The entry of a prompt or one-line script; UserError with its place if it is none."""
    with within(place):
        parse_script(text)
    return Entry(text, f"{path}: {place}")


def remark_comments(path: Path, lines: Sequence[str]) -> None:
    """Say which lines with ``#`` were left out, and which were not."""
    marked = [line.strip() for line in lines if line.strip().startswith("#")]
    comments = sum(bool(COMMENT.match(line)) for line in marked)
    if comments:
        remark(f"{path}: {counted(comments, 'comment')} beginning with # left out")
    if kept := len(marked) - comments:
        remark(f"{path}: {counted(kept, 'prompt')} beginning with #; a comment has a blank after that sign")


def counted(count: int, noun: str) -> str:
    """``1 record``, ``2 records``."""
    return f"{count} {noun}{'s' * (count != 1)}"


class PromptList:
    """Prompts in an order that is shuffled anew every pass, but depends on nothing but the seed and the batch's number.

    A line may be a script of several prompts (``data.scripts``); ``texts`` are all prompts that occur. ``places`` tells
    where lines stand, for messages.
    """

    def __init__(self, prompts: Sequence[str], count: int, seed: int, places: Mapping[str, str] | None = None):
        self.prompts, self.count, self.seed, self.places = tuple(prompts), count, seed, places or {}
        self.texts = prompts_of([parse_script(line) for line in dict.fromkeys(self.prompts)])

    @classmethod
    def read(cls, path: Path | str, count: int, seed: int) -> PromptList:
        """The prompts of a file; see ``read_entries``."""
        entries = read_entries(path)
        return cls([entry.text for entry in entries], count, seed, {entry.text: entry.place for entry in entries})

    def at(self, line: str) -> AbstractContextManager[None]:
        """A UserError within says where the line stands."""
        return within(self.places.get(line, repr(line)))

    def batch(self, number: int) -> tuple[str, ...]:
        """The ``count`` prompts of a batch: resuming needs no state."""
        return tuple(self._at(number * self.count + i) for i in range(self.count))

    def _at(self, position: int) -> str:
        import torch  # only here: a file of prompts is read, or refused, without waiting for it

        from astrolabe.runtime.random import rng_for

        lap, place = divmod(position, len(self.prompts))
        order = torch.randperm(len(self.prompts), generator=rng_for(self.seed, lap, "prompts"))
        return self.prompts[int(order[place])]
