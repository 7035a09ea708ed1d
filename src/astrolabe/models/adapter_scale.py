"""How strongly an adapter acts, as far as its file's header or its configuration says so.

A change of weight is ``alpha / rank * B @ A``. Alpha may stand beside each layer; else here, in one of the spellings of

    diffusers     lora_adapter_metadata: {"transformer.lora_alpha": ..., "transformer.alpha_pattern": {...}, ...}
    kohya         ss_network_alpha, ss_network_dim, ss_network_args
    PEFT          adapter_config.json; the same fields in a header, plain or as JSON
    Astrolabe     astrolabe: {"alpha": ..., "rank": ...}

A header that says nothing means alpha = rank. One that says something about alpha that is not understood is refused: an
adapter at a strength that it was not trained at looks like a bad adapter.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astrolabe.runtime.errors import UserError
from astrolabe.runtime.strict import few

ALPHA = ("lora_alpha", "network_alpha", "ss_network_alpha", "alpha")
RANK = ("r", "rank", "lora_rank", "network_dim", "ss_network_dim")
RSLORA = ("use_rslora", "use_rs_lora", "rslora", "rs_lora")
DORA = ("use_dora", "dora", "dora_wd", "weight_decompose")
STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that change the base weights too
HISTORY = re.compile(r"^ss_(?!network_)")  # how a kohya training went: tags, folders, buckets
ABOUT_ALPHA = re.compile(r"(?i)(^|[ _-]|(?<=[a-z])(?=A))alphas?($|[ _-])|^(lora[ _-]?)?scaling$")
METADATA = "lora_adapter_metadata"  # of diffusers: an object in JSON
OF_CONVOLUTIONS = ("conv_alpha",)
ADVICE = "merge the adapter in its own program first"


@dataclass(frozen=True)
class Strength:
    """What is said; ``source`` names who says so. ``owed``: PEFT's own fields, where alpha may not be missing."""

    source: str
    alpha: float | None = None
    rank: float | None = None
    alphas: Mapping[str, Any] = field(default_factory=dict)
    ranks: Mapping[str, Any] = field(default_factory=dict)
    unknown: Sequence[str] = ()
    owed: bool = False

    def of(self, names: Sequence[str], rank: int) -> float:
        """Alpha of a layer that has none beside it, given its rank and its names in the file, with and without what
        stands before them all. UserError when what is said cannot be right, or is not understood."""
        if self.unknown:
            raise UserError(f"{self.source}: says {few(self.unknown)}, which is not understood; {ADVICE}")
        alpha = _matching(self.alphas, names, self.alpha)
        if alpha is None:
            if self.owed:
                raise UserError(f"{self.source}: has no number as lora_alpha; write there what it was trained with")
            return float(rank)
        said = _matching(self.ranks, names, self.rank)
        if said is not None and said != rank:
            raise UserError(f"{self.source}: says rank {said:g}, but {names[0]} has {rank}; its alpha may be another's")
        return alpha

    def check_patterns(self, names: Sequence[str]) -> None:
        """UserError when a pattern is for no layer of ``names``."""
        idle = [key for key in (*self.alphas, *self.ranks) if not any(_fits(key, name) for name in names)]
        if idle:
            raise UserError(f"{self.source}: alpha_pattern or rank_pattern names {few(idle)}, which the adapter lacks")


def _fits(pattern: str, name: str) -> bool:
    try:
        return re.match(rf"(.*\.)?({pattern})$", name) is not None  # as PEFT reads its patterns
    except re.error:
        return False


def _matching(patterns: Mapping[str, Any], names: Sequence[str], otherwise: float | None) -> float | None:
    fitting = (float(value) for key, value in patterns.items() if any(_fits(key, name) for name in names))
    return next(fitting, otherwise)


def read_strength(said: Mapping[str, Any], source: Path | str, owed: bool = False) -> Strength:
    """What a header or a configuration says; UserError for rsLoRA, DoRA, and starts that change the base."""
    numbers: dict[str, set[float]] = {"alpha": set(), "rank": set()}
    patterns: dict[str, dict[str, Any]] = {"alpha_pattern": {}, "rank_pattern": {}}
    unknown: list[str] = []
    for name, value in statements(said):
        leaf = name.rpartition(".")[2].lower()
        owed = owed or name.startswith(f"{METADATA}.")
        if (leaf in (*RSLORA, *DORA) and _true(value)) or (leaf == "init_lora_weights" and _changes_base(value)):
            raise UserError(f"{source}: {leaf}={value} is not supported; {ADVICE}")
        if leaf in ("layer_replication", "modules_to_save") and value:
            raise UserError(f"{source}: {leaf} is not supported; {ADVICE}")
        kind = "alpha" if leaf in ALPHA else "rank" if leaf in RANK else None
        if leaf in patterns:
            patterns[leaf] |= value if _is_pattern(value) else {}
            unknown += [f"{name}={value}"] if value and not _is_pattern(value) else []
        elif kind and (number := _number(value)) is not None:
            numbers[kind].add(number)
        elif (kind == "alpha" and value not in (None, "None")) or (not kind and _speaks_of_alpha(name, value)):
            unknown.append(f"{name}={str(value)[:40]}")
    if len(numbers["alpha"]) > 1:
        unknown.append(f"alpha {' and '.join(f'{number:g}' for number in sorted(numbers['alpha']))}")
    alpha, rank = (next(iter(numbers[kind])) if len(numbers[kind]) == 1 else None for kind in ("alpha", "rank"))
    return Strength(str(source), alpha, rank, patterns["alpha_pattern"], patterns["rank_pattern"], unknown, owed)


def statements(said: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every field with its dotted name, JSON in text opened; without the history of training and other networks."""
    for key, value in said.items():
        name = f"{above}{key}"
        if HISTORY.match(str(key)) or any(part.startswith("text_encoder") for part in name.split(".")):
            continue
        opened = _opened(value)
        if isinstance(opened, Mapping) and not str(key).endswith("_pattern") and str(key).lower() not in ALPHA:
            yield from statements(opened, f"{name}.")
        else:
            yield name, opened


def _opened(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _true(value: Any) -> bool:
    return str(value).lower() in ("true", "1", "yes")


def _changes_base(value: Any) -> bool:
    return isinstance(value, str) and value.lower().startswith(STARTS)


def _is_pattern(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_number(number) is not None for number in value.values())


def _speaks_of_alpha(name: str, value: Any) -> bool:
    """A field that is named after alpha, or one of such fields that is not the JSON it should be."""
    leaf = name.rpartition(".")[2]
    broken = isinstance(value, str) and value.lstrip().startswith("{") and "alpha" in value
    broken = broken or (name == METADATA and value is not None)
    return leaf not in OF_CONVOLUTIONS and (broken or (ABOUT_ALPHA.search(leaf) is not None and value is not None))
