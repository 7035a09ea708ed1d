"""``astrolabe plan``: exit code 1 when a step does not fit."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from astrolabe.commands.choosing import configuration_arguments, configured

FIELDS = True


def arguments(parser: ArgumentParser) -> None:
    """See ``commands``."""
    configuration_arguments(parser)
    parser.add_argument("--device", help="for which device (default: this machine's)")


def run(args: Namespace, rest: Sequence[str]) -> None:
    """A table of phases; when it does not fit, what to change."""
    cfg = configured(args, rest)
    from rich.console import Console
    from rich.table import Table

    from astrolabe.assembly import check_windows, make_algorithm
    from astrolabe.doctor import size
    from astrolabe.plan import knobs_that_help, make_plan, target

    check_windows(cfg, None, make_algorithm(cfg))
    name, budget, speed, on_host = target(args.device, cfg)
    plan = make_plan(cfg)
    table = Table(title=f"a step of {args.recipe} on {name}")
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
