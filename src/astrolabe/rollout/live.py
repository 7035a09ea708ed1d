"""A stream that can be steered while it runs: any length, prompts that change, starts from given frames, state on disk.

``VideoStream`` is what an interactive program holds: ``step()`` makes the next chunk and its pixels; between chunks
the caller may ``switch`` the prompt (soft: the cached frames are run again under it) or ``cut`` (hard: nothing is
remembered).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from astrolabe.models.base import Generator
from astrolabe.rollout.stream import NoiseSource, denoise_chunk
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.random import rng_for
from astrolabe.types import Latents, TextEmbeddings, Video

Prompts = str | Sequence[str]


@dataclass(frozen=True)
class Chunk:
    """One step of a stream: clean latents [b, f, c, h, w] and their pixels [b, t, 3, y, x] (None: not decoded)."""

    index: int
    latents: Latents
    video: Video | None


class VideoStream:
    """``batch`` videos that advance together, without an end.

    Memory does not grow with the video when the model has a window (``generator.stream.window_frames``) or rebuilds its
    cache; a model that sees everything remembers everything.
    """

    def __init__(
        self, generator: Generator, text: TextEmbeddings, noise: NoiseSource, decode: bool = True,
        videos: int | None = None,
    ):  # fmt: skip
        self.generator, self.noise, self.decodes = generator, noise, decode
        self.videos = videos or len(text)  # a row of text each, unless fewer rows are shared evenly
        with torch.no_grad():
            self.text, self.condition = text, generator.condition(text)
        self.index = 0  # chunks made since the beginning, across cuts: noise never repeats
        self._begin()

    def _begin(self) -> None:
        """A video without a past."""
        stream = self.generator.stream
        room = stream.window_frames or stream.chunk_frames
        self.cache = self.generator.new_cache(self.videos, room)
        self.sink: list[Latents] = []  # clean latents of what the cache holds: chunks of the sink, and recent ones
        self.recent: list[Latents] = []
        self.frames = 0
        self.state: Any = None

    def __iter__(self) -> Iterator[Chunk]:
        """Endless."""
        while True:
            yield self.step()

    @torch.no_grad()
    def step(self) -> Chunk:
        """Make the next chunk."""
        stream = self.generator.stream
        if stream.rebuild_frames is not None and self.frames:
            self._rebuild()
        shape = (self.videos, stream.chunk_frames, *self.generator.latent_shape)
        opening = 0 if self.frames == 0 else 1  # the first chunk of a video may have steps of its own
        numbered = Numbered(self.noise, self.index)
        *_, (_, clean, _) = denoise_chunk(self.generator, self.condition, self.cache, numbered, opening, shape)
        self._remember(clean)
        self.index += 1
        return Chunk(self.index - 1, clean, self._decode(clean))

    @torch.no_grad()
    def extend(self, latents: Latents) -> Video | None:
        """Make clean chunks [b, f, c, h, w] that were made elsewhere what comes next; gives their pixels."""
        size = self.generator.stream.chunk_frames
        for chunk in latents.split(size, 1):
            self._remember(chunk)
        self.index += latents.shape[1] // size
        return self._decode(latents)

    @torch.no_grad()
    def begin_with(self, latents: Latents) -> Video | None:
        """Make given clean latents the beginning of the video (an image or a video, encoded); gives their pixels."""
        if self.frames:
            raise UserError("a stream can only be begun once; cut() first")
        size = self.generator.stream.chunk_frames
        if latents.shape[0] not in (1, self.videos) or latents.shape[1] % size:
            raise UserError(
                f"a beginning of {latents.shape[0]} videos and {latents.shape[1]} latent frames does not fit "
                f"{self.videos} streams and chunks of {size}"
            )
        latents = latents.expand(self.videos, *latents.shape[1:])
        for chunk in latents.split(size, 1):
            self._remember(chunk)
        return self._decode(latents)

    @torch.no_grad()
    def switch(self, text: Prompts | TextEmbeddings) -> None:
        """Soft switch: go on under another prompt, with the cached frames run again under it (KV re-cache).

        ``text``: one prompt for all videos, one for each, or embeddings [b, n, d]. UserError when they are of another
        number or size, or when the sink is not whole chunks.
        """
        stream = self.generator.stream
        if stream.sink_frames % stream.chunk_frames:
            raise UserError(
                f"sink_frames={stream.sink_frames} is not whole chunks of {stream.chunk_frames}: its frames cannot be "
                "run again one chunk at a time; choose a multiple, or cut"
            )
        self._set_text(text)
        self._rebuild()

    @torch.no_grad()
    def cut(self, text: Prompts | TextEmbeddings) -> None:
        """Hard cut: go on under another prompt and remember nothing; the next latent frame is one video frame.

        ``text`` as for ``switch``.
        """
        self._set_text(text)
        self._begin()

    def _set_text(self, text: Prompts | TextEmbeddings) -> None:
        if not isinstance(text, Tensor):
            prompts = [text] * len(self.text) if isinstance(text, str) else list(text)
            text = self.generator.encode_text(prompts).to(self.text)
        if text.shape != self.text.shape:
            raise UserError(f"the new prompts have shape {list(text.shape)}, the stream's {list(self.text.shape)}")
        self.text, self.condition = text, self.generator.condition(text)

    def _decode(self, latents: Latents) -> Video | None:
        if not self.decodes:
            return None
        video, self.state = self.generator.decode(latents, self.state)
        return video

    def _remember(self, clean: Latents) -> None:
        """The context pass, and what a later switch needs."""
        self.generator.commit(clean, self.condition, self.cache)
        self._note(clean)

    def _note(self, clean: Latents) -> None:
        """Keep the latents that the cache still holds, or would."""
        stream, size = self.generator.stream, clean.shape[1]
        self.frames += size
        if len(self.sink) * size < stream.sink_frames:
            self.sink.append(clean)
        else:
            self.recent.append(clean)
        if stream.rebuild_frames is not None:
            del self.recent[: -(stream.rebuild_frames // size)]
        elif stream.window_frames is not None:
            kept = max((stream.window_frames - len(self.sink) * size) // size, 1)
            del self.recent[:-kept]

    @torch.no_grad()
    def renew(self) -> None:
        """Text keys and values under the policy in force now; what the cache holds stays."""
        self.condition = self.generator.condition(self.text)

    def branch(self, rows: Tensor, clean: Latents, text: Float[Tensor, "prompts n d"], fresh: bool) -> VideoStream:
        """What the videos ``rows`` become when clips [g f c h w] go on from them and another prompt follows.

        Clip j goes on from video ``rows[j]``; with ``fresh`` the clips are a video's beginning: they remember no other.
        ``text`` has a row a clip, or fewer that the clips share evenly. This stream stays as it is; the branch does
        not decode.
        """
        twin = VideoStream(self.generator, text, self.noise, decode=False, videos=len(clean))
        if not fresh:
            twin.sink, twin.recent = ([chunk[rows] for chunk in kept] for kept in (self.sink, self.recent))
            twin.frames = self.frames
        if clean.shape[1]:
            for chunk in clean.split(self.generator.stream.chunk_frames, 1):
                twin._note(chunk)
        if twin.frames:
            twin._rebuild()
        return twin

    @torch.no_grad()
    def _rebuild(self) -> None:
        """Run the remembered clean frames again, in a new cache, where they stand in the video."""
        stream = self.generator.stream
        cache = self.generator.new_cache(self.videos, stream.window_frames or stream.chunk_frames)
        for chunk in self.sink:
            self.generator.commit(chunk, self.condition, cache)
        held = sum(chunk.shape[1] for chunk in (*self.sink, *self.recent))
        cache.skip(self.frames - held)
        for chunk in self.recent:
            self.generator.commit(chunk, self.condition, cache)
        self.cache = cache

    def tensors(self) -> dict[str, Tensor]:
        """A copy of all that decides how the stream goes on, but for its noise: for ``restore``."""
        parts = {"text": self.text, "place": torch.tensor([self.index, self.frames])}
        for name, chunks in (("sink", self.sink), ("recent", self.recent)):
            parts |= {f"{name}.{i}": chunk for i, chunk in enumerate(chunks)}
        decoder = self.generator.decoder_tensors(self.state)
        return parts | self.cache.tensors() | {f"decoder.{name}": value for name, value in decoder.items()}

    @torch.no_grad()
    def restore(self, parts: Mapping[str, Tensor]) -> None:
        """Go on from ``tensors`` of another stream of the same model, exactly."""
        parts = {name: value.to(self.generator.device) for name, value in parts.items()}
        self._set_text(parts["text"])
        self._begin()
        self.index, self.frames = (int(number) for number in parts["place"])
        for name in ("sink", "recent"):
            keys = sorted((key for key in parts if key.startswith(f"{name}.")), key=lambda key: int(key.split(".")[1]))
            setattr(self, name, [parts[key] for key in keys])
        self.cache.restore(parts)
        decoder = {name.removeprefix("decoder."): value for name, value in parts.items() if name.startswith("decoder.")}
        self.state = self.generator.decoder_state(decoder)


def start(generator: Generator, prompts: Prompts, seed: int = 0, decode: bool = True) -> VideoStream:
    """A stream of one video a prompt: ``for chunk in start(model, ["a cat"]): show(chunk.video)``.

    Between chunks, ``stream.switch("a dog")`` goes on under another prompt, ``stream.cut("a bird")`` starts afresh.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise UserError("a stream of no prompts: expected a prompt, or a list of them, a video each")
    return VideoStream(generator, generator.encode_text(prompts), PlacedNoise(seed, range(len(prompts))), decode)


class PlacedNoise:
    """Noise that belongs to (seed, video, chunk, step): the same wherever a stream was interrupted and continued."""

    def __init__(self, seed: int, videos: Sequence[int]):
        self.seed, self.videos = seed, videos

    def __call__(self, chunk: int, step: int, shape: Sequence[int]) -> Tensor:
        """See ``NoiseSource``."""
        rngs = (rng_for(self.seed, chunk, f"video {video} step {step}") for video in self.videos)
        return torch.stack([torch.randn(*shape[1:], generator=rng) for rng in rngs])


class Numbered:
    """Noise for a chunk by its number in the whole stream, whatever the sampler calls it."""

    def __init__(self, noise: NoiseSource, index: int):
        self.noise, self.index = noise, index

    def __call__(self, chunk: int, step: int, shape: Sequence[int]) -> Tensor:
        return self.noise(self.index, step, shape)
