"""``astrolabe train``."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from astrolabe.commands.choosing import configuration_arguments, configured, default_out, recipe_of
from astrolabe.experiment import TrainConfig
from astrolabe.recipes import RECIPES
from astrolabe.runtime.config import describe, to_dict
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.progress import progress
from astrolabe.runtime.world import World

FIELDS = OWN_HELP = True
PATIENCE = 600.0  # seconds in which a process of several must come to where the others are
EMPTY = "''"  # as a shell takes an empty value
WIDEST = 100  # columns of the help page; fewer on a narrower terminal


def arguments(parser: ArgumentParser) -> None:
    """See ``commands``."""
    configuration_arguments(parser, optional=True)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="the run's folder (default: runs/RECIPE)")
    parser.add_argument("-h", "--help", action="store_true", help="show every field with its meaning and unit")
    parser.set_defaults(parser=parser)


def run(args: Namespace, rest: Sequence[str]) -> None:
    """Train, and say what may come next."""
    if args.help:
        print(args.parser.format_help())
        print("\n".join(help_of(args.recipe or "shapes", recipe_of(args.recipe or "shapes", args.trust_code))))
        return
    if args.recipe is None:
        raise UserError(f"train needs a recipe ({', '.join(RECIPES)}) or a config.yaml; `astrolabe train --help`")
    from astrolabe.runtime.launched import agree, together

    with together(PATIENCE) as world:
        cfg, out = configured(args, rest, runs=True), args.out or default_out(args.recipe)
        check_shared(cfg, world)
        prompts = Path(cfg.prompts).read_text(errors="replace") if Path(cfg.prompts).is_file() else ""
        settings = json.dumps(to_dict(cfg), sort_keys=True)
        agree(world, configuration=settings, folder=str(out.absolute()), prompts=prompts)
        from astrolabe.runs.history import Origin

        with progress("starting"):
            from astrolabe.training import attend, train

        if not world.leads:
            attend(cfg, world)
        folder = train(cfg, out, Origin(args.recipe, shlex.join(["astrolabe", *sys.argv[1:]])), world)
        print(f"next: astrolabe evaluate {folder} && astrolabe report {folder}")


def check_shared(cfg: TrainConfig, world: World) -> None:
    """UserError for a step that so many processes cannot share."""
    if world.size == 1:
        return
    samples, batches = cfg.rollout.prompts * cfg.rollout.group_size, cfg.rollout.batches
    asked = f"torchrun has started {world.size} processes"
    if world.size > batches:
        raise UserError(
            f"{asked}, and a step has {samples} candidates in {batches} batches to share: start at most {batches}, or "
            "make them smaller (rollout.micro_batch, rollout.side_by_side)"
        )
    if cfg.processes not in ("auto", 1):
        raise UserError(f"{asked}, and processes={cfg.processes} asks for more of each: leave it at auto")
    if cfg.pool.backend == "ray":
        raise UserError(f"{asked}, and each would start a pool (pool.backend=ray): leave it at inline")


def help_of(recipe: str, cfg: TrainConfig) -> Iterator[str]:
    """Every recipe, then every field with its value, unit, meaning and what it accepts."""
    yield "recipes:"
    for name, make in RECIPES.items():
        yield from entry(name, (make.__doc__ or "").splitlines()[0].replace("``", "`"))
    yield f"\nfields, with the values of recipe {recipe} (N counts from 0):"
    docs = list(describe(cfg))
    for name in dict.fromkeys(numberless(doc.name) for doc in docs):
        same = [doc for doc in docs if numberless(doc.name) == name]
        values = ", ".join(dict.fromkeys(doc.value for doc in same))
        accepts = " ".join(part for part in (same[0].type_text, same[0].limits) if part)
        unit = f" {same[0].unit}" if same[0].unit else ""
        yield from entry(f"--{name} {values or EMPTY}{unit}", f"{same[0].description} ({accepts})")


def numberless(name: str) -> str:
    """``rewards.N.weight`` for ``rewards.3.weight``."""
    return re.sub(r"\.\d+\.", ".N.", name)


def entry(head: str, said: str) -> Iterator[str]:
    """A name with its values, and its explanation below, as wide as the terminal."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    yield from textwrap.wrap(head, width, initial_indent=" " * 2, subsequent_indent=" " * 4)
    yield from textwrap.wrap(said, width, initial_indent=" " * 8, subsequent_indent=" " * 8)
