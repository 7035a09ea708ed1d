"""A reward and its settings as one word of the command line: ``hpsv3,frames=8,model.weights=/models/hpsv3``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from astrolabe.rewards.settings import RewardModelSettings, RewardSettings, ServerSettings
from astrolabe.runtime.config import override
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.settings import KEY, construct, pairs, parts

# A name ends where settings begin or the word does. That of a file ends at its class, so that a path may have commas.
NAME = re.compile(rf"(?:[\w.]+(?::\w+)?|.+?\.py:\w+)(?=$|,{KEY.pattern})", re.DOTALL)
NEEDED = ("url", "model", "rubric")


def parse_spec(text: str) -> RewardSettings:
    """The settings that ``text`` stands for: ``NAME``, ``path/to/file.py:Class`` or ``package.module:Class``, and after
    commas what is set: ``weight=0.5``, ``role=judge``, ``frames=8``, ``model.device=cuda``, ``server.url=...``,
    ``worker.gpus=1``, ``args.threshold=0.3``.

    A comma begins a setting only before ``name=``; any other is part of a path, or of a value. UserError, which names
    ``text``, for anything that is no such word.
    """
    try:
        name, texts = split_spec(text)
        return override(begun(name, texts), texts)
    except (UserError, ValueError) as error:
        said = str(error)
        raise UserError(said if text in said else f"{text}: {said}") from None


def split_spec(text: str) -> tuple[str, dict[str, str]]:
    """The name in ``text`` and what is set, by its dotted name. ValueError when that cannot be told apart."""
    found = NAME.match(text)
    name = found[0] if found else parts(text)[0]
    if not name.strip():
        raise ValueError("no reward is named; write NAME,frames=8")
    if "," in name.rpartition(":")[2]:
        raise ValueError(f"{name.rpartition(':')[2].partition(',')[2]!r} is no setting; write NAME,frames=8")
    settings = dict(pairs(text[len(name) + 1 :]))
    if "name" in settings:
        raise ValueError("the name stands first; write NAME,frames=8")
    return name, settings


def begun(name: str, texts: Mapping[str, str]) -> RewardSettings:
    """The reward ``name``, with every group of settings that is set there."""
    groups = {key.partition(".")[0] for key in texts if "." in key}
    model = RewardModelSettings() if "model" in groups else None
    if name != "server":
        if "server" in groups:
            raise ValueError("server.* is for the reward `server` alone")
        return RewardSettings(name=name, model=model)
    if missing := [f"server.{field}" for field in NEEDED if f"server.{field}" not in texts]:
        raise ValueError(f"a judge behind a server needs {', '.join(missing)}: server,server.url=http://...")
    url, judge, rubric = (texts[f"server.{field}"] for field in NEEDED)
    server = construct(
        lambda: ServerSettings(url=url, model=judge, rubric=Path(rubric)), "server.", lambda field: f"server.{field}"
    )
    return RewardSettings(name=name, model=model, server=server)
