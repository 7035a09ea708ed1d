"""How peak memory is taken on a CPU: by the kernel's own high-water mark, with freed blocks given back at once.

Giving back costs time: seconds are measured without it.
"""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

# Parameters of glibc's mallopt, by number: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX.
GIVE_BACK = {-1: 32768, -3: 32768, -8: 1}


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found, field
    return 1024 * int(found[1])


def resident() -> int:
    """Bytes that the process holds now."""
    return _status("VmRSS")


def peak_of_process() -> int:
    """The most bytes that it held since ``reset_peak``."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Begin to measure anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def give_back() -> int:
    """From now on give back what is freed, at once: else the mark tells how full of gaps the heap happens to be, and a
    gap from before hides as many bytes of what comes. Gives the bytes that the process holds then."""
    libc = ctypes.CDLL(None)
    for parameter, value in GIVE_BACK.items():
        assert libc.mallopt(parameter, value) == 1
    gc.collect()
    libc.malloc_trim(0)
    return resident()
