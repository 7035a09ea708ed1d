"""G candidates that go on from one frozen history: each has a clip of its own, the history exists once.

``CandidateCache`` streams the clips; ``ClipContext`` runs whole clips at once, for training, and shows every chunk what
the stream showed it: the same sink, window, evictions and positions (method, sections 2 and 4). All attention is dense,
chunk by chunk: nothing is computed and then masked. The history is a ``RollingCache`` that is no longer written to;
its rows are prompts, and rows [i * G, (i + 1) * G) of the candidates belong to prompt i.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from astrolabe.models import rope
from astrolabe.models.attention import Heads, KeyPart, attend
from astrolabe.models.cache import RollingCache
from astrolabe.models.visibility import sink_shift, visible
from astrolabe.models.wan.config import StreamConfig

# Keys or values of a clip: [b * G, frames, tokens, heads, head_dim], or frame by frame where they have a gradient: that
# of a slice of the whole would be as large as the whole, for every chunk.
Frames = Tensor | Sequence[Tensor]


def seen(
    stream: StreamConfig, history: RollingCache | None, layer: int, first: int, end: int,
    keys: Frames, values: Frames, itself: bool = False,
) -> list[KeyPart]:  # fmt: skip
    """What the chunk [first, end) of the clips sees of the history and of the clips before it; with ``itself`` of the
    chunk too. Frames of the clip count from 0; ``keys`` and ``values`` are those of the clips.
    """
    before, skipped = (history.frames, history.skipped) if history else (0, 0)
    sink, recent = visible(before + first, before + end, stream.window_frames, stream.sink_frames)
    moved = sink_shift(before + end + skipped, stream.window_frames, stream.positions)
    recent = range(recent.start, before + end) if itself else recent
    parts: list[KeyPart] = []
    for frames, shift in ((sink, moved), (recent, 0)):
        if history:
            parts += history.parts(layer, range(frames.start, min(frames.stop, before)), shift)
        own = slice(max(frames.start - before, 0), max(frames.stop - before, 0))
        for key, value in zip(span(keys, own), span(values, own), strict=True):
            parts.append(KeyPart(rope.shift(key, shift) if shift else key, value))
    return parts


def span(frames: Frames, part: slice) -> list[Tensor]:
    """Some frames as they lie, [b * G, tokens, heads, head_dim]: one view of a whole, or one by one."""
    if not isinstance(frames, Tensor):
        return list(frames[part])
    return [frames[:, part].flatten(1, 2)] if part.stop > part.start else []


class CandidateCache:
    """The clips' own keys and values while they are streamed (``models.base.Cache``); the history is only read."""

    def __init__(self, history: RollingCache, group: int, frames: int):
        self.history, self.group, self.frames = history, group, 0
        shape = (len(history.keys[0]) * group, frames, history.frame_tokens, *history.keys[0].shape[2:])
        self.keys = [buffer.new_empty(shape) for buffer in history.keys]
        self.values = [buffer.new_empty(shape) for buffer in history.values]

    @property
    def position(self) -> int:
        """Absolute latent frame of the next chunk."""
        return self.history.position + self.frames

    @property
    def nbytes(self) -> int:
        """Bytes of the clips; the history is counted where it belongs."""
        return sum(buffer.untyped_storage().nbytes() for buffer in (*self.keys, *self.values))

    def advance(self, frames: int) -> None:
        """Make the ``frames`` frames written last part of the clips."""
        self.frames += frames

    def attend(self, layer: int, query: Heads, key: Heads, value: Heads) -> Heads:
        """Write the chunk and attend to everything visible (``visibility.Memory``)."""
        tokens = self.history.frame_tokens
        first, end = self.frames, self.frames + key.shape[1] // tokens
        with torch.no_grad():
            for buffer, chunk in ((self.keys[layer], key), (self.values[layer], value)):
                buffer[:, first:end] = chunk.unflatten(1, (-1, tokens))
        learns = torch.is_grad_enabled() and (key.requires_grad or value.requires_grad)
        parts = seen(
            self.history.stream, self.history, layer, first, end, self.keys[layer], self.values[layer], not learns
        )
        return attend(query, [*parts, KeyPart(key, value)] if learns else parts)


class ClipContext:
    """Whole clips in one pass, chunk by chunk, alone or as candidates that go on from a history.

    Without ``clean`` a chunk sees the clip's chunks before it as they are run now, and these are kept: run over clean
    frames, this is the context. ``facing`` such a context, noisy chunks see the clean ones before them.
    """

    def __init__(
        self, stream: StreamConfig, frames: int, history: RollingCache | None = None,
        clean: ClipContext | None = None, run: slice = slice(None),
    ):  # fmt: skip
        self.stream, self.frames, self.history, self.clean = stream, frames, history, clean
        self.chunks = stream.chunks(frames)[run]
        self.keys: list[Frames] = []  # of every layer
        self.values: list[Frames] = []

    @property
    def position(self) -> int:
        """Absolute latent frame of the first that is run."""
        return (self.history.position if self.history else 0) + self.chunks[0][0]

    def facing(self, run: slice = slice(None)) -> ClipContext:
        """What the noisy chunks number ``run`` of the clips see of this context; all of them when not said."""
        return ClipContext(self.stream, self.frames, self.history, self, run)

    def attend(self, layer: int, query: Heads, key: Heads, value: Heads) -> Heads:
        """See the class, and ``visibility.Memory``."""
        start, stop = self.chunks[0][0], self.chunks[-1][1]
        query, key, value = (x.unflatten(1, (stop - start, -1)) for x in (query, key, value))
        learns = torch.is_grad_enabled() and (key.requires_grad or value.requires_grad)
        if self.clean is None:
            self.keys.append(key.unbind(1) if learns else key)
            self.values.append(value.unbind(1) if learns else value)
        source, outputs = self.clean or self, []
        itself = self.clean is None and not learns  # then the chunk lies where the ones before it do
        chunks = (x.split(self.stream.chunk_frames, 1) for x in (query, key, value))
        for (first, end), own, chunk_key, chunk_value in zip(self.chunks, *chunks, strict=True):
            keys, values = source.keys[layer], source.values[layer]
            parts = seen(self.stream, self.history, layer, first, end, keys, values, itself)
            if not itself:
                parts.append(KeyPart(chunk_key.flatten(1, 2), chunk_value.flatten(1, 2)))
            outputs.append(attend(own.flatten(1, 2), parts))
        return torch.cat(outputs, 1)
