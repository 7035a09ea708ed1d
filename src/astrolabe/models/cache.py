"""The rolling key-value cache of one stream: the sink, and after it a ring of the most recent frames.

A frame's keys and values live in a fixed slot: a sink frame in its own, any later frame f in slot
``sink + (f - sink) % (window - sink)``. A new chunk is therefore written over exactly the frames that it pushes out,
the valid slots are always a prefix of the buffer, and attention reads that prefix as it lies: nothing is rolled,
shifted or concatenated, at any step. (Attention does not care for the order of its keys: a key's position is in its
rotation.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from astrolabe.models import rope
from astrolabe.models.attention import Heads, KeyPart, attention
from astrolabe.models.visibility import sink_shift
from astrolabe.models.wan.config import StreamConfig, WanConfig


class RollingCache:
    """Keys and values of one batch of streams that advance together; never holds a graph.

    ``frames`` latent frames have been committed. While a chunk is being denoised its keys and values are written at its
    slots on every pass; ``advance`` makes those of the last pass (the context pass at t = 0) part of the history.
    ``position`` is where in its video the next chunk stands: ahead of ``frames`` when some were left out (``skip``).
    With gradients enabled the current chunk's own keys keep their graph and the history is constant.
    """

    def __init__(
        self, model: WanConfig, stream: StreamConfig, batch: int, frame_tokens: int, capacity: int,
        dtype: torch.dtype, device: torch.device | str = "cpu",
    ):  # fmt: skip
        self.model, self.stream, self.frame_tokens = model, stream, frame_tokens
        self.frames, self.skipped = 0, 0
        self.capacity = capacity if stream.window_frames is None else min(capacity, stream.window_frames)
        shape = (batch, 0, model.num_heads, model.head_dim)  # a history that never begins costs nothing
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(model.num_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(model.num_layers)]
        # Relative positions turn the sink's keys anew as the window moves on: always from these, never from themselves.
        moves = stream.positions == "relative" and stream.window_frames is not None and stream.sink_frames > 0
        kept = (batch, stream.sink_frames * frame_tokens, model.num_heads, model.head_dim)
        self.sink_keys = [
            torch.empty(kept, dtype=dtype, device=device) for _ in range(model.num_layers if moves else 0)
        ]
        self.sink_moved = [0] * model.num_layers

    @property
    def slots(self) -> int:
        """Frames that fit."""
        return self.keys[0].shape[1] // self.frame_tokens

    @property
    def nbytes(self) -> int:
        """Bytes held, exactly: what the buffers' storages occupy."""
        return sum(buffer.untyped_storage().nbytes() for buffer in (*self.keys, *self.values, *self.sink_keys))

    @property
    def position(self) -> int:
        """Absolute latent frame of the next chunk."""
        return self.frames + self.skipped

    def skip(self, frames: int) -> None:
        """Leave out ``frames`` of the video: what comes next stands that much later, and is stored right behind."""
        self.skipped += frames

    def advance(self, frames: int) -> None:
        """Make the ``frames`` frames written last part of the history."""
        self.frames += frames

    def attend(self, layer: int, query: Heads, key: Heads, value: Heads) -> Heads:
        """Write the chunk at its slots and attend to everything visible (``visibility.Memory``)."""
        frames = key.shape[1] // self.frame_tokens
        end = self.frames + frames
        self.make_room(end)
        self._move_sink(layer, end + self.skipped)
        parts = self._slots_of(self.frames, end)
        if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
            old = self._history(parts, end)
            keys = torch.cat([self.keys[layer][:, part] for part in old] + [key], 1)
            values = torch.cat([self.values[layer][:, part] for part in old] + [value], 1)
            output = attention(query, keys, values)
            self._write(layer, parts, key.detach(), value.detach())
            return output
        self._write(layer, parts, key, value)
        filled = min(end, self.slots) * self.frame_tokens
        return attention(query, self.keys[layer][:, :filled], self.values[layer][:, :filled])

    def tensors(self) -> dict[str, Tensor]:
        """A copy of all that the cache holds, for ``restore``."""
        filled = min(self.frames, self.slots) * self.frame_tokens
        parts = {"cache.place": torch.tensor([self.frames, self.skipped, *self.sink_moved])}
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            parts |= {f"cache.keys.{layer}": keys[:, :filled], f"cache.values.{layer}": values[:, :filled]}
        parts |= {f"cache.sink_keys.{layer}": keys for layer, keys in enumerate(self.sink_keys)}
        return {name: value.clone() for name, value in parts.items()}  # the buffers are written over as the stream goes

    def restore(self, parts: Mapping[str, Tensor]) -> None:
        """Take over what ``tensors`` of a cache of the same model and batch gave."""
        self.frames, self.skipped, *self.sink_moved = parts["cache.place"].tolist()
        self.make_room(self.frames)
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            held = parts[f"cache.keys.{layer}"]
            keys[:, : held.shape[1]] = held
            values[:, : held.shape[1]] = parts[f"cache.values.{layer}"]
        for layer, kept in enumerate(self.sink_keys):
            kept.copy_(parts[f"cache.sink_keys.{layer}"])

    def parts(self, layer: int, frames: range, moved: int = 0) -> list[KeyPart]:
        """Keys and values of held frames as they lie, without a copy; those of the sink ``moved`` frames ahead.

        ``frames`` [first, last] count as ``self.frames`` does, and are all of the sink or none of it.
        """
        if not len(frames):
            return []
        if moved and frames.start < self.stream.sink_frames:
            tokens = slice(frames.start * self.frame_tokens, frames.stop * self.frame_tokens)
            kept = self.sink_keys[layer] if self.sink_keys else self.keys[layer]
            return [KeyPart(rope.shift(kept[:, tokens], moved), self.values[layer][:, tokens])]
        places = self._slots_of(frames.start, frames.stop)
        return [KeyPart(self.keys[layer][:, place], self.values[layer][:, place]) for place in places]

    def fork(self, copies: int) -> RollingCache:
        """An independent cache for ``copies`` continuations of every stream: row i becomes rows i * copies and on."""
        return self._twin(lambda buffer: buffer.repeat_interleave(copies, 0))

    def row(self, index: int) -> RollingCache:
        """One stream of the batch, as it lies: to be read, not written to."""
        return self._twin(lambda buffer: buffer[index : index + 1])

    def _twin(self, change: Callable[[Tensor], Tensor]) -> RollingCache:
        twin = object.__new__(RollingCache)
        vars(twin).update(vars(self), sink_moved=list(self.sink_moved))
        for name in ("keys", "values", "sink_keys"):
            setattr(twin, name, [change(buffer) for buffer in getattr(self, name)])
        return twin

    def _slots_of(self, first: int, end: int) -> list[slice]:
        """Token slices of the slots of frames [first, end), joined where they adjoin."""
        sink, ring = self.stream.sink_frames, self.slots - self.stream.sink_frames
        slots = [frame if frame < sink else sink + (frame - sink) % ring for frame in range(first, end)]
        parts: list[slice] = []
        for slot in slots:
            if parts and parts[-1].stop == slot * self.frame_tokens:
                parts[-1] = slice(parts[-1].start, (slot + 1) * self.frame_tokens)
            else:
                parts.append(slice(slot * self.frame_tokens, (slot + 1) * self.frame_tokens))
        return parts

    def _history(self, own: list[slice], end: int) -> list[slice]:
        """Token slices of all valid slots but ``own``."""
        filled, edge, gaps = min(end, self.slots) * self.frame_tokens, 0, []
        for part in sorted(own, key=lambda part: part.start):
            gaps.append(slice(edge, part.start))
            edge = part.stop
        gaps.append(slice(edge, filled))
        return [gap for gap in gaps if gap.start < gap.stop]

    def _write(self, layer: int, parts: list[slice], key: Tensor, value: Tensor) -> None:
        start = 0
        with torch.no_grad():
            for part in parts:
                count = part.stop - part.start
                self.keys[layer][:, part] = key[:, start : start + count]
                self.values[layer][:, part] = value[:, start : start + count]
                start += count
            kept = self.stream.sink_frames * self.frame_tokens - self.frames * self.frame_tokens
            if self.sink_keys and kept > 0:
                at = self.frames * self.frame_tokens
                self.sink_keys[layer][:, at : at + key.shape[1]] = key[:, :kept]

    def _move_sink(self, layer: int, end: int) -> None:
        moved = sink_shift(end, self.stream.window_frames, self.stream.positions)
        if self.sink_keys and moved != self.sink_moved[layer]:
            with torch.no_grad():
                kept = self.sink_keys[layer]
                self.keys[layer][:, : kept.shape[1]] = rope.shift(kept, moved)
            self.sink_moved[layer] = moved

    def make_room(self, end: int) -> None:
        """Room for what is expected, at first use; then twice as much, up to the window if there is one."""
        limit = self.stream.window_frames
        if end <= self.slots or self.slots == limit:
            return
        wanted = max(end, 2 * self.slots, self.capacity)
        slots = wanted if limit is None else min(wanted, limit)
        for buffers in (self.keys, self.values):
            for layer, old in enumerate(buffers):
                room = old.new_empty(old.shape[0], slots * self.frame_tokens, *old.shape[2:])
                room[:, : old.shape[1]] = old
                buffers[layer] = room
