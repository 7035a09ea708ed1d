"""What every committed number says of itself: machine, commit, command."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from astrolabe.runtime.files import write_whole


def processor() -> str:
    """The name of the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine() -> dict[str, Any]:
    """Where the numbers were measured."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    } | ({"gpus": gpus} if gpus else {})


def commit() -> str:
    """The commit that was measured, marked when the tree has changes."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    dirty = subprocess.run(["git", "status", "--porcelain", "src"], capture_output=True, text=True, check=True).stdout
    return head + (" with changes" if dirty.strip() else "")


def write_result(path: Path, command: str, content: dict[str, Any]) -> None:
    """Keep numbers as JSON with what they need to be believed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"command": command, "commit": commit(), "machine": machine()} | content
    write_whole(path, (json.dumps(whole, indent=1) + "\n").encode())
    print(f"written: {path}")
