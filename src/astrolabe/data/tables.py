"""Prompts in files that are more than a list of them: JSON, JSON Lines, CSV and TSV.

A record is an object with a field of prompts, or bare text. A list of several prompts in one record is a script of
switches. What is written in a table is plain: bars and brackets mean nothing there.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from astrolabe.runtime.errors import UserError

FIELDS = ("prompt", "prompts", "prompts_list", "prompt_list", "prompt_en", "text_prompt", "caption", "captions", "text")
DELIMITERS = ",\t;|"
LINES = (".jsonl", ".ndjson")
JSON_BEGINNING = re.compile(r"\s*(\{\s*\"|\[\s*(\{|\[\s*\"|\"([^\"\\\n]|\\.)*\"\s*(,|\n|\]\s*(\n|\Z))))")
# What the only column is called.
NAME_OF_ONE = re.compile(r"\w*(prompt|caption|text|description|instruction|sentence)\w*", re.IGNORECASE)
NOT_WANTED = re.compile(r"neg", re.IGNORECASE)  # a column that says what is not to be seen
HEADER = re.compile(r"[\"']?\w[\w.-]*[\"']?")


@dataclass(frozen=True)
class Record:
    """Prompts that one record holds, in order; none if its field is empty. ``place``: ``line 3``, or ``record 3``."""

    prompts: tuple[str, ...]
    place: str


def records_of(suffix: str, lines: Sequence[str], text: str) -> Iterator[Record] | None:
    """The records of a table, told by its content and its suffix; None for a file that is a list of plain lines.

    UserError, from the first record on, for a table that holds no prompts or is damaged.
    """
    filled = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if suffix in (".json", *LINES) or JSON_BEGINNING.match(text) or any(map(is_object, filled)):
        return json_lines(lines) if by_lines(suffix, filled) else json_whole(text, lines)
    if suffix in (".csv", ".tsv", ".tab") or (filled and is_header(filled[0])):
        return delimited(text, filled[0] if filled else "", suffix)
    return None


def by_lines(suffix: str, filled: Sequence[str]) -> bool:
    """Whether every line is a record, and not the file one document."""
    if suffix == ".json" or not filled or not is_record(filled[0]):
        return False
    return suffix in LINES or len(filled) > 1 or is_object(filled[0])


def parsed(line: str) -> Any:
    """The JSON value of a line; None if it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def is_object(line: str) -> bool:
    """Whether a line is a JSON object."""
    return line.lstrip().startswith("{") and isinstance(parsed(line), dict)


def is_record(line: str) -> bool:
    """Whether a line by itself can be a record in JSON: an object, text, or a list of texts."""
    value = parsed(line)
    return isinstance(value, dict | str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def is_header(line: str) -> bool:
    """Whether a line names the columns of a table, one of them of prompts; a prompt has blanks after its commas."""
    for delimiter in DELIMITERS:
        fields = line.strip().split(delimiter)
        if len(fields) > 1 and all(map(HEADER.fullmatch, fields)):
            return field_of([name.strip("\"'") for name in fields]) is not None
    return False


def field_of(names: Sequence[Any]) -> Any | None:
    """Which of these names is the field of prompts."""
    written = {name.strip().lower(): name for name in reversed(names) if isinstance(name, str)}
    return next((written[field] for field in FIELDS if field in written), None)


def prompts_in(value: Any, place: str) -> tuple[str, ...]:
    """The prompts of a JSON value: text, a list of texts, or an object with a field of either."""
    if isinstance(value, dict):
        if "prompt" in value and len(value) > 1 and value.keys() <= {"prompt", "seconds", "enter"}:
            raise UserError(f"{place} is a shot of a script; a script is given with `astrolabe generate --script`")
        field = field_of(list(value))
        if field is None:
            raise UserError(f"{place} has {listing(value)} and none of {', '.join(FIELDS)}; rename its prompts")
        value, place = value[field], f"{place}, field {field!r},"
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,) if value.strip() else ()
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        filled = tuple(one for one in value if one.strip())
        if filled and len(filled) < len(value):
            raise UserError(f"{place} has an empty prompt among {len(value)}; leave it out, or say what is to be seen")
        return filled
    raise UserError(f"{place} is {type_of(value)}; expected a prompt or a list of prompts")


def type_of(value: Any) -> str:
    """A JSON value's kind, in words."""
    kinds = {str: "text", list: "a list of other things", dict: "an object", type(None): "null"}
    return kinds.get(type(value), "a number" if type(value) in (int, float) else "true or false")


def listing(names: Any) -> str:
    """Some names, for a message."""
    shown = [repr(name) for name in names]
    return ", ".join([*shown[:6], *(["..."] if len(shown) > 6 else [])]) or "nothing"


def json_lines(lines: Sequence[str]) -> Iterator[Record]:
    """A record a line; blank lines and comments do not count."""
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.strip().startswith("#"):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"line {number} is not JSON as other lines are ({error})") from None
            yield Record(prompts_in(value, f"line {number}"), f"line {number}")


def json_whole(text: str, lines: Sequence[str]) -> Iterator[Record]:
    """The records of a JSON document: a list of them, by itself or in an object. What looks like lines is read so."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if any(map(is_object, lines)):
            yield from json_lines(lines)
            return
        raise UserError(f"begins like JSON and cannot be read as that ({error})") from None
    if isinstance(content, dict):
        content = inside(content)
    if not isinstance(content, list):
        raise UserError(f"holds {type_of(content)} in JSON; expected a list of prompts, or of objects that have one")
    for number, value in enumerate(content, 1):
        yield Record(prompts_in(value, f"record {number}"), f"record {number}")


def inside(content: dict[str, Any]) -> list[Any]:
    """The list of records that an object holds: its field of prompts, or the only list of objects in it."""
    field = field_of(list(content))
    if field is not None:
        return content[field] if isinstance(content[field], list) else [content]
    lists = [value for value in content.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) != 1:
        raise UserError(f"holds an object with {listing(content)}; expected a list of objects with {', '.join(FIELDS)}")
    found: list[Any] = lists[0]
    return found


def delimited(text: str, first: str, suffix: str) -> Iterator[Record]:
    """The rows of a CSV or TSV whose header (``first``) names a column of prompts, or with a single column."""
    delimiter = next((sign for sign in DELIMITERS if field_of([name.strip("\"'") for name in first.split(sign)])),
                     "," if suffix == ".csv" else "\t")  # fmt: skip
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    width, column = 0, 0
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            place = f"line {rows.line_num}"
            if not width:
                width, headed, column = len(row), *column_of(row)
                if headed:
                    continue
            if len(row) != width:
                raise UserError(
                    f"{place} has {len(row)} fields where {width} were expected; put text with the sign {delimiter!r} "
                    "in quotes, or save plain lines as .txt"
                )
            yield Record((row[column],) if row[column].strip() else (), place)
    except csv.Error as error:
        raise UserError(f"line {rows.line_num} is no row of a table ({error})") from None


def column_of(row: Sequence[str]) -> tuple[bool, int]:
    """Whether the first row is a header, and which column the prompts are in."""
    field = field_of(row)
    if field is not None:
        return True, row.index(field)
    if len(row) > 1:
        raise UserError(
            f"is a table with columns {listing(row)} and none of {', '.join(FIELDS)}; rename the one of prompts"
        )
    headed = NAME_OF_ONE.fullmatch(row[0].strip()) is not None
    if headed and NOT_WANTED.search(row[0]):
        raise UserError(f"has no column but {row[0].strip()!r}, of what is not to be seen; expected prompts")
    return headed, 0
