"""One setting of a configuration, as a person meets it: how its text is read, its value shown, a wrong one refused.

The types a setting may have: ``int float bool str Path``, a ``Literal``, a tuple of these, a configuration, a tuple of
configurations, and a union of any of them with ``None``; and ``dict[str, Plain]``, plain values under names that
others chose.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import annotated_types as limit
from pydantic import ValidationError
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic.fields import FieldInfo

from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import place

Affects = Literal["results", "rounding", "nothing"]
Plain = bool | int | float | str | None
KEY = re.compile(r"([^\W\d]\w*(?:\.\w+)*)=(?!=)")  # what begins a setting in a line of several: `model.weights=`
# Digits of any other form (1_000, 007) are text: they may be part of a name.
WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)")
NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]*|[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]+)?")
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path", NoneType: "none"}
SYMBOLS = {limit.Gt: ("gt", ">"), limit.Ge: ("ge", ">="), limit.Lt: ("lt", "<"), limit.Le: ("le", "<=")}


def is_config_type(kind: Any) -> bool:
    return isinstance(kind, type) and is_pydantic_dataclass(kind)


def arms(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the one type itself; ``Annotated`` is looked through."""
    if get_origin(kind) is Annotated:
        return arms(get_args(kind)[0])
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def parse(kind: Any, text: str) -> Any:
    """The value that ``text`` stands for in type ``kind``; ValueError when it stands for none."""
    if len(arms(kind)) > 1:
        return _parse_union(arms(kind), text)
    (kind,) = arms(kind)
    if kind is NoneType and text.lower() == "none":
        return None
    if kind is bool and text.lower() in TRUE + FALSE:
        return text.lower() in TRUE
    if get_origin(kind) is Literal:
        return _parse_choice(get_args(kind), text)
    if get_origin(kind) is tuple:
        return _parse_tuple(get_args(kind), text)
    if get_origin(kind) is dict:
        return {name: parse_plain(value) for name, value in pairs(text)}
    if kind in (int, float, str, Path):
        return kind(text)
    raise ValueError(text)


def _parse_union(kinds: tuple[Any, ...], text: str) -> Any:
    # `none` must mean None even where plain text would do, so it is asked first.
    for kind in sorted(kinds, key=lambda kind: kind is not NoneType):
        try:
            return parse(kind, text)
        except ValueError:
            continue
    raise ValueError(text)


def _parse_choice(choices: tuple[Any, ...], text: str) -> Any:
    for choice in choices:
        if shown(choice) == text:
            return choice
    raise ValueError(text)


def _parse_tuple(kinds: tuple[Any, ...], text: str) -> tuple[Any, ...]:
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if kinds[1:] == (Ellipsis,):
        return tuple(parse(kinds[0], part) for part in parts)
    if len(parts) != len(kinds):
        raise ValueError(text)
    return tuple(parse(kind, part) for kind, part in zip(kinds, parts, strict=True))


def parts(text: str) -> list[str]:
    """``text`` cut at its commas, but only at those before ``name=``: any other comma belongs to a value."""
    cuts = [found.start() for found in re.finditer(",", text) if KEY.match(text, found.end())]
    return [text[start:end] for start, end in zip([0, *(cut + 1 for cut in cuts)], [*cuts, len(text)], strict=True)]


def pairs(text: str) -> list[tuple[str, str]]:
    """``a=1,b.c=2,3`` as ``[("a", "1"), ("b.c", "2,3")]``; ValueError, with what it is, for anything else, and for a
    name that stands there twice."""
    found: dict[str, str] = {}
    for part in parts(text) if text.strip() else []:
        name, equals, value = part.partition("=")
        if not equals or not KEY.match(part):
            raise ValueError(f"{part!r} is no setting: write name=value")
        if name in found:
            raise ValueError(f"{name} is set twice")
        found[name] = value
    return list(found.items())


def parse_plain(text: str) -> Plain:
    """The plain value that ``text`` stands for: ``none``, ``true`` or ``false``, a number, or else text, which may
    stand in double quotes, with JSON's escapes, where it would be taken for something else."""
    if text.lower() in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[text.lower()]
    try:
        if NUMBER.fullmatch(text):
            return int(text) if WHOLE.fullmatch(text) else float(text)
        quoted = json.loads(text) if text.startswith('"') else text
    except ValueError:  # no JSON after all, or more digits than a number may have
        return text
    return quoted if isinstance(quoted, str) else text


def _shown_plain(value: Plain) -> str:
    if not isinstance(value, str):
        return shown(value)
    clear = parse_plain(value) == value and len(parts(value)) == 1 and not value.startswith("=")
    return value if clear else json.dumps(value).replace("=", r"\u003d")


def shown(value: Any) -> str:
    """``value`` as a person would type it; ``parse`` reads it back."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={_shown_plain(item)}" for name, item in value.items())
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return ",".join(shown(item) for item in value) if isinstance(value, tuple) else str(value)


def type_text(kind: Any) -> str:
    """A short name for help pages: ``int``, ``float | none``, ``int,...``, ``nft | grpo``."""
    if len(arms(kind)) > 1:
        return " | ".join(type_text(arm) for arm in arms(kind))
    (kind,) = arms(kind)
    if get_origin(kind) is Literal:
        return " | ".join(shown(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return ",".join("..." if item is Ellipsis else type_text(item) for item in get_args(kind))
    if get_origin(kind) is dict:
        return "name=value,..."
    return "none" if kind is NoneType else str(kind.__name__)


def choices(kind: Any) -> tuple[str, ...]:
    """The words a ``Literal`` or a ``bool`` accepts; empty for every other type."""
    found: list[str] = []
    for arm in arms(kind):
        if get_origin(arm) is Literal:
            found += [shown(choice) for choice in get_args(arm)]
        elif arm is bool:
            found += ["true", "false"]
    return tuple(found)


def limits_text(metadata: Iterable[Any]) -> str:
    """``> 0 and <= 1`` for the bounds among a field's metadata; empty when it has none."""
    known = [item for item in metadata if type(item) in SYMBOLS]
    bounds = [f"{symbol} {getattr(item, name):g}" for item in known for name, symbol in [SYMBOLS[type(item)]]]
    bounds += [f"of length >= {item.min_length}" for item in metadata if isinstance(item, limit.MinLen)]
    return " and ".join(bounds)


def expected(kind: Any, limits: str = "") -> str:
    """What to say was expected: ``a number > 0 or none``."""
    return " or ".join(_expected_arm(arm, limits) for arm in arms(kind))


def _expected_arm(kind: Any, limits: str) -> str:
    if kind is NoneType:
        return "none"
    if get_origin(kind) is Literal:
        phrase = f"one of {', '.join(shown(choice) for choice in get_args(kind))}"
    elif get_origin(kind) is tuple:
        each = [expected(item) for item in get_args(kind) if item is not Ellipsis]
        count = "" if Ellipsis in get_args(kind) else f"{len(each)} "
        phrase = f"{count}values separated by commas ({', '.join(each)}{', ...' if not count else ''})"
    elif is_config_type(kind):
        phrase = "a group of settings"
    elif get_origin(kind) is dict:
        phrase = "name=value, name=value, ... (plain values: numbers, text, true, false, none)"
    else:
        phrase = WORDS[kind]
    return f"{phrase} {limits}".rstrip()


@dataclass(frozen=True)
class Leaf:
    """A setting that can be overridden, by its dotted name. ``group`` is true for one that holds further settings."""

    name: str
    info: FieldInfo
    value: Any
    group: bool = False


def fields_of(cfg: Any) -> dict[str, FieldInfo]:
    return dict(cfg.__pydantic_fields__)


def child_of(node: Any, name: str) -> Any:
    return node[int(name)] if isinstance(node, tuple) else getattr(node, name)


def leaves_of(cfg: Any, prefix: str = "") -> Iterator[Leaf]:
    for name, info in fields_of(cfg).items():
        value = getattr(cfg, name)
        inside = list(enumerate(value)) if isinstance(value, tuple) else []
        if is_config_type(type(value)):
            # A group is itself a setting where it may be switched off: `--ema none`.
            if type(None) in arms(info.annotation):
                yield Leaf(prefix + name, info, value, group=True)
            yield from leaves_of(value, f"{prefix}{name}.")
        elif inside and all(is_config_type(type(item)) for _, item in inside):
            for index, item in inside:
                yield from leaves_of(item, f"{prefix}{name}.{index}.")
        else:
            yield Leaf(prefix + name, info, value)


def unit_of(info: FieldInfo) -> str:
    extra = info.json_schema_extra
    return str(extra.get("unit", "")) if isinstance(extra, dict) else ""


def affects_of(info: FieldInfo) -> Affects:
    """What another value of the setting changes of a run."""
    extra = info.json_schema_extra
    return cast(Affects, extra.get("affects", "results")) if isinstance(extra, dict) else "results"


def is_path(info: FieldInfo) -> bool:
    """Whether the setting may name a file or a folder."""
    extra = info.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("path"))


def at_home(info: FieldInfo, value: Any) -> Any:
    """The value of a setting, ``~`` being the user's home where it names a file or a folder."""
    named = isinstance(value, Path) or (isinstance(value, str) and is_path(info))
    return type(value)(place(value)) if named and str(value).startswith("~") else value


def gloss(info: FieldInfo) -> str:
    parts = [part for part in (info.description, f"in {unit_of(info)}" if unit_of(info) else "") if part]
    return f" ({', '.join(parts)})" if parts else ""


def complaint(leaf: Leaf, text: str) -> str:
    wanted = expected(leaf.info.annotation, limits_text(leaf.info.metadata))
    return f"{leaf.name}={text}: expected {wanted}{gloss(leaf.info)}"


def construct(make: Callable[[], Any], prefix: str, refusal: Callable[[str], str], opening: str = "") -> Any:
    """``make()``, its first ValidationError told as ``refusal(field)``, or by its own message when it spans fields."""
    try:
        return make()
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"]:
            raise UserError(refusal(str(first["loc"][0]))) from error
        where = f"{prefix.rstrip('.')}: " if prefix else ""
        raise UserError(f"{opening}{where}{first['msg'].removeprefix('Value error, ')}") from error
