"""Configurations: frozen, typed records that refuse what they do not know.

    @config
    class Optimizer:
        lr: float = setting("learning rate", gt=0)                      # required: no default
        warmup: int = setting("steps to the full rate", unit="steps", default=0, ge=0)

    cfg = override(recipe(), parse_overrides(["--optimizer.lr", "1e-4"]))

A variant is ``dataclasses.replace(cfg, ...)``; every copy is checked again. Checks across fields belong in
``__post_init__``: raise ``UserError``, or ``ValueError`` to have the place named. What ``override``, ``from_dict`` and
``load_yaml`` refuse is a ``UserError``; a wrong value in Python code is pydantic's ``ValidationError``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, dataclass_transform, get_args, get_origin

import yaml
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from astrolabe.runtime.errors import UserError, nearest
from astrolabe.runtime.files import write_whole
from astrolabe.runtime.settings import (
    Affects,
    Leaf,
    affects_of,
    arms,
    at_home,
    child_of,
    choices,
    complaint,
    construct,
    expected,
    fields_of,
    gloss,
    is_config_type,
    is_path,
    leaves_of,
    limits_text,
    parse,
    parse_plain,
    shown,
    type_text,
    unit_of,
)

T = TypeVar("T")
# Strict, because `True` for a count or "12" for a number is a mistake to name, not to guess at.
RULES = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def setting(
    description: str,
    *,
    unit: str = "",
    default: Any = ...,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    min_length: int | None = None,
    affects: Affects = "results",
    path: bool = False,
) -> Any:
    """One field of a configuration; without ``default`` it is required. Bounds hold for the value, or its length.

    ``affects``: what another value changes of a run: its results, their rounding alone, or nothing. ``path``: the text
    may name a file or a folder, relative to where the command is given.
    """
    bounds: dict[str, Any] = {"gt": gt, "ge": ge, "lt": lt, "le": le, "min_length": min_length}
    extra: dict[str, Any] = {"unit": unit, "affects": affects, "path": path}
    return Field(default, description=description, json_schema_extra=extra, **bounds)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(setting,))
def config(cls: type[T]) -> type[T]:
    """Class decorator: a frozen, keyword-only dataclass, checked on construction."""
    checked: Any = dataclass(frozen=True, kw_only=True, config=RULES)(cls)
    return checked


@dataclasses.dataclass(frozen=True)
class FieldDoc:
    """One setting, for a help page. ``choices`` are the accepted words, if it has any; ``limits`` reads ``> 0``."""

    name: str
    type_text: str
    value: str
    unit: str
    description: str
    choices: tuple[str, ...]
    limits: str


def describe(cfg: Any) -> list[FieldDoc]:
    """Every setting of ``cfg`` in the order written, nested ones by dotted name."""
    return [
        FieldDoc(
            name=leaf.name,
            type_text=type_text(leaf.info.annotation),
            value=shown(leaf.value),
            unit=unit_of(leaf.info),
            description=leaf.info.description or "",
            choices=choices(leaf.info.annotation),
            limits=limits_text(leaf.info.metadata),
        )
        for leaf in leaves_of(cfg)
        if not leaf.group
    ]


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting that differs between two configurations, as text."""

    name: str
    old: str
    new: str
    affects: Affects

    def __str__(self) -> str:
        return f"{self.name}: {self.old} -> {self.new}"


def changes(before: Any, after: Any) -> list[Change]:
    """Every setting that differs; one that only one side has is ``(absent)`` on the other, and affects results."""
    olds, news = ({leaf.name: leaf for leaf in leaves_of(cfg) if not leaf.group} for cfg in (before, after))
    found = []
    for name in olds | news:
        old, new = olds.get(name), news.get(name)
        before_text, after_text = (shown(leaf.value) if leaf else "(absent)" for leaf in (old, new))
        if before_text != after_text:
            found.append(Change(name, before_text, after_text, affects_of(new.info) if old and new else "results"))
    return found


def diff(before: Any, after: Any) -> list[str]:
    """``field: a -> b`` for every setting that differs."""
    return [str(change) for change in changes(before, after)]


def paths_in(cfg: Any) -> dict[str, str]:
    """The settings that may name a file or a folder, by dotted name; empty ones and ``none`` are left out."""
    leaves = (leaf for leaf in leaves_of(cfg) if not leaf.group and is_path(leaf.info))
    return {leaf.name: str(leaf.value) for leaf in leaves if leaf.value not in (None, "")}


# ------------------------------------------------------------------------------------------------ the command line


def parse_overrides(argv: Sequence[str]) -> dict[str, str]:
    """``--a.b value`` and ``--a.b=value`` to ``{"a.b": "value"}``; ``-`` may stand for ``_``; the last of a name wins.

    UserError for a word that belongs to no flag, and for a flag that has no value.
    """
    found: dict[str, str] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise UserError(f"unexpected argument {word!r}: settings are written --name value")
        flag, equals, value = word[2:].partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise UserError(f"--{flag} has no value: write --{flag} VALUE (--{flag}=VALUE if it begins with --)")
            value = words.pop(0)
        found[flag.replace("-", "_")] = value
    return found


def override(cfg: T, texts: Mapping[str, str], whole: Mapping[str, Any] | None = None) -> T:
    """A copy of ``cfg`` with settings, named by dots, replaced by values read from text; ``whole`` replaces others by
    values that were read already: a list of rewards, say.

    All are replaced at once, so that a rule across fields is asked only of the result. UserError for a name that
    ``cfg`` does not have, and for a value of the wrong type or out of range.
    """
    leaves = {leaf.name: leaf for leaf in leaves_of(cfg)}
    values: dict[str, Any] = dict(whole or {})
    for name, text in texts.items():
        if replaced := [other for other in whole or {} if name.startswith(f"{other}.")]:
            raise UserError(f"{name}={text}: {replaced[0]} are named anew on this command line; set it there")
        if holder := _holder(name, leaves):
            held = values.setdefault(holder, dict(leaves[holder].value))
            held[name.removeprefix(f"{holder}.")] = parse_plain(text)
            continue
        if name not in leaves:
            raise UserError(_unknown(name, leaves))
        try:
            values[name] = at_home(leaves[name].info, parse(leaves[name].info.annotation, text))
        except ValueError as error:
            raise UserError(complaint(leaves[name], text)) from error
        below = [other for other in texts if other.startswith(f"{name}.")]
        if below:
            raise UserError(f"{name}={text} leaves no {below[0]} to set: drop one of the two")
    return _rebuilt(cfg, "", values, leaves, texts)


def _holder(name: str, leaves: Mapping[str, Leaf]) -> str:
    """The setting of plain values, with names that are free, that ``name`` is one of; empty when there is none."""
    holder, _, own = name.rpartition(".")
    open_ended = holder in leaves and any(get_origin(arm) is dict for arm in arms(leaves[holder].info.annotation))
    return holder if open_ended and own.isidentifier() else ""


def _rebuilt(
    node: Any, prefix: str, values: Mapping[str, Any], leaves: Mapping[str, Leaf], texts: Mapping[str, str]
) -> Any:
    names = {name[len(prefix) :].split(".")[0] for name in values if name.startswith(prefix)}
    made = {
        name: values[prefix + name]
        if prefix + name in values
        else _rebuilt(child_of(node, name), f"{prefix}{name}.", values, leaves, texts)
        for name in names
    }
    if isinstance(node, tuple):
        return tuple(made.get(str(index), item) for index, item in enumerate(node))
    return construct(
        lambda: dataclasses.replace(node, **made),
        prefix,
        lambda name: complaint(leaves[prefix + name], texts.get(prefix + name, "")),
    )


def _unknown(name: str, leaves: Mapping[str, Leaf]) -> str:
    off = [leaf.name for leaf in leaves.values() if leaf.value is None and name.startswith(f"{leaf.name}.")]
    if off:
        return f"{name} cannot be set: {off[0]} is none here; start from a recipe or a file that has it"
    settable = [leaf.name for leaf in leaves.values() if not leaf.group]
    inside = [known for known in settable if known.startswith(f"{name}.")]
    if inside:
        return f"{name} is a group of settings: set {', '.join(inside)}"
    same_end = [known for known in settable if known.split(".")[-1] == name.split(".")[-1]]
    hint = f"; did you mean {', '.join(same_end[:3])}?" if same_end else nearest(name, settable)
    return f"unknown setting {name}{hint}"


# ------------------------------------------------------------------------------------------- plain values and files


def to_dict(cfg: Any) -> dict[str, Any]:
    """``cfg`` as plain values that YAML and JSON can hold: configurations to dicts, tuples to lists, paths to text."""
    return {name: _to_plain(getattr(cfg, name)) for name in fields_of(cfg)}


def _to_plain(value: Any) -> Any:
    if is_config_type(type(value)):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_dict(cls: type[T], mapping: Any, origin: str) -> T:
    """The inverse of ``to_dict``. ``origin`` (a file, say) opens the UserError for an unknown, missing or bad field."""
    return _from_mapping(cls, mapping, origin, "")


def save_yaml(cfg: Any, path: Path | str) -> None:
    """Write every setting of ``cfg``, in the order written in its class; ``load_yaml`` gives back an equal one."""
    write_whole(Path(path), yaml_of(cfg))


def yaml_of(cfg: Any) -> str:
    """Every setting of ``cfg`` as YAML, in the order written in its class."""
    text: str = yaml.dump(to_dict(cfg), Dumper=Readable, sort_keys=False, width=120, allow_unicode=True)
    return text


class Readable(yaml.SafeDumper):
    """Writes text as it reads, but for U+0085: PyYAML takes that for the end of a line unless it is escaped."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Between double quotes where something must be escaped."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if "\x85" in data else None)


Readable.add_representer(str, Readable.represent_str)


def load_yaml(cls: type[T], path: Path | str) -> T:
    """A configuration of class ``cls`` from a file; UserError naming the file, and the field where one is at fault."""
    return from_dict(cls, read_yaml(path), str(path))


class Once(yaml.SafeLoader):
    """YAML in which no name may stand twice in a mapping: the second would take the first one's place in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As always, but for that."""
        names = set()
        for key, _ in node.value:
            if key.value in names:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is set twice", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                names.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path | str) -> Any:
    """What a YAML file holds; UserError naming the file."""
    try:
        return yaml.load(Path(path).read_bytes().decode("utf-8"), Once)  # a SafeLoader
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error


def _from_mapping(cls: Any, mapping: Any, origin: str, prefix: str) -> Any:
    if not isinstance(mapping, Mapping):
        where = prefix.rstrip(".") or "the whole"
        raise UserError(f"{origin}: {where}: expected a mapping of settings, got {type(mapping).__name__}")
    fields = fields_of(cls)
    for name in mapping:
        if name not in fields:
            hint = nearest(f"{prefix}{name}", [prefix + known for known in fields])
            raise UserError(f"{origin}: unknown setting {prefix}{name}{hint}")
    for name, info in fields.items():
        if info.is_required() and name not in mapping:
            wanted = expected(info.annotation, limits_text(info.metadata))
            raise UserError(f"{origin}: missing setting {prefix}{name}: expected {wanted}{gloss(info)}")
    made = {
        name: at_home(fields[name], _from_plain(fields[name].annotation, value, origin, prefix + name))
        for name, value in mapping.items()
    }
    return construct(
        lambda: cls(**made),
        prefix,
        lambda name: f"{origin}: {complaint(Leaf(prefix + name, fields[name], None), _plain_text(mapping[name]))}",
        f"{origin}: ",
    )


def _from_plain(kind: Any, value: Any, origin: str, name: str) -> Any:
    """``value`` as ``kind`` would have it; what does not fit is returned as it came, for the check that follows."""
    kinds = arms(kind)
    groups = [arm for arm in kinds if is_config_type(arm)]
    if groups and (isinstance(value, Mapping) or len(kinds) == 1):
        return _from_mapping(_closest(groups, value), value, origin, f"{name}.")
    for arm in kinds:
        if get_origin(arm) is tuple and isinstance(value, list):
            items = get_args(arm)
            each = [items[0]] * len(value) if items[1:] == (Ellipsis,) else [*items, *([Any] * len(value))]
            return tuple(_from_plain(each[i], item, origin, f"{name}.{i}") for i, item in enumerate(value))
        if arm is Path and isinstance(value, str):
            return Path(value)
        if arm is float and str not in kinds and isinstance(value, str):
            try:  # YAML 1.1 takes `1e-4` for text: it wants `1.0e-4`
                return float(value)
            except ValueError:
                return value
    return value


def _closest(groups: list[Any], value: Any) -> Any:
    """Of several configurations, the one that ``value`` agrees with most: in its Literal fields, then in its names."""
    if len(groups) == 1:
        return groups[0]

    def agreement(cls: Any) -> tuple[int, int]:
        fields = {name: info for name, info in fields_of(cls).items() if name in value}
        literals = [name for name, info in fields.items() if get_origin(info.annotation) is Literal]
        return sum(value[name] in get_args(fields[name].annotation) for name in literals), len(fields)

    return max(groups, key=agreement)


def _plain_text(value: Any) -> str:
    return ",".join(map(shown, value)) if isinstance(value, list) else shown(value)
