"""A user's own reward: a class in a file or a package, made without arguments, checked before it is used."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

from astrolabe.rewards.base import Reward, UncertainReward
from astrolabe.runtime.errors import UserError
from astrolabe.types import Video

Made = TypeVar("Made")
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


def load_custom(spec: str) -> Reward:
    """The reward that ``spec`` names: ``path/to/file.py:Class`` or ``package.module:Class``.

    This runs the user's code: call it only for what the user named, never for what a file brought. UserError when
    there is no such class, when it cannot be made, or when it is no reward.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise UserError(f"reward {spec!r}: expected path/to/file.py:Class or package.module:Class")
    module = guarded(spec, lambda: from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place))
    kind = getattr(module, name, None)
    if not inspect.isclass(kind):
        there = ", ".join(n for n, value in vars(module).items() if inspect.isclass(value)) or "no class at all"
        raise UserError(f"reward {spec!r}: {place} has no class {name}; it has {there}")
    reward = guarded(spec, kind)
    check_signature(spec, reward)
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
    """The file that a spec names, if it names one."""
    place = Path(spec.rpartition(":")[0])
    return place if place.suffix == ".py" else None


def guarded(spec: str, make: Callable[[], Made]) -> Made:
    """``make()``; what the user's code raises becomes a sentence."""
    try:
        return make()
    except UserError:
        raise
    except Exception as error:  # whatever the user's code does
        raise UserError(f"reward {spec!r}: {type(error).__name__}: {error}") from error


def from_file(path: Path) -> ModuleType:
    """The module in a file, by a name of its own."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
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
    if not name.isidentifier():
        raise UserError(f"{name!r} is no name for a class; Redness, say")
    if path.exists():
        raise UserError(f"{path} exists; name another file with --out")
    path.write_text(TEMPLATE.format(name=name, file=path, label=name.lower()), encoding="utf-8")
    return f"{path}:{name}"
