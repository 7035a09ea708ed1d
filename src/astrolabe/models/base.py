"""What every generator can do. Self-Forcing, LongLive, Krea and the shapes model are configurations of one class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from astrolabe.models.visibility import StreamMemory
from astrolabe.models.wan.config import StreamConfig
from astrolabe.types import Latents, Sigmas, TextEmbeddings, Video


@runtime_checkable
class Cache(StreamMemory, Protocol):
    """The memory of a stream: how far it has come, how much it holds, and how to branch it."""

    frames: int

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        ...

    def skip(self, frames: int) -> None:
        """Leave out frames of the video: what comes next stands that much later."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """All that it holds."""
        ...

    def restore(self, parts: Mapping[str, Tensor]) -> None:
        """Take over what ``tensors`` of another gave."""
        ...

    def fork(self, copies: int) -> Cache:
        """An independent cache for ``copies`` continuations of every stream."""
        ...

    def row(self, index: int) -> Cache:
        """One stream of the batch, without a copy: to be read only."""
        ...


@runtime_checkable
class Generator(Protocol):
    """A distilled autoregressive video model with its text encoder and its decoder.

    ``condition`` turns embeddings into whatever the network reads (a tensor tree that depends on the policy in force);
    ``velocity`` and ``commit`` continue a stream; ``context`` and ``velocity_in_context`` run a whole clip at once.
    """

    stream: StreamConfig
    latent_shape: tuple[int, int, int]

    @property
    def device(self) -> torch.device: ...

    def check_prompts(self, prompts: Sequence[str]) -> None: ...

    def encode_text(self, prompts: Sequence[str]) -> TextEmbeddings: ...

    def condition(self, text: TextEmbeddings) -> Any: ...

    def new_cache(self, batch: int, frames: int) -> Cache: ...

    def velocity(self, noisy: Latents, sigma: Sigmas, text: Any, cache: Any) -> Latents: ...

    def commit(self, clean: Latents, text: Any, cache: Any) -> None: ...

    def context(self, clean: Latents, text: Any, history: Any = None, sigma: Sigmas | None = None) -> Any: ...

    def velocity_in_context(
        self, noisy: Latents, sigma: Sigmas, text: Any, context: Any, chunks: slice = slice(None)
    ) -> Latents: ...

    def decode(self, latents: Latents, state: Any = None) -> tuple[Video, Any]: ...

    def move_decoder(self, device: torch.device | str) -> None: ...

    def new_candidates(self, history: Any, group: int, frames: int) -> Any: ...

    def decoder_select(self, state: Any, rows: Tensor) -> Any: ...

    def decoder_tensors(self, state: Any) -> dict[str, Tensor]: ...

    def decoder_state(self, tensors: Mapping[str, Tensor]) -> Any: ...
