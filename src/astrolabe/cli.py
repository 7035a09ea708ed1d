"""The command line: ``astrolabe COMMAND ...``. What each command takes and prints is in ``commands/``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from astrolabe import __version__
from astrolabe.commands import COMMANDS
from astrolabe.runtime.arguments import INTERRUPTED, Parser
from astrolabe.runtime.errors import UserError, remark
from astrolabe.runtime.interrupts import Interrupted


def run(argv: Sequence[str]) -> None:
    """Dispatch one command: its file alone is imported."""
    parser = Parser(prog="astrolabe", description="Align distilled autoregressive video models by online RL.")
    parser.add_argument("--version", action="version", version=f"astrolabe {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser, metavar="COMMAND")
    named = next((word for word in argv if not word.startswith("-")), "")
    for name, meaning in COMMANDS.items():
        module = import_module(f"astrolabe.commands.{name}") if name == named else None
        own = commands.add_parser(
            name, help=meaning, description=f"{meaning[0].upper()}{meaning[1:]}.",
            add_help=not getattr(module, "OWN_HELP", False),
        )  # fmt: skip
        if module:
            module.arguments(own)
            command, takes = module, own
    args, rest = parser.parse_known_args(argv)
    if rest and not getattr(command, "FIELDS", False):
        takes.refuse(rest[0])
    command.run(args, rest)


def main(argv: Sequence[str] | None = None) -> None:
    """The console script: exit code 0, 2 for a user's mistake (one line), 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what the terminal cannot show is written as an escape, not an error
            stream.reconfigure(errors="backslashreplace")
    remark.cache_clear()
    try:
        run(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        refuse(f"{error.filename or 'the system'}: {error.strerror or error}")
    except UserError as error:
        refuse(str(error))
    except Interrupted as stop:
        refuse(str(stop), INTERRUPTED)
    except KeyboardInterrupt as stop:  # the work that was interrupted left a note of what it was
        said = " ".join(["interrupted", "; ".join(getattr(stop, "__notes__", []))]).rstrip()
        well = stop.__context__  # it may have come when all was done and only being closed
        refuse(str(well) if isinstance(well, Interrupted) else said, INTERRUPTED)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's: known by name, since torch may not be here
            raise
        refuse(f"{str(error).splitlines()[0]}; use smaller micro_batch settings, or --model.vae_tile 32")


def refuse(said: str, code: int = 2) -> None:
    """End with one line."""
    print(f"astrolabe: {said}", file=sys.stderr)
    sys.exit(code)
