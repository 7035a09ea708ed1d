"""``astrolabe export``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from astrolabe.commands.choosing import ADAPTER_HELP, MODEL_FIELDS, chosen_model
from astrolabe.runtime.progress import progress

FIELDS = True
FORMATS = ("peft", "comfyui", "diffusers", "merged")


def arguments(parser: ArgumentParser) -> None:
    """See ``commands``."""
    parser.epilog = MODEL_FIELDS
    parser.add_argument("adapter", type=Path, help=ADAPTER_HELP)
    parser.add_argument("--format", choices=FORMATS, default="peft", help="layout of the file (default: peft)")
    parser.add_argument(
        "--model", metavar="NAME", help="the base that a merged checkpoint is made from (default: the run's model)"
    )
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), help="precision of what is written (default: as it was)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="the folder (peft) or file to write")


def run(args: Namespace, rest: Sequence[str]) -> None:
    """Write it and print where it is."""
    model = chosen_model(args.model, None, rest) if args.model or rest else None
    with progress("starting"):
        from astrolabe.export import export

    print(export(args.adapter, args.format, args.out, model, args.dtype))
