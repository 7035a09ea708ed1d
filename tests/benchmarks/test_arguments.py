"""Programs beside the command line refuse what they do not know before they begin."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrolabe.runtime.arguments import Parser, whole
from astrolabe.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "benchmarks").rglob("*.py"))
PROGRAMS = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES
            if "__main__" in path.read_text(encoding="utf-8")]  # fmt: skip
PROGRAMS += ["astrolabe.pretrain.__main__", "tests.golden.replay"]


def refusal(program: str, *words: str) -> str:
    """What a program says to arguments that it must refuse; whatever it would do instead must not begin."""
    with pytest.raises(UserError) as refused:
        importlib.import_module(program).main(list(words))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_unknown_flag_is_refused(program: str) -> None:
    needed = {"benchmarks.pictures": ["runs/demo"], "tests.golden.replay": [__file__], "benchmarks.power": ["recipe"]}
    assert "unknown argument '--seedz'" in refusal(program, *needed.get(program, []), "--seedz", "1")


@pytest.mark.parametrize(
    ("program", "words", "said"),
    [
        (
            "benchmarks.evidence.__main__",
            ["--only", "positive"],
            "no cell is called 'positive'; did you mean f positive",
        ),
        ("benchmarks.evidence.__main__", ["--only", "d adaptive", "z"], "no cell is called 'z'"),
        ("benchmarks.evidence.__main__", ["--seeds", "-1"], "-1: expected a whole number from 0 to 99"),
        ("benchmarks.evidence.__main__", ["--workers", "0"], "at least 1"),
        ("benchmarks.evidence.__main__", ["--tiny"], "name a --folder"),
        ("benchmarks.evidence.__main__", ["--see", "1"], "unknown argument '--see'; did you mean --seeds"),
        ("benchmarks.power", ["recipee"], "'recipee' is unknown; did you mean recipe"),
        ("benchmarks.generation", ["--size", "1.3"], "did you mean 1.3B?; there are: tiny, 1.3B, 14B"),
        (
            "benchmarks.generation",
            ["--frames", "21", "22"],
            "22: expected a whole number of at least 3, a multiple of 3",
        ),
        ("benchmarks.generation", ["--device", "cudda"], "--device=cudda: not usable here"),
        ("benchmarks.generation", ["--sink", "12"], "cannot hold"),
        ("benchmarks.generation", ["--out", "benchmarks"], "cannot be written"),
        ("benchmarks.loading", ["--out", "README.md/loading.json"], "cannot be written"),
        ("benchmarks.pictures", [], "required: run"),
        ("benchmarks.pictures", ["nowhere"], "nowhere is no run"),
        ("benchmarks.plan", ["--only", "99"], "99: expected a whole number from 0 to"),
        ("astrolabe.pretrain.__main__", ["--until", "techer"], "did you mean teacher"),
        ("astrolabe.pretrain.__main__", ["--seed", "one"], "'one': expected a whole number"),
        ("tests.golden.replay", [], "required: FILE"),
        ("tests.golden.replay", ["nowhere.safetensors"], "nowhere.safetensors: no such file"),
    ],
)
def test_what_could_not_be_measured_is_refused(program: str, words: list[str], said: str) -> None:
    assert said in refusal(program, *words)


def test_a_refusal_is_one_line_and_exit_code_2() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.power", "nft"], cwd=ROOT, capture_output=True,
                          text=True, env=os.environ | {"PYTHONPATH": "src"}, check=False)  # fmt: skip
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: argument cell: 'nft' is unknown") and done.stderr.count("\n") == 1


@given(st.integers(-99, 99), st.integers(-99, 99), st.integers(0, 99), st.integers(1, 9))
def test_a_whole_number_is_taken_within_its_bounds_and_nowhere_else(n: int, least: int, width: int, step: int) -> None:
    parser = Parser(prog="x")
    parser.add_argument("--n", type=whole(least, least + width, step))
    if least <= n <= least + width and n % step == 0:
        assert parser.read([f"--n={n}"]).n == n
    else:
        with pytest.raises(UserError, match="expected a whole number"):
            parser.read([f"--n={n}"])
