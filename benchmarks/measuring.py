"""How peak memory is taken on a CPU: by the kernel's own high-water mark, with freed blocks given back at once.

Giving back costs time: seconds are measured in another process, without it.
"""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

# For the environment of a process whose memory is measured: else the mark tells how full of gaps the heap is.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "32768", "MALLOC_TRIM_THRESHOLD_": "32768", "MALLOC_ARENA_MAX": "1"}


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


def at_rest() -> int:
    """Bytes that the process holds once all that it has freed is given back: a gap from before would hide as many bytes
    of what comes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident()
