"""``python -m astrolabe.pretrain``: see ``pretrain.stages``."""

from __future__ import annotations

from astrolabe.pretrain.stages import main
from astrolabe.runtime.arguments import run_program

if __name__ == "__main__":
    run_program(main)
