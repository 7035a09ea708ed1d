"""G candidates that go on from one frozen history: each has a clip of its own, the history exists once.

``CandidateCache`` streams the clips; ``CandidateContext`` runs whole clips at once, for training, and shows every chunk
exactly what the stream showed it: the same sink, window, evictions and positions (method, sections 2 and 4). The
history is a ``RollingCache`` that nobody writes to any more; its rows are prompts, and rows [i * G, (i + 1) * G) of the
candidates belong to prompt i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from astrolabe.models import rope
from astrolabe.models.attention import Heads, Part, attend
from astrolabe.models.cache import RollingCache
from astrolabe.models.visibility import sink_shift, visible


def seen(history: RollingCache, layer: int, first: int, end: int, keys: Tensor, values: Tensor) -> list[Part]:
    """What the chunk [first, end) of the clips sees of the history and of the clips before it.

    Frames of the clip count from 0; ``keys`` and ``values`` [b * G, tokens, heads, head_dim] are those of the clips.
    """
    stream, before, tokens = history.stream, history.frames, history.frame_tokens
    sink, recent = visible(before + first, before + end, stream.window_frames, stream.sink_frames)
    moved = sink_shift(before + end + history.skipped, stream.window_frames, stream.positions)
    parts: list[Part] = []
    for frames, shift in ((sink, moved), (recent, 0)):
        parts += history.parts(layer, range(frames.start, min(frames.stop, before)), shift)
        own = range(max(frames.start, before), frames.stop)
        if len(own):
            place = slice((own.start - before) * tokens, (own.stop - before) * tokens)
            key = keys[:, place]
            parts.append(Part(rope.shift(key, shift) if shift else key, values[:, place]))
    return parts


class CandidateCache:
    """The clips' own keys and values while they are streamed (``models.base.Cache``); the history is only read."""

    def __init__(self, history: RollingCache, group: int, frames: int):
        self.history, self.group, self.frames = history, group, 0
        shape = (len(history.keys[0]) * group, frames * history.frame_tokens, *history.keys[0].shape[2:])
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
        place = slice(first * tokens, end * tokens)
        with torch.no_grad():
            self.keys[layer][:, place], self.values[layer][:, place] = key, value
        past = seen(self.history, layer, first, end, self.keys[layer], self.values[layer])
        return attend(query, [*past, Part(key, value)])


class CandidateContext:
    """A whole clip of every candidate in one pass, chunk by chunk; over clean frames it is recorded as the context.

    Without ``clean`` a chunk sees the clip's frames before it as they are run now, and they are kept; with the context
    of such a pass, run over the clean clips, it sees those.
    """

    def __init__(self, history: RollingCache, frames: int, clean: CandidateContext | None = None):
        self.history, self.frames, self.clean = history, frames, clean
        self.chunks = history.stream.chunks(frames)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    @property
    def position(self) -> int:
        """Absolute latent frame of the clip's first."""
        return self.history.position

    def facing(self) -> CandidateContext:
        """What noisy frames see of this context."""
        return CandidateContext(self.history, self.frames, self)

    def attend(self, layer: int, query: Heads, key: Heads, value: Heads) -> Heads:
        """See the class."""
        if self.clean is None:
            self.keys.append(key)
            self.values.append(value)
        source = self if self.clean is None else self.clean
        tokens, outputs = self.history.frame_tokens, []
        for first, end in self.chunks:
            own = slice(first * tokens, end * tokens)
            past = seen(self.history, layer, first, end, source.keys[layer], source.values[layer])
            outputs.append(attend(query[:, own], [*past, Part(key[:, own], value[:, own])]))
        return torch.cat(outputs, 1)
