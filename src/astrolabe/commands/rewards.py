"""``astrolabe rewards list | new | check | score | correlate``."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import fill

from astrolabe.rewards.settings import MEASURES, MODELS, ORACLES
from astrolabe.shapes.settings import FPS

CHUNK = 3  # latent frames at a time, as most released models make them


def arguments(parser: ArgumentParser) -> None:
    """See ``commands``."""
    actions = parser.add_subparsers(dest="action", required=True, parser_class=type(parser), metavar="ACTION")

    def action(name: str, meaning: str) -> ArgumentParser:
        return actions.add_parser(name, help=meaning, description=f"{meaning[0].upper()}{meaning[1:]}.")

    spec = (
        "a reward and its settings: NAME or path/to/file.py:Class, as hpsv3,frames=8,model.weights=FOLDER or "
        "mine.py:Mine,args.threshold=0.3"
    )

    action("list", "list all rewards")

    writing = action("new", "write a reward of your own to start from")
    writing.add_argument("name", help="the name of the class, such as Redness")
    writing.add_argument("--out", type=Path, metavar="FILE", help="the file (default: NAME in small letters, .py)")

    trying = action("check", "check that a reward can be trained on")
    trying.add_argument("reward", help=spec)

    scoring = action("score", "score video files")
    scoring.add_argument("reward", help=spec)
    scoring.add_argument("videos", type=Path, nargs="+", help="video files, or folders of them")
    scoring.add_argument(
        "--prompt",
        metavar="TEXT",
        help="the prompt of all videos (default: what `astrolabe generate` wrote beside each)",
    )

    comparing = action("correlate", "compare two rewards by their rank correlation")
    comparing.add_argument("rewards", nargs=2, metavar="REWARD", help=spec)
    comparing.add_argument("--videos", type=Path, required=True, metavar="FOLDER", help="a folder of videos")
    comparing.add_argument(
        "--prompt",
        metavar="TEXT",
        help="the prompt of all videos (default: what `astrolabe generate` wrote beside each)",
    )
    comparing.add_argument(
        "--out",
        type=Path,
        default=Path("correlation.html"),
        metavar="FILE",
        help="the chart (default: correlation.html)",
    )
    for parser in (scoring, comparing):
        parser.add_argument(
            "--cache", type=Path, metavar="FILE", help="keep scores in this file, so that none is computed twice"
        )
        parser.add_argument(
            "--fps",
            type=float,
            default=float(FPS),
            metavar="N",
            help="frames a second at which "
            f"videos are scored, whatever their own rate (default: {FPS}, as models make them)",
        )
        parser.add_argument(
            "--chunk-frames",
            type=int,
            default=CHUNK,
            metavar="N",
            help=f"latent frames of a chunk of the videos' model, for pixel_seamlessness (default: {CHUNK})",
        )


def run(args: Namespace, rest: Sequence[str]) -> None:
    """Do the one that was named."""
    if args.action == "list":
        print("\n".join(listed()))
    elif args.action == "new":
        from astrolabe.rewards.custom import write_template

        spec = write_template(args.name, args.out or Path(f"{args.name.lower()}.py"))
        print(f"{spec}\nnext: astrolabe rewards check {spec}")
    elif args.action == "check":
        from astrolabe.doctor import show_findings
        from astrolabe.judging import check

        show_findings(check(args.reward))
    elif args.action == "score":
        command_score(args)
    else:
        from astrolabe.judging import correlate, draw

        found = correlate(
            args.rewards[0], args.rewards[1], args.videos, args.prompt, args.cache, args.chunk_frames, args.fps
        )
        draw(found, args.out)
        for refused in found.refused:
            print(f"left out: {refused}", file=sys.stderr)
        low, high = found.ci95
        print(f"rank correlation {found.correlation:.3f} [{low:.3f}, {high:.3f}] over {found.scores.shape[1]} videos")
        print(args.out)


def listed() -> Iterator[str]:
    """Every reward by its name, and what the released ones are made of."""
    from astrolabe.rewards.opening import RELEASED_REWARDS

    for what, names in (("of the shapes world", ORACLES), ("of any video", MEASURES)):
        yield fill(", ".join(names), 79, initial_indent=f"{what:21}", subsequent_indent=21 * " ")
    yield "released models"
    for name in MODELS:
        model = RELEASED_REWARDS[name]
        yield f"  {name:18} {model.repository} ({model.gigabytes:g} GB in bfloat16; licence: {model.licence})"
    yield "server               a judge that is asked over HTTP"
    yield "random               knows nothing: a control"
    yield "FILE.py:CLASS        your own; `astrolabe rewards new NAME` writes one to start from"


def command_score(args: Namespace) -> None:
    """``astrolabe rewards score``: exit code 1 when a file could not be judged."""
    from astrolabe.judging import files_and_prompts, score_files

    paths, prompts = files_and_prompts(args.videos, args.prompt)
    failed = 0
    for one in score_files(args.reward, paths, prompts, args.cache, args.chunk_frames, args.fps):
        failed += one.score is None
        print(f"{one.path}: {one.refusal}" if one.score is None else f"{one.score:.6g}  {one.path}")
    if failed:
        print(f"{failed} of {len(paths)} could not be judged", file=sys.stderr)
        sys.exit(1)
