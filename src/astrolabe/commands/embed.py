"""``astrolabe embed``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from astrolabe.commands.choosing import MODEL_FIELDS, chosen_model
from astrolabe.models.settings import ReleasedSettings
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.progress import progress

FIELDS = True


def arguments(parser: ArgumentParser) -> None:
    """See ``commands``."""
    parser.epilog = MODEL_FIELDS
    parser.add_argument("prompts", type=Path, help="a file of prompts or scripts, or a table of them")
    parser.add_argument(
        "--model",
        default="self-forcing",
        metavar="NAME",
        help="the model whose text encoder is used (default: self-forcing; all Wan 2.1 share one)",
    )


def run(args: Namespace, rest: Sequence[str]) -> None:
    """Embed what is missing, and say how many that were."""
    model = chosen_model(args.model, None, rest)
    if not isinstance(model, ReleasedSettings):
        raise UserError("the embedded model reads its prompts itself; name a released model with --model")
    with progress("starting"):
        from astrolabe.data.prompts import read_prompts
        from astrolabe.data.scripts import parse_script, prompts_of
        from astrolabe.models.opening import embed

    texts = prompts_of([parse_script(line) for line in read_prompts(args.prompts)])
    new = embed(model, texts)
    print(f"{len(texts)} prompts in {model.text_cache}, {new} of them new")
