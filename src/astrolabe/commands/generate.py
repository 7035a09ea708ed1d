"""``astrolabe generate``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from astrolabe.commands.choosing import ADAPTER_HELP, MODEL_FIELDS, chosen_model
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.progress import progress

FIELDS = True


def arguments(parser: ArgumentParser) -> None:
    """See ``commands``."""
    parser.epilog = MODEL_FIELDS
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", help="a prompt or a one-line script (may be repeated)")
    source.add_argument("--prompts", type=Path, help="a file of prompts or scripts, or a table of them")
    source.add_argument("--script", type=Path, action="append", help="a script in YAML or JSON (may be repeated)")
    parser.add_argument("--model", help="the model (default: the adapter's, or shapes); `astrolabe models` shows them")
    parser.add_argument("--adapter", type=Path, help=f"{ADAPTER_HELP} (default: the bare model)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, help="length (default: the script's, or a clip)")
    length.add_argument("--frames", type=int, help="length in latent frames, a multiple of the chunk")
    parser.add_argument("--start", type=Path, help="an image, or a video whose end is gone on from")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument("--batch", type=int, default=1, help="videos made side by side (default: 1)")
    parser.add_argument("--latents", action="store_true", help="keep the clean latents too, as safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder for the videos")


def run(args: Namespace, rest: Sequence[str]) -> None:
    """What is to be made, from the command line's words; then a line for every video."""
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: at least one video at a time")
    model = chosen_model(args.model, args.adapter, rest)
    with progress("starting"):
        from astrolabe.data.prompts import read_prompts
        from astrolabe.data.scripts import parse_script, read_script
        from astrolabe.generate import Job, generate

    if args.script:
        scripts = [read_script(path) for path in args.script]
    else:
        scripts = [parse_script(text) for text in args.prompt or read_prompts(args.prompts)]
    for path in generate(Job(scripts, model, args.out, args.adapter, args.seconds, args.frames, args.seed, args.batch,
                             args.latents, args.start)):  # fmt: skip
        print(path)
