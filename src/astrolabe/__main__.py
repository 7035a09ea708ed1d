"""``python -m astrolabe`` and the console script: libraries are imported where Ctrl-C is already understood."""

from __future__ import annotations

import sys


def entry() -> None:
    """Run the command line."""
    try:
        from astrolabe.cli import main

        main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    entry()
