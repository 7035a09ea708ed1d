"""The command line: ``astrolabe demo | train | generate | evaluate | report``."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from astrolabe import __version__
from astrolabe.data.prompts import read_prompts
from astrolabe.evaluate import evaluate, summarise, write_json
from astrolabe.evaluation.suites import ATTRIBUTES, MEASURES
from astrolabe.experiment import TrainConfig, resolved
from astrolabe.generate import generate
from astrolabe.recipes import RECIPES
from astrolabe.report.page import write_report
from astrolabe.runs import RunFolder
from astrolabe.runtime.config import describe, load_yaml, override, parse_overrides
from astrolabe.runtime.errors import UserError, nearest
from astrolabe.train import Interrupted, train

INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """argparse that fails in one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; `{self.prog} --help` shows what is accepted")


def build_parser() -> Parser:
    """Every command and its options."""
    parser = Parser(prog="astrolabe", description="Align distilled autoregressive video models by online RL.",
                    allow_abbrev=False)  # fmt: skip
    parser.add_argument("--version", action="version", version=f"astrolabe {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser, metavar="COMMAND")

    demo = commands.add_parser("demo", help="align the embedded model, evaluate it, write a report", allow_abbrev=False)
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="the run's folder (default: runs/demo)")

    training = commands.add_parser("train", help="run a recipe", add_help=False, allow_abbrev=False)
    training.add_argument("recipe", nargs="?", help="a recipe's name, or a config.yaml to train from again")
    training.add_argument("--out", type=Path, help="the run's folder (default: runs/RECIPE)")
    training.add_argument("-h", "--help", action="store_true", help="show every field with its meaning and unit")

    making = commands.add_parser("generate", help="make videos", allow_abbrev=False)
    source = making.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", help="a prompt (may be repeated)")
    source.add_argument("--prompts", type=Path, help="a file with one prompt a line")
    making.add_argument("--run", type=Path, help="use the adapter of this run (default: the bare model)")
    making.add_argument("--frames", type=int, help="length in latent frames, a multiple of the chunk (default: a clip)")
    making.add_argument("--seed", type=int, default=0)
    making.add_argument("--out", type=Path, required=True, help="folder for the videos")

    judging = commands.add_parser(
        "evaluate", help="compare a run with its base on held-out prompts", allow_abbrev=False
    )
    judging.add_argument("run", type=Path)
    judging.add_argument("--split", choices=("test", "validation"), default="test")
    judging.add_argument("--no-long", action="store_true", help="leave out the videos of twice the length")

    reporting = commands.add_parser("report", help="write RUN/report.html", allow_abbrev=False)
    reporting.add_argument("run", type=Path)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The console script: exit code 0, 2 for a user's mistake (one line), 130 for Ctrl-C."""
    try:
        run(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        print(f"astrolabe: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        print(f"astrolabe: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stop:
        print(f"astrolabe: {stop}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        print("astrolabe: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def run(argv: list[str]) -> None:
    """Dispatch one command."""
    args, rest = build_parser().parse_known_args(argv)
    if rest and args.command != "train":
        raise UserError(f"unknown argument {rest[0]!r}; `astrolabe {args.command} --help` shows what is accepted")
    if args.command == "demo":
        demo(args.out)
    elif args.command == "train":
        command_train(args.recipe, args.out, rest, args.help)
    elif args.command == "generate":
        prompts = args.prompt or read_prompts(args.prompts)
        for path in generate(prompts, args.run, args.frames, args.seed, args.out):
            print(path)
    elif args.command == "evaluate":
        show_evaluation(evaluate(RunFolder(args.run), args.split, long=not args.no_long))
    else:
        print(write_report(RunFolder(args.run)))


def command_train(recipe: str | None, out: Path | None, rest: Sequence[str], help_wanted: bool) -> None:
    """``astrolabe train RECIPE [--field.sub value ...]``."""
    if recipe is None and not help_wanted:
        raise UserError(f"train needs a recipe ({', '.join(RECIPES)}) or a config.yaml; `astrolabe train --help`")
    cfg = resolve(recipe or "shapes")
    if help_wanted:
        show_fields(recipe or "shapes", cfg)
        return
    cfg = override(cfg, parse_overrides(rest))
    folder = train(cfg, out or Path("runs") / Path(recipe or "").stem)
    print(f"trained: {folder}\nnext:    astrolabe evaluate {folder} && astrolabe report {folder}")


def resolve(recipe: str) -> TrainConfig:
    """The configuration of a recipe's name or of a config.yaml."""
    if recipe in RECIPES:
        return RECIPES[recipe]()
    if recipe.endswith((".yaml", ".yml")):
        return load_yaml(TrainConfig, Path(recipe))
    raise UserError(
        f"recipe {recipe!r} is unknown{nearest(recipe, RECIPES)}; there are: {', '.join(RECIPES)}; "
        "it comes before the fields"
    )


def show_fields(recipe: str, cfg: TrainConfig) -> None:
    """The help page of ``train``: every recipe, then every field with its value, unit, meaning and what it accepts."""
    lines = ["usage: astrolabe train RECIPE_OR_CONFIG [--out DIR] [--field.sub value ...]", "", "recipes"]
    lines += [f"  {name:16}{(make.__doc__ or '').splitlines()[0]}" for name, make in RECIPES.items()]
    lines += ["", f"fields, with the values of recipe {recipe}"]
    for doc in describe(cfg):
        accepts = " ".join(part for part in (doc.type_text, doc.limits) if part)
        lines.append(f"  --{doc.name} {doc.value}{f' {doc.unit}' if doc.unit else ''}")
        lines += textwrap.wrap(f"{doc.description} ({accepts})", 110, initial_indent=" " * 8, subsequent_indent=" " * 8)
    print("\n".join(lines))


def show_evaluation(result: dict[str, Any]) -> None:
    """The comparison as a table on the terminal."""
    table = Table(title=f"{result['videos']} videos of split {result['split']}, {len(result['seeds'])} noise seeds")
    for heading in ("measure", "base", "aligned", "difference", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for measure in MEASURES:
        row = result["measures"][measure]
        low, high = row["ci95"]
        name = f"[bold]{measure}" if measure == "joint" else measure if measure not in ATTRIBUTES else f"  {measure}"
        table.add_row(name, f"{row['base']:.3f}", f"{row['aligned']:.3f}", f"{row['difference']:+.3f}",
                      f"{low:+.3f} .. {high:+.3f}")  # fmt: skip
    Console().print(table)


def demo(out: Path) -> None:
    """Train, evaluate, report: a finished demo is kept, and the next one gets a folder of its own."""
    began = time.monotonic()
    cfg = resolved(RECIPES["shapes"]())
    number, folder = 1, RunFolder(out)
    while (folder.path / "summary.json").exists() or folder.holds_another(cfg):
        number += 1
        folder = RunFolder(out.with_name(f"{out.name}-{number}"))
    began -= folder.seconds_trained()  # by earlier sessions of this run
    print(f"aligning the embedded model in {folder.path} ...")
    train(cfg, folder.path)
    result = evaluate(folder)
    page = write_report(folder)
    summary = summarise(result, time.monotonic() - began)
    write_json(folder.path / "summary.json", summary)
    show_evaluation(result)
    low, high = summary["ci95"]
    print(f"joint oracle: {summary['base']:.3f} -> {summary['aligned']:.3f}  "
          f"({summary['difference']:+.3f}, 95 % interval {low:+.3f} .. {high:+.3f}) in {summary['seconds']:.0f} s\n"
          f"look at  {page}\nnumbers  {folder.path / 'summary.json'}")  # fmt: skip
