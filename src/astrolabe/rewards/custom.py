"""A user's own reward: a class in a file or a package, made with plain arguments, checked before it is used."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from keyword import iskeyword
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, TypeVar, cast

from astrolabe.rewards.base import Reward, UncertainReward
from astrolabe.runtime.errors import UserError, nearest
from astrolabe.runtime.files import place, refusal
from astrolabe.runtime.settings import Plain, arms, expected, shown
from astrolabe.types import Video

Made = TypeVar("Made")
SAID = 300  # characters of an error that are told
QUOTE = """; in quotes what looks like a number is text: '"7"'"""
TEMPLATE = '''"""A reward of our own: {name}."""

from collections.abc import Sequence

from torch import Tensor


class {name}:
    """Higher is better. Name it in a recipe as `{file}:{name}`; `astrolabe rewards check {file}:{name}` tries it."""

    name = "{label}"

    def __call__(self, video: Tensor, prompts: Sequence[str]) -> Tensor:
        """One score a video. `video` is [batch, frames, 3, height, width] in [0, 1], on the CPU; `prompts` has one
        text for each. A score that is not finite drops its video from the step."""
        redness = video[:, :, 0] - video[:, :, 1:].mean(2)  # for example
        return redness.mean((1, 2, 3))
'''


def load_custom(spec: str, args: Mapping[str, Plain] | None = None) -> Reward:
    """The reward that ``spec`` names, ``path/to/file.py:Class`` or ``package.module:Class``, made with ``args``.

    This runs the user's code: call it only for what the user named, never for what a file brought. UserError when
    there is no such class, when it does not take these arguments, when it cannot be made, or when it is no reward.
    """
    origin, _, name = spec.rpartition(":")
    if not origin or not name.isidentifier():
        raise UserError(f"reward {spec!r}: expected path/to/file.py:Class or package.module:Class")
    path = spec_file(spec)
    if path is not None:
        check_readable(spec, path)
    module = guarded(spec, lambda: from_file(path) if path is not None else importlib.import_module(origin))
    kind = getattr(module, name, None)
    if not inspect.isclass(kind):
        classes = [n for n, value in vars(module).items() if inspect.isclass(value)]
        own = [n for n in classes if getattr(module, n).__module__ == module.__name__]
        there = ", ".join(own or classes) or "no class at all"
        raise UserError(f"reward {spec!r}: {origin} has no class {name}; it has {there}")
    given = fitted(spec, kind, args or {})
    reward = guarded(spec, lambda: kind(**given))
    guarded(spec, lambda: check_signature(spec, reward))
    return DoubtingOwn(spec, reward) if isinstance(reward, UncertainReward) else Own(spec, cast(Reward, reward))


class Own:
    """A user's reward, whose exceptions are sentences that name it."""

    def __init__(self, spec: str, reward: Reward):
        self.spec, self.reward, self.name = spec, reward, reward.name

    def __call__(self, video: Video, prompts: Sequence[str]) -> Any:
        """See ``rewards.base.Reward``; whatever the user's code gives is checked by ``rewards.base.judged``."""
        return guarded(self.spec, lambda: self.reward(video, prompts))


class DoubtingOwn(Own):
    """One that knows how uncertain it is."""

    def judge(self, video: Video, prompts: Sequence[str]) -> Any:
        """See ``rewards.base.UncertainReward``."""
        return guarded(self.spec, lambda: cast(UncertainReward, self.reward).judge(video, prompts))


def spec_file(spec: str) -> Path | None:
    """The file that a spec names, if it names one; ``~`` is the user's home."""
    path = place(spec.rpartition(":")[0])
    return path if path.suffix == ".py" else None


def check_readable(spec: str, path: Path) -> None:
    """UserError unless the file can be read, which says whether it is absent or kept from this user."""
    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise UserError(f"reward {spec!r}: no such file as {path}") from None
    except OSError as error:
        raise UserError(f"reward {spec!r}: {refusal(path, error)}") from None


def guarded(spec: str, make: Callable[[], Made]) -> Made:
    """``make()``; what the user's code raises becomes a sentence, which names the line."""
    try:
        return make()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code does
        raise UserError(f"reward {spec!r}: {told(spec, error)}") from error


def told(spec: str, error: BaseException) -> str:
    """An error of the user's code on one line: its kind, what it says, and the innermost line of theirs."""
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    said = " ".join(said.split())
    line = line_of(spec, error)
    return type(error).__name__ + (f": {said[:SAID]}" if said else "") + (f" ({line})" if line else "")


def line_of(spec: str, error: BaseException) -> str:
    """``mine.py, line 12``: where in the user's file, in one beside it or in its package an error arose."""
    path = spec_file(spec)
    package = spec.rpartition(":")[0].partition(".")[0]

    def theirs(file: str) -> bool:
        if path is not None:
            return Path(file).resolve().parent == path.resolve().parent
        return package in Path(file).with_suffix("").parts

    lines = [(frame.f_code.co_filename, number) for frame, number in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        lines.append((error.filename, error.lineno))
    found = [f"{Path(file).name}, line {number}" for file, number in lines if theirs(file)]
    return found[-1] if found else ""


def fitted(spec: str, kind: type, args: Mapping[str, Plain]) -> dict[str, Any]:
    """``args`` as the class takes them. UserError, with a list of what it takes, for one that it does not know, for
    one that is missing, and for one of another type than it says."""
    try:
        parameters = signature_of(kind).parameters
    except (TypeError, ValueError):  # classes written in C may not tell
        return dict(args)
    named = {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    anything = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    takes = ", ".join(" ".join(str(p).split()) for p in named.values()) or ("anything" if anything else "none")
    for name in args:
        if name not in named and not anything:
            raise UserError(f"reward {spec!r}: unknown argument {name}{nearest(name, named)}; its arguments: {takes}")
    if missing := [name for name, p in named.items() if p.default is p.empty and name not in args]:
        raise UserError(
            f"reward {spec!r}: it is made with {', '.join(missing)}, which is not given: write "
            f"args.{missing[0]}=VALUE; its arguments: {takes}"
        )
    return {
        name: as_said(value, named[name].annotation, f"reward {spec!r}: args.{name}") if name in named else value
        for name, value in args.items()
    }


def signature_of(kind: type) -> inspect.Signature:
    """How a class is called, its annotations as types where they can be had."""
    try:
        return inspect.signature(kind, eval_str=True)
    except Exception:  # an annotation may be any expression, and need not make sense
        return inspect.signature(kind)


def as_said(value: Plain, annotation: Any, name: str) -> Any:
    """``value`` in a type of ``annotation``, where that has none but plain types and paths; UserError if it has none
    that fits. Any other annotation is the class's own affair."""
    kinds = arms(annotation)
    if not set(kinds) <= {bool, int, float, str, Path, NoneType} or type(value) in kinds:
        return value
    try:
        if Path in kinds and isinstance(value, str):
            return Path(value)
        if float in kinds and isinstance(value, int | str) and not isinstance(value, bool):
            return float(value)  # 1, and 1e-4, which YAML takes for text
    except ValueError:
        pass
    raise UserError(f"{name}={shown(value)}: expected {expected(annotation)}{QUOTE if str in kinds else ''}")


def from_file(path: Path) -> ModuleType:
    """The module in a file, by a name of its own."""
    label = f"astrolabe_reward_{path.stem}"
    found = importlib.util.spec_from_file_location(label, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[label] = module  # dataclasses and pickle look there
    found.loader.exec_module(module)
    return module


def check_signature(spec: str, reward: object) -> None:
    """UserError unless it has a name and takes (video, prompts), and so does its ``judge`` if it has one."""
    if not isinstance(getattr(reward, "name", None), str) or not callable(reward):
        raise UserError(f"reward {spec!r}: a reward has a `name` and a method `__call__(self, video, prompts)`")
    for what, method in (("it", reward), ("its judge", getattr(reward, "judge", None))):
        if not callable(method):
            continue
        try:
            inspect.signature(method).bind("video", "prompts")
        except TypeError as error:
            takes = inspect.signature(method)
            raise UserError(
                f"reward {spec!r}: {what} is called with (video, prompts) and takes {takes}: {error}"
            ) from None


def write_template(name: str, path: Path) -> str:
    """A file with a reward ``name`` to start from; gives its spec. UserError rather than write over a file."""
    if not name.isidentifier() or iskeyword(name):
        raise UserError(f"{name!r} is no name for a class; Redness, say")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE.format(name=name, file=path, label=name.lower()))
    except FileExistsError:
        raise UserError(f"{path} exists; name another file with --out") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; name another file with --out") from None
    return f"{path}:{name}"
