"""The Python interface: what a program of one's own calls."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

import astrolabe
from astrolabe.cli import main
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.runtime.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tiny steps, with both checkpoints."""
    config = astrolabe.config("shapes_tiny", {"model.dtype": "float32", "optimizer.lr": 1e-2})
    return Path(astrolabe.train(config, tmp_path_factory.mktemp("runs") / "tiny"))


def shown(model: WanGenerator) -> torch.Tensor:
    """The latents of two chunks."""
    return torch.cat([chunk.latents for chunk in islice(astrolabe.stream(model, "a red circle moving left"), 2)], 1)


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = "import astrolabe, sys; dir(astrolabe); assert 'torch' not in sys.modules and 'yaml' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_run_streams_as_it_learned_and_as_generate_does(run: Path, tmp_path: Path) -> None:
    base, learned = shown(astrolabe.load("shapes", dtype="float32")), shown(astrolabe.load(run))
    assert not torch.equal(base, learned)
    main(["generate", "--adapter", str(run), "--prompt", "a red circle moving left", "--frames", "6", "--latents",
          "--out", str(tmp_path / "out")])  # fmt: skip
    from safetensors.torch import load_file

    torch.testing.assert_close(load_file(tmp_path / "out" / "0000.safetensors")["latents"][None], learned)


def test_a_checkpoint_and_an_exported_adapter_are_loaded_too(run: Path, tmp_path: Path) -> None:
    first, last = shown(astrolabe.load(f"{run}@1")), shown(astrolabe.load(run))
    assert not torch.equal(first, last)
    main(["export", str(run), "--format", "peft", "--out", str(tmp_path / "peft")])
    torch.testing.assert_close(shown(astrolabe.load("shapes", adapter=tmp_path / "peft", dtype="float32")), last)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"model": "shape"}, "model 'shape' is unknown"),
        ({"model": "shapes", "adapter": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"model": "shapes", "colour": "red"}, "unknown setting model.colour"),
        ({"model": "shapes", "dtype": "int8"}, "expected one of auto, bfloat16, float32"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(words: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        astrolabe.load(**words)
    assert "\n" not in str(refused.value)


def test_a_name_that_is_none_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'aling'"):
        astrolabe.aling  # noqa: B018
    assert {"load", "train"} <= set(dir(astrolabe))
