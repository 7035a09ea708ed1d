"""Visibility: the one rule about which earlier frames a chunk attends to.

A *memory* answers one question for every self-attention layer: given the rotated queries, keys and values of the frames
being run, what does each chunk attend to? The rolling cache (``models.cache``) answers while streaming; a clip's
context (``models.candidates``) for a whole clip at once.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from astrolabe.models.attention import Heads


@runtime_checkable
class Memory(Protocol):
    """What self-attention may see besides the tokens being run."""

    def attend(self, layer: int, query: Heads, key: Heads, value: Heads) -> Heads:
        """Attention output of every query; queries and keys are rotated to their absolute frame already."""
        ...


@runtime_checkable
class StreamMemory(Memory, Protocol):
    """A memory that grows with a stream, chunk by chunk."""

    @property
    def position(self) -> int:
        """Absolute latent frame of what comes next."""
        ...

    def advance(self, frames: int) -> None:
        """Make the frames written last part of the history."""
        ...


def visible(first: int, end: int, window: int | None, sink: int) -> tuple[range, range]:
    """The earlier frames that the chunk [first, end) sees: (sink frames, recent frames).

    At most ``window`` frames in all, the chunk's own included; the first ``sink`` of the video for ever.
    """
    kept = range(0, min(sink, first))
    oldest = sink if window is None else max(sink, end - (window - sink))
    return kept, range(min(oldest, first), first)


def sink_shift(end: int, window: int | None, positions: str) -> int:
    """How many frames the sink's keys are moved towards the present for a chunk that ends at ``end``.

    Rotary attention knows positions only by their differences, so window-relative slots are the same as absolute
    positions with the sink moved to stand right before the oldest recent frame.
    """
    return max(0, end - window) if positions == "relative" and window is not None else 0
