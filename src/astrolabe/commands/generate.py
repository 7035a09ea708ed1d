"""``astrolabe generate``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from astrolabe.commands.choosing import ADAPTER_HELP, MODEL_FIELDS, chosen_model, processes_argument
from astrolabe.data.prompts import read_entries
from astrolabe.data.scripts import DAY, Script, check_length, parse_script, read_script
from astrolabe.runtime.errors import UserError, within
from astrolabe.runtime.progress import progress
from astrolabe.shapes.settings import FPS

FIELDS = True


def arguments(parser: ArgumentParser) -> None:
    """See ``commands``."""
    parser.epilog = MODEL_FIELDS
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--prompt", action="append", metavar="TEXT", help="a prompt or a one-line script (may be repeated)"
    )
    source.add_argument("--prompts", type=Path, metavar="FILE", help="a file of prompts or scripts, or a table of them")
    source.add_argument(
        "--script", type=Path, action="append", metavar="FILE", help="a script in YAML or JSON (may be repeated)"
    )
    parser.add_argument(
        "--model", metavar="NAME", help="the model (default: the adapter's, or shapes); `astrolabe models` shows them"
    )
    parser.add_argument("--adapter", type=Path, metavar="ADAPTER", help=f"{ADAPTER_HELP} (default: the base alone)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, help="length (default: the script's, or a clip)")
    length.add_argument("--frames", type=int, metavar="N", help="length in latent frames, a multiple of the chunk")
    parser.add_argument(
        "--start", type=Path, metavar="FILE", help="an image, or a video that is continued from its end"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the noise (default: 0)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="videos made side by side (default: 1)")
    processes_argument(parser)
    parser.add_argument("--latents", action="store_true", help="keep the clean latents too, as safetensors")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the videos")


def run(args: Namespace, rest: Sequence[str]) -> None:
    """What is to be made, from the command line's words; then a line for every video."""
    check_numbers(args)
    asked = list(asked_for(args))
    model = chosen_model(args.model, args.adapter, rest)
    with progress("starting"):
        from astrolabe.generate import Job, generate

    places, scripts = zip(*asked, strict=True)
    for path in generate(Job(scripts, model, args.out, args.adapter, args.seconds, args.frames, args.seed, args.batch,
                             args.latents, args.start, places, args.processes)):  # fmt: skip
        print(path)


def check_numbers(args: Namespace) -> None:
    """UserError for lengths and counts that no model could make."""
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: at least one video at a time")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: a seed is a whole number from 0 on; the same one makes the same videos")
    if args.seconds is not None:
        check_length(args.seconds, f"--seconds {args.seconds:g}")
    most = int(DAY * FPS) // 4
    if args.frames is not None and not 1 <= args.frames <= most:
        raise UserError(f"--frames {args.frames}: latent frames must be above zero, and {most} (a day) at most")


def asked_for(args: Namespace) -> Iterator[tuple[str, Script]]:
    """Every script, and the place where it stands."""
    for path in args.script or ():
        yield str(path), read_script(path)
    for entry in read_entries(args.prompts) if args.prompts else ():
        yield entry.place, parse_script(entry.text)
    for number, text in enumerate(args.prompt or (), 1):
        place = f"--prompt {number}" if len(args.prompt) > 1 else "--prompt"
        with within(place):
            yield place, parse_script(text)
