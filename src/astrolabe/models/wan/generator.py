"""The causal Wan as a Generator: transformer, text encoder and codec under one roof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from astrolabe.flow import TIMESTEPS
from astrolabe.models.cache import RollingCache
from astrolabe.models.candidates import CandidateCache, ClipContext
from astrolabe.models.visibility import StreamMemory
from astrolabe.models.wan.config import StreamConfig
from astrolabe.models.wan.transformer import CausalWan, Conditioning
from astrolabe.types import Latents, Sigmas, TextEmbeddings, Video


@runtime_checkable
class TextEncoder(Protocol):
    """Prompts to embeddings [b, n, d], rows of padding zero; ``check`` raises UserError for a prompt it cannot take."""

    def check(self, texts: Sequence[str]) -> None: ...

    def encode(self, texts: Sequence[str]) -> TextEmbeddings: ...


@runtime_checkable
class Decoder(Protocol):
    """Latents to pixels in [0, 1], continuing from the state that the frames before left.

    ``select`` gives the state of some videos of a batch, in any order and number; ``pack`` and ``unpack`` turn one into
    tensors and back, for the disk.
    """

    def decode(self, latents: Latents, state: Any = None) -> tuple[Video, Any]: ...

    def to(self, device: torch.device | str) -> Any: ...

    def select(self, state: Any, rows: Tensor) -> Any: ...

    def pack(self, state: Any) -> dict[str, Tensor]: ...

    def unpack(self, tensors: Mapping[str, Tensor]) -> Any: ...


class WanGenerator:
    """A causal Wan of any size (``models.base.Generator``); under ``dtype`` bfloat16 it computes by autocast."""

    def __init__(
        self, transformer: CausalWan, stream: StreamConfig, latent_shape: tuple[int, int, int],
        text_encoder: TextEncoder | None = None, codec: Decoder | None = None, dtype: torch.dtype | None = None,
    ):  # fmt: skip
        self.transformer, self.stream, self.latent_shape = transformer, stream, latent_shape
        self.text_encoder, self.codec = text_encoder, codec
        self.weights_dtype = transformer.patch_embedding.weight.dtype
        self.dtype = dtype or self.weights_dtype

    @property
    def device(self) -> torch.device:
        """Where the transformer lives."""
        return self.transformer.patch_embedding.weight.device

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame."""
        _, rows, columns = self.transformer.config.patch_size
        return self.latent_shape[1] // rows * (self.latent_shape[2] // columns)

    def precision(self) -> torch.autocast:
        """Autocast to ``dtype`` where the weights are kept in more; the state of everything outside is untouched."""
        return torch.autocast(
            self.device.type, self.dtype, enabled=self.dtype != self.weights_dtype, cache_enabled=False
        )

    def encode_text(self, prompts: Sequence[str]) -> TextEmbeddings:
        """Embeddings [b, n, d] of the prompts, on the generator's device."""
        assert self.text_encoder is not None, "this generator was built without a text encoder"
        with torch.no_grad():
            return self.text_encoder.encode(prompts).to(self.device, self.weights_dtype)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """UserError unless every prompt can be encoded; nothing is encoded yet."""
        assert self.text_encoder is not None, "this generator was built without a text encoder"
        self.text_encoder.check(prompts)

    def condition(self, text: TextEmbeddings) -> Conditioning:
        """Text keys and values under the policy in force."""
        with self.precision():
            return self.transformer.condition(text)

    def new_cache(self, batch: int, frames: int) -> RollingCache:
        """An empty cache for ``batch`` streams that are expected to run for ``frames`` latent frames."""
        return RollingCache(
            self.transformer.config, self.stream, batch, self.frame_tokens, frames, self.dtype, self.device
        )

    def new_candidates(self, history: RollingCache, group: int, frames: int) -> CandidateCache:
        """Caches for ``group`` clips of ``frames`` latent frames that go on from each row of a history; no copies."""
        return CandidateCache(history, group, frames)

    def velocity(self, noisy: Latents, sigma: Sigmas, text: Conditioning, cache: StreamMemory) -> Latents:
        """Velocity of the next chunk of a stream."""
        return self._run(noisy, sigma * TIMESTEPS, text, cache, cache.position)

    @torch.no_grad()
    def commit(self, clean: Latents, text: Conditioning, cache: StreamMemory) -> None:
        """The context pass at t = 0: make a finished chunk history."""
        self._run(clean, clean.new_zeros(clean.shape[:2]), text, cache, cache.position)
        cache.advance(clean.shape[1])

    @torch.no_grad()
    def context(
        self, clean: Latents, text: Conditioning, history: RollingCache | None = None, sigma: Sigmas | None = None
    ) -> ClipContext:
        """What the chunks of clean clips leave in the cache, in one pass and without gradient.

        With a ``history`` the clips go on from it: candidates, several of which may share one row. With ``sigma`` the
        frames are noisy, at these levels.
        """
        return self._context(clean, text, history, sigma)

    def _context(
        self, clean: Latents, text: Conditioning, history: RollingCache | None = None, sigma: Sigmas | None = None
    ) -> ClipContext:
        memory = ClipContext(self.stream, clean.shape[1], history)
        timestep = clean.new_zeros(clean.shape[:2]) if sigma is None else sigma * TIMESTEPS
        self._run(clean, timestep, text, memory, memory.position)
        return memory

    def velocity_in_context(
        self, noisy: Latents, sigma: Sigmas, text: Conditioning, context: ClipContext, chunks: slice = slice(None)
    ) -> Latents:
        """Velocity of chunks of clips, each seeing the clean chunks before it, as when streaming.

        ``noisy`` are the frames of the chunks number ``chunks`` of the clips: all of them when not said.
        """
        memory = context.facing(chunks)
        return self._run(noisy, sigma * TIMESTEPS, text, memory, memory.position)

    def velocity_teacher_forced(self, noisy: Latents, sigma: Sigmas, clean: Latents, text: Conditioning) -> Latents:
        """As ``velocity_in_context``, with gradient through the clean context too: how such a model is pretrained."""
        return self.velocity_in_context(noisy, sigma, text, self._context(clean, text))

    def velocity_block_causal(self, noisy: Latents, sigma: Sigmas, text: Conditioning) -> Latents:
        """Velocity of every chunk at once, each seeing the *noisy* chunks before it."""
        return self._run(noisy, sigma * TIMESTEPS, text, ClipContext(self.stream, noisy.shape[1]))

    @torch.no_grad()
    def decode(self, latents: Latents, state: Any = None) -> tuple[Video, Any]:
        """Pixels [b, t, 3, y, x] in [0, 1] and the state to continue from."""
        assert self.codec is not None, "this generator was built without a codec"
        with self.precision():
            return self.codec.decode(latents, state)

    def move_decoder(self, device: torch.device | str) -> None:
        """Keep the decoder on ``device`` while nothing is decoded; states of streams stay where they are."""
        if self.codec is not None:
            self.codec.to(device)

    def decoder_select(self, state: Any, rows: Tensor) -> Any:
        """The decoder's state of these rows of a batch; one may be named several times."""
        return None if state is None or self.codec is None else self.codec.select(state, rows)

    def decoder_tensors(self, state: Any) -> dict[str, Tensor]:
        """The decoder's state as tensors; none before the first frame."""
        return {} if state is None or self.codec is None else self.codec.pack(state)

    def decoder_state(self, tensors: Mapping[str, Tensor]) -> Any:
        """The inverse of ``decoder_tensors``."""
        return self.codec.unpack(tensors) if tensors and self.codec else None

    def _run(self, x: Latents, timestep: Tensor, text: Conditioning, memory: Any, first_frame: int = 0) -> Latents:
        with self.precision():
            velocity = self.transformer(x.to(self.weights_dtype), timestep, text, memory, first_frame)
        return velocity.to(x.dtype)
