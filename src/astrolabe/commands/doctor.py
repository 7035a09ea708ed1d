"""``astrolabe doctor``: exit code 1 when something is not well."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from astrolabe.commands.choosing import configuration_arguments, configured, default_out
from astrolabe.runtime.errors import UserError

FIELDS = True


def arguments(parser: ArgumentParser) -> None:
    """See ``commands``."""
    configuration_arguments(parser, optional=True)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the run would go (default: runs/RECIPE)")


def run(args: Namespace, rest: Sequence[str]) -> None:
    """A line a finding."""
    if args.recipe is None and rest:
        raise UserError(f"unexpected argument {rest[0]!r}: a recipe comes before its fields")
    cfg = configured(args, rest) if args.recipe else None
    untrusted = why_untrusted(args, rest) if args.recipe else ""
    from astrolabe.doctor import examine, show_findings

    show_findings(examine(cfg, args.out or default_out(args.recipe or "demo"), untrusted))


def why_untrusted(args: Namespace, rest: Sequence[str]) -> str:
    """What training would say of a configuration that is well but for what it asks to be trusted with; mostly empty."""
    try:
        configured(args, rest, runs=True)
    except UserError as error:
        return str(error)
    return ""
