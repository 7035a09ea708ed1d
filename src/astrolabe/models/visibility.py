"""Who sees whom: the one rule about which earlier frames a chunk attends to, and the one-pass forwards built on it.

A *memory* answers one question for every self-attention layer: given the rotated queries, keys and values of the frames
being run, what does each chunk attend to? The rolling cache (``models.cache``) answers while streaming; the two classes
here answer for a whole clip at once. All attention is dense, chunk by chunk: nothing is computed and then masked.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from astrolabe.models import rope
from astrolabe.models.attention import Heads, attention
from astrolabe.models.wan.config import StreamConfig


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


class BlockCausal:
    """One forward over a clip: a chunk sees itself and the chunks before it, in the state they are run in.

    With ``record`` the keys and values of every layer are kept (constant if run without gradient): run over clean
    frames they are the context that ``TeacherForced`` shows to noisy ones.
    """

    position = 0  # absolute latent frame of the clip's first

    def __init__(self, stream: StreamConfig, frames: int, record: bool = False):
        self.stream = stream
        self.chunks = stream.chunks(frames)
        self.frames = frames
        self.record = record
        self.keys: list[Heads] = []
        self.values: list[Heads] = []

    def facing(self) -> TeacherForced:
        """What noisy frames see of this context."""
        return TeacherForced(self)

    def attend(self, layer: int, query: Heads, key: Heads, value: Heads) -> Heads:
        """See the class."""
        if self.record:
            self.keys.append(key)
            self.values.append(value)
        return self._by_chunk(query, key, value, key, value)

    def _by_chunk(self, query: Heads, key: Heads, value: Heads, past_key: Heads, past_value: Heads) -> Heads:
        tokens = query.shape[1] // self.frames
        outputs = []
        for first, end in self.chunks:
            own = slice(first * tokens, end * tokens)
            sink, recent = visible(first, end, self.stream.window_frames, self.stream.sink_frames)
            moved = sink_shift(end, self.stream.window_frames, self.stream.positions)
            old = [slice(frames.start * tokens, frames.stop * tokens) for frames in (sink, recent) if len(frames)]
            keys = [past_key[:, part] for part in old]
            if sink and moved:
                keys[0] = rope.shift(keys[0], moved)
            keys.append(key[:, own])
            values = [past_value[:, part] for part in old] + [value[:, own]]
            outputs.append(attention(query[:, own], torch.cat(keys, 1), torch.cat(values, 1)))
        return torch.cat(outputs, 1)


class TeacherForced(BlockCausal):
    """One forward over noisy frames: a chunk sees itself and the *clean* chunks before it, from a recorded context."""

    def __init__(self, context: BlockCausal):
        super().__init__(context.stream, context.frames)
        self.context = context

    def attend(self, layer: int, query: Heads, key: Heads, value: Heads) -> Heads:
        """See the class."""
        return self._by_chunk(query, key, value, self.context.keys[layer], self.context.values[layer])
