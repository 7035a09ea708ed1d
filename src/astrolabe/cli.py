"""The command line: ``astrolabe demo | train | evaluate | report | generate | rewards | ...``."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table

from astrolabe import __version__
from astrolabe.assembly import check_windows, make_algorithm
from astrolabe.cli_rewards import add_reward_commands, command_rewards
from astrolabe.data.prompts import read_prompts
from astrolabe.data.scripts import parse_script, prompts_of, read_script
from astrolabe.doctor import examine, show_findings, size
from astrolabe.evaluate import evaluate, summarise, write_json
from astrolabe.evaluation.suites import ATTRIBUTES, MEASURES
from astrolabe.experiment import ModelChoice, ModelSettings, TrainConfig, model_settings, resolved
from astrolabe.export import Format, export
from astrolabe.generate import Job, embed_with_bar, generate
from astrolabe.models.released import table as released_table
from astrolabe.models.settings import ReleasedSettings
from astrolabe.plan import DEVICES, knobs_that_help, make_plan, target
from astrolabe.recipes import RECIPES
from astrolabe.report.page import write_report
from astrolabe.runs import RunFolder
from astrolabe.runtime.config import describe, load_yaml, override, parse_overrides
from astrolabe.runtime.errors import UserError, nearest
from astrolabe.runtime.interrupts import Interrupted
from astrolabe.train import train

INTERRUPTED = 130
MODEL_FIELDS = (
    "Fields of the model may be set too: --model.weights FOLDER, --model.window_frames 21, and so on; "
    "`astrolabe train longlive --help` shows them all."
)


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
    training.add_argument(
        "--trust-code", action="store_true", help="run the rewards of your own that a config.yaml names"
    )
    training.add_argument("-h", "--help", action="store_true", help="show every field with its meaning and unit")

    judging = commands.add_parser(
        "evaluate", help="compare a run with its base on held-out prompts", allow_abbrev=False
    )
    judging.add_argument("run", type=Path)
    judging.add_argument("--split", choices=("test", "validation"), default="test")
    judging.add_argument("--no-long", action="store_true", help="leave out the videos of twice the length")

    reporting = commands.add_parser("report", help="write RUN/report.html", allow_abbrev=False)
    reporting.add_argument("run", type=Path)
    add_model_commands(commands)
    return parser


def add_model_commands(commands: Any) -> None:
    """The commands that work on any model, trained here or not."""
    making = commands.add_parser("generate", help="make videos of any length", allow_abbrev=False, epilog=MODEL_FIELDS)
    source = making.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", help="a prompt or a one-line script (may be repeated)")
    source.add_argument("--prompts", type=Path, help="a file with one prompt or script a line")
    source.add_argument("--script", type=Path, action="append", help="a script in YAML or JSON (may be repeated)")
    making.add_argument("--model", help="the model (default: the adapter's, or shapes); `astrolabe models` shows them")
    making.add_argument("--adapter", type=Path, help="a run, a PEFT folder or a LoRA file (default: the bare model)")
    length = making.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, help="length (default: the script's, or a clip)")
    length.add_argument("--frames", type=int, help="length in latent frames, a multiple of the chunk")
    making.add_argument("--start", type=Path, help="an image, or a video whose end is gone on from")
    making.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    making.add_argument("--batch", type=int, default=1, help="videos made side by side (default: 1)")
    making.add_argument("--latents", action="store_true", help="keep the clean latents too, as safetensors")
    making.add_argument("--out", type=Path, required=True, help="folder for the videos")

    commands.add_parser("models", help="the released models that can be loaded", allow_abbrev=False)

    embedding = commands.add_parser("embed", help="embed prompts, so that training needs no text encoder",
                                    allow_abbrev=False, epilog=MODEL_FIELDS)  # fmt: skip
    embedding.add_argument("prompts", type=Path, help="a file with one prompt or script a line")
    embedding.add_argument("--model", default="self-forcing", help="whose text encoder (all of Wan 2.1 share one)")

    exporting = commands.add_parser("export", help="write an adapter for other programs", allow_abbrev=False,
                                    epilog=MODEL_FIELDS)  # fmt: skip
    exporting.add_argument("adapter", type=Path, help="a run, a PEFT folder or a LoRA file")
    exporting.add_argument("--format", choices=get_args(Format), default="peft", help="layout (default: peft)")
    exporting.add_argument("--model", help="what a merged checkpoint is made from (default: the run's model)")
    exporting.add_argument(
        "--dtype", choices=("bfloat16", "float32"), help="of a merged checkpoint (default: as it was)"
    )
    exporting.add_argument("--out", type=Path, required=True, help="folder (peft) or file")

    checking = commands.add_parser("doctor", help="examine this machine, and whether a recipe could start",
                                   allow_abbrev=False)  # fmt: skip
    checking.add_argument("recipe", nargs="?", help="a recipe's name or a config.yaml; its fields may follow")
    checking.add_argument("--out", type=Path, help="where the run would go (default: runs/RECIPE)")

    add_reward_commands(commands, Parser)

    planning = commands.add_parser("plan", help="the memory and time that a step of a recipe takes", allow_abbrev=False)
    planning.add_argument("recipe", help="a recipe's name or a config.yaml; its fields may follow")
    planning.add_argument("--device", help=f"for which device (default: this machine's): {', '.join(DEVICES)}")


def main(argv: Sequence[str] | None = None) -> None:
    """The console script: exit code 0, 2 for a user's mistake (one line), 130 for Ctrl-C."""
    try:
        run(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        print(f"astrolabe: {reason}; use smaller micro_batch settings, or --model.vae_tile 32", file=sys.stderr)
        sys.exit(2)
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
    if rest and args.command not in ("train", "generate", "embed", "export", "doctor", "plan"):
        raise UserError(f"unknown argument {rest[0]!r}; `astrolabe {args.command} --help` shows what is accepted")
    if args.command == "demo":
        demo(args.out)
    elif args.command == "train":
        command_train(args.recipe, args.out, rest, args.help, args.trust_code)
    elif args.command == "generate":
        command_generate(args, rest)
    elif args.command == "models":
        show_models()
    elif args.command == "embed":
        command_embed(args.prompts, chosen_model(args.model, None, rest))
    elif args.command == "export":
        model = chosen_model(args.model, None, rest) if args.model or rest else None
        print(export(args.adapter, args.format, args.out, model, args.dtype))
    elif args.command == "doctor":
        command_doctor(args.recipe, args.out, rest)
    elif args.command == "plan":
        command_plan(args.recipe, args.device, rest)
    elif args.command == "rewards":
        command_rewards(args)
    elif args.command == "evaluate":
        show_evaluation(evaluate(RunFolder(args.run), args.split, long=not args.no_long))
    else:
        print(write_report(RunFolder(args.run)))


def command_train(
    recipe: str | None, out: Path | None, rest: Sequence[str], help_wanted: bool, trusted: bool = False
) -> None:
    """``astrolabe train RECIPE [--field.sub value ...]``."""
    if recipe is None and not help_wanted:
        raise UserError(f"train needs a recipe ({', '.join(RECIPES)}) or a config.yaml; `astrolabe train --help`")
    cfg = resolve(recipe or "shapes")
    if help_wanted:
        show_fields(recipe or "shapes", cfg)
        return
    cfg = override(cfg, parse_overrides(rest))
    foreign = list(trusting(cfg))
    if foreign and recipe not in RECIPES and not trusted:
        raise UserError(
            f"{recipe} names what is to be trusted: {'; '.join(foreign)}; look at it, and if you do add --trust-code"
        )
    folder = train(cfg, out or Path("runs") / Path(recipe or "").stem)
    print(f"trained: {folder}\nnext:    astrolabe evaluate {folder} && astrolabe report {folder}")


def trusting(cfg: TrainConfig) -> Iterator[str]:
    """What a configuration asks of its reader: to run code, to install packages, to send files away."""
    for reward in cfg.rewards:
        if reward.own:
            yield f"code to run, {reward.name}"
        if reward.worker.packages:
            yield f"packages to install, {' '.join(reward.worker.packages)}"
        if reward.server is not None:
            files = [str(path) for path in (reward.server.rubric, reward.server.key) if path]
            yield f"files to send to {reward.server.url}, {' '.join(files)}"
    if cfg.pool.address:
        yield f"a cluster to work on, {cfg.pool.address}"


def command_generate(args: argparse.Namespace, rest: Sequence[str]) -> None:
    """``astrolabe generate``: what is to be made, from the command line's words."""
    if args.script:
        scripts = [read_script(path) for path in args.script]
    else:
        scripts = [parse_script(text) for text in args.prompt or read_prompts(args.prompts)]
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: at least one video at a time")
    run = RunFolder(args.adapter) if args.adapter and RunFolder(args.adapter).config_file.exists() else None
    model = chosen_model(args.model, run, rest)
    for path in generate(Job(scripts, model, args.out, args.adapter, args.seconds, args.frames, args.seed, args.batch,
                             args.latents, args.start)):  # fmt: skip
        print(path)


def chosen_model(name: str | None, run: RunFolder | None, rest: Sequence[str]) -> ModelSettings:
    """The model that was named, else the run's, else the embedded one; with fields set by ``--model.field value``."""
    settings = run.config().model if run and name is None else model_settings(name or "shapes")
    texts = parse_overrides(rest)
    if strange := [flag for flag in texts if not flag.startswith("model.")]:
        raise UserError(f"unknown argument --{strange[0]}; settings of the model are written --model.field value")
    return override(ModelChoice(model=settings), texts).model


def show_models() -> None:
    """``astrolabe models``."""
    for row in released_table():
        print(f"{row.pop('name')}")
        for name, value in row.items():
            if value:
                print(textwrap.fill(value, 100, initial_indent=f"    {name:9}", subsequent_indent=" " * 13))


def command_embed(prompts: Path, model: ModelSettings) -> None:
    """``astrolabe embed PROMPTS``."""
    if not isinstance(model, ReleasedSettings):
        raise UserError("the embedded model reads its prompts itself; name a released model with --model")
    texts = prompts_of([parse_script(line) for line in read_prompts(prompts)])
    new = embed_with_bar(model, texts)
    print(f"{len(texts)} prompts in {model.text_cache}, {new} of them new")


def command_doctor(recipe: str | None, out: Path | None, rest: Sequence[str]) -> None:
    """``astrolabe doctor [RECIPE]``: exit code 1 when something is not well."""
    if recipe is None and rest:
        raise UserError(f"unexpected argument {rest[0]!r}: a recipe comes before its fields")
    cfg = override(resolve(recipe), parse_overrides(rest)) if recipe else None
    show_findings(examine(cfg, out or Path("runs") / Path(recipe or "demo").stem))


def command_plan(recipe: str, device: str | None, rest: Sequence[str]) -> None:
    """``astrolabe plan RECIPE``: exit code 1 when a step does not fit."""
    cfg = override(resolve(recipe), parse_overrides(rest))
    check_windows(cfg, None, make_algorithm(cfg))
    name, budget, speed, on_host = target(device, cfg)
    plan = make_plan(cfg)
    table = Table(title=f"a step of {recipe} on {name}")
    for heading in ("", "memory", "seconds"):
        table.add_column(heading, justify="left" if not heading else "right")
    for part, count in plan.held.items():
        if count:
            table.add_row(f"held: {part}", size(count), "")
    seconds = plan.seconds(speed)
    for part, phase in plan.phases.items():
        table.add_row(f"peak: {part}", size(phase.bytes), f"{seconds[part]:.1f}")
    table.add_row("frames of a micro-batch, in the host's memory", size(plan.frames), "")
    needed = plan.total(on_host)
    table.add_row("[bold]in all", f"[bold]{size(needed)}", f"[bold]{sum(seconds.values()):.1f}")
    Console().print(table)
    print(f"{size(budget)} are there; seconds are of arithmetic alone: scoring, reading and waiting come on top")
    if needed <= budget:
        return
    print(f"{size(needed - budget)} too much. In this order, until it fits:")
    for flag, less in knobs_that_help(cfg, budget, on_host):
        needed = less
        print(f"  {flag:42} {size(less)}")
    print("then it fits" if needed <= budget else "and still it does not: a smaller model, video or window is left")
    sys.exit(1)


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
