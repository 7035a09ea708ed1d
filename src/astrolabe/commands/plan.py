"""``astrolabe plan``: exit code 1 when a step does not fit."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from astrolabe.commands.choosing import configuration_arguments, configured

if TYPE_CHECKING:
    from astrolabe.experiment import TrainConfig
    from astrolabe.plan.cards import Card
    from astrolabe.plan.plays import Measurer
    from astrolabe.plan.step import Plan

FIELDS = True


def arguments(parser: ArgumentParser) -> None:
    """See ``commands``."""
    configuration_arguments(parser)
    parser.add_argument(
        "--device", metavar="NAME", help="the device to plan for, such as rtx-4090 (default: this machine's)"
    )


def run(args: Namespace, rest: Sequence[str]) -> None:
    """A table of phases, the time of a step and of a run; when it does not fit, the smallest change that does."""
    cfg = configured(args, rest)
    from astrolabe.assembly import check_windows, make_algorithm
    from astrolabe.doctor import size
    from astrolabe.plan.cards import target
    from astrolabe.plan.plays import Measurer
    from astrolabe.plan.step import make_plan
    from astrolabe.runtime.progress import progress

    check_windows(cfg, None, make_algorithm(cfg))
    card, cfg = target(args.device, cfg)
    with progress("measuring the step") as task:

        def heard(name: str) -> None:
            task.note = name

        measurer = Measurer(device="cpu" if card.is_host else "cuda", heard=heard)
        plan = make_plan(cfg, measurer, card.is_host)
    show(plan, cfg, card, f"a step of {args.recipe} on {card.name}")
    needed = plan.total(card.is_host)
    if needed <= card.bytes:
        return
    print(f"{size(needed - card.bytes)} too much")
    with progress("looking for settings to change") as task:
        words = remedy(cfg, measurer, card)
    print(words)
    sys.exit(1)


def remedy(cfg: TrainConfig, measurer: Measurer, card: Card) -> str:
    """The smallest change that makes a step fit, in words."""
    from astrolabe.doctor import size
    from astrolabe.plan.knobs import smallest_change, turned
    from astrolabe.plan.step import make_plan

    def plan_of(other: TrainConfig) -> Plan:
        return make_plan(other, measurer, card.is_host)

    chosen, least = smallest_change(cfg, plan_of, card.bytes, card.is_host)
    lines = [f"  {knob.flags}{'    (changes training)' if knob.learns_otherwise else ''}" for knob in chosen]
    if least > card.bytes:
        tried = ["with all settings that help it still needs", *lines] if lines else ["no setting helps"]
        return "\n".join([*tried, f"{size(least)}: a smaller model, video or window, or a larger device, is left"])
    changed = plan_of(turned(cfg, chosen))
    return "\n".join(
        ["the smallest change that fits:", *lines,
         f"needs {size(least)}, {spoken(changed.step(card.rates))} a step of {candidates(turned(cfg, chosen))}"]
    )  # fmt: skip


def spoken(seconds: float) -> str:
    """``0.4 s``, ``25m 12s``."""
    from astrolabe.runtime.progress import duration

    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def candidates(cfg: TrainConfig) -> str:
    """How many videos a step makes, in words: steps of other sizes do not compare without it."""
    return f"{cfg.rollout.prompts * cfg.rollout.group_size} candidates"


def show(plan: Plan, cfg: TrainConfig, card: Card, title: str) -> None:
    """The table, and what it says in all."""
    from rich.console import Console
    from rich.table import Table

    from astrolabe.doctor import size

    table = Table(title=title)
    for heading in ("", "memory", "seconds", "waits for"):
        table.add_column(heading, justify="right" if heading in ("memory", "seconds") else "left")
    for part, count in plan.held.items():
        if count:
            table.add_row(f"held: {part}", size(count), "", "idle: in host memory" if part in plan.resting else "")
    seconds = plan.seconds(card.rates)
    for part, phase in plan.phases.items():
        waits = "the host's processor" if phase.hosted.calls or phase.hosted.traffic else card.rates.slowest(phase.work)
        table.add_row(f"peak: {part}", size(phase.bytes), f"{seconds[part]:.1f}", waits if seconds[part] else "")
    for part, count in plan.host.items():
        table.add_row(f"host: {part}", size(count), "", "")
    table.add_row("host: frames of a micro-batch", size(plan.frames), "", "")
    needed, step = plan.total(card.is_host), plan.step(card.rates)
    table.add_row("[bold]in all", f"[bold]{size(needed)}", f"[bold]{step:.1f}", "")
    Console().print(table)
    largest = max(plan.phases, key=lambda name: plan.phases[name].bytes)
    longest = max(seconds, key=lambda name: seconds[name])
    print(f"{size(card.bytes)} are there; {largest} needs most of it, {longest} takes longest")
    print(f"{spoken(step)} a step of {candidates(cfg)}, {spoken(cfg.steps * step)} for {cfg.steps} steps")
    for note in notes(cfg, plan, card):
        print(note)


def notes(cfg: TrainConfig, plan: Plan, card: Card) -> list[str]:
    """What the numbers do not say."""
    from astrolabe.assembly import process_count
    from astrolabe.rewards.costs import NETWORKS

    said = []
    if cfg.model.dtype == "float32" and not card.is_host:
        said.append(
            "in float32 a GPU multiplies without its tensor cores (TF32 is off), and writes out all attention scores "
            "where candidates share a history or a prompt: --model.dtype bfloat16"
        )
    for number, reward in enumerate(cfg.rewards):
        if reward.name in NETWORKS and reward.reward_model.place == "cpu" and not card.is_host:
            said.append(f"{reward.name} on the host's processor is slow: --rewards.{number}.model.device cuda")
    if plan.held["rewards"] and not card.is_host and "rewards" not in plan.resting:
        said.append("reward models may go to another GPU: --rewards.0.model.device cuda:1, or --pool.backend ray")
    if card.is_host and (count := process_count(cfg)) > 1:
        said.append(f"{count} processes will share a step, which holds weights and adapters {count} times over")
    return said
