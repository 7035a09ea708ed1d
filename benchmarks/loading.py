"""``python -m benchmarks.loading``: memory that loading a checkpoint of 2 GB takes, over the size of its file."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from astrolabe.models.wan.config import WanConfig
from astrolabe.models.wan.transformer import CausalWan
from astrolabe.models.wan.weights import load_transformer
from astrolabe.runtime.arguments import Parser, new_file, run_program
from benchmarks.provenance import write_result

CONFIG = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=21, freq_dim=256, text_dim=4096)
RESULT = Path("benchmarks/results/loading.json")


def write(folder: Path) -> dict[str, Path]:
    """The same weights as a zip in Self-Forcing's layout and as a flat safetensors file."""
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        shapes = {f"model.{name}": value for name, value in CausalWan(CONFIG).state_dict().items()}
    tensors = {name: torch.randn(value.shape) for name, value in shapes.items()}
    files = {"torch zip": folder / "model.pt", "safetensors": folder / "model.safetensors"}
    torch.save({"generator_ema": tensors}, files["torch zip"])
    save_file(tensors, files["safetensors"])
    return files


def load(path: Path, dtype: str) -> dict[str, Any]:
    """Load one file; what the process held at most, less what it held before."""
    before = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    model = load_transformer(path, dtype=getattr(torch, dtype))
    seconds = time.monotonic() - began
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    size = path.stat().st_size
    return {
        "file_bytes": size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": dtype,
        "peak_bytes": peak,
        "peak_over_file": round(peak / size, 4),
        "seconds": round(seconds, 2),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Both formats, each in a process of its own, then the JSON."""
    parser = Parser(prog="python -m benchmarks.loading", description=__doc__)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=new_file, default=RESULT)
    args = parser.read(argv)
    if args.one:
        print(json.dumps(load(Path(args.one[0]), args.one[1])))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        command = "import benchmarks.loading as b, pathlib, sys; b.write(pathlib.Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", command, folder], check=True)
        for path in sorted(Path(folder).iterdir()):
            child = subprocess.run(
                [sys.executable, "-m", "benchmarks.loading", "--one", str(path), "bfloat16"],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            rows.append({"format": path.suffix} | json.loads(child.stdout))
            print(rows[-1], flush=True)
    write_result(args.out, "python -m benchmarks.loading", {"runs": rows})


if __name__ == "__main__":
    run_program(main)
