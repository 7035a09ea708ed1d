"""Devices: whether one is there, what it computes in, how much memory it has.

Settings ask for these names; torch is imported when a device is asked for.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from astrolabe.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

Dtype = Literal["auto", "bfloat16", "float32"]


def usual_device() -> str:
    """The GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str, setting: str = "model.device") -> None:
    """Raise UserError, which names the ``setting``, unless torch can put a tensor there."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{setting}={device}: not usable here ({reason}); cpu always is") from None


def default_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 where the machine multiplies it natively, else float32."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.bfloat16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def torch_dtype(name: Dtype, device: torch.device | str) -> torch.dtype:
    """What a setting means on a device; ``auto`` asks ``default_dtype``."""
    import torch

    return {"auto": default_dtype(device), "bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def empty_cache(device: torch.device | str) -> None:
    """Give what deleted tensors held on a GPU back to it."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def memory(device: torch.device | str) -> tuple[int, int]:
    """Free and total bytes of a device's memory; of the machine's for the CPU."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    page = os.sysconf("SC_PAGE_SIZE")
    free = os.sysconf("SC_AVPHYS_PAGES") * page
    with suppress(OSError, KeyError), open("/proc/meminfo", encoding="ascii") as file:  # counts what caches would yield
        free = 1024 * int(dict(line.split(":", 1) for line in file)["MemAvailable"].split()[0])
    return free, os.sysconf("SC_PHYS_PAGES") * page
