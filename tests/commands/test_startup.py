"""What is imported before anything is done: help and a user's mistake do without the libraries that take seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from astrolabe.commands import COMMANDS

HEAVY = ("torch", "numpy", "transformers", "diffusers", "peft", "plotly", "rich", "av", "PIL", "ray", "jinja2",
         "huggingface_hub", "safetensors")  # fmt: skip
PROGRAM = """
import contextlib, io, json, sys
from astrolabe.cli import main
codes = []
for argv in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main(argv)
            codes.append(0)
        except SystemExit as stop:
            codes.append(stop.code or 0)
    heavy = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    if heavy:
        sys.exit(f"astrolabe {' '.join(argv)} imports {', '.join(heavy)}")
print(json.dumps(codes))
"""


def codes(commands: list[list[str]]) -> list[int]:
    """The exit codes of commands, one after another in one process that may not import anything heavy."""
    words = [sys.executable, "-c", PROGRAM, json.dumps(commands), json.dumps(HEAVY)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(code) for code in json.loads(done.stdout)]


def test_help_imports_nothing_heavy() -> None:
    pages = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    pages += [["rewards", action, "--help"] for action in ("list", "new", "check", "score", "correlate")]
    pages += [["train", "longlive", "--help"], ["models"], ["config", "longlive", "--optimizer.lr", "1e-4"]]
    assert set(codes(pages)) == {0}


def test_a_mistake_on_the_command_line_is_told_before_anything_heavy_is_imported() -> None:
    mistakes = [
        ["trian"],
        ["train"],
        ["train", "shape"],
        ["train", "shapes", "--optimizer.lrr", "1"],
        ["train", "shapes", "--optimizer.lr", "fast"],
        ["train", "shapes", "--optimizer.lr"],
        ["train", "shapes", "--rollout.micro_batch", "99"],
        ["train", "shapes", "--rewards", "jiont"],
        ["train", "shapes", "--guards", "motion_energy"],
        ["train", "nowhere.yaml"],
        ["train", "nowhere.py:make"],
        ["generate", "--prompt", "a", "--out", "x", "--model", "shape"],
        ["generate", "--prompt", "a"],
        ["generate", "--prompt", "a", "--out", "x", "--frame", "3"],
        ["report", "x", "--fast"],
        ["evaluate", "x", "--split", "train"],
        ["export", "x", "--format", "lora", "--out", "y"],
        ["plan", "longlive", "--model.height", "481"],
    ]
    assert set(codes(mistakes)) == {2}


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[2].glob("src/astrolabe/commands/[a-z]*.py")))
def test_every_file_of_a_command_is_in_the_table(file: Path) -> None:
    assert file.stem in COMMANDS or file.stem == "choosing"
