"""Shape annotations are checked while testing, and tiny models to test on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook
from torch import Tensor

settings.register_profile("patient", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("patient")

CHECKED = ("types", "flow", "models", "rl", "rollout", "rewards")
install_import_hook([f"astrolabe.{name}" for name in CHECKED], "beartype.beartype")

from astrolabe.models.wan.config import StreamConfig, WanConfig  # noqa: E402
from astrolabe.models.wan.generator import WanGenerator  # noqa: E402
from astrolabe.models.wan.transformer import CausalWan  # noqa: E402

LATENT = (16, 4, 6)


def tiny_stream(chunk: int = 3, window: int | None = None, sink: int = 0, positions: str = "absolute") -> StreamConfig:
    """A streaming configuration with Wan's levels."""
    return StreamConfig(chunk, window, sink, positions, 5.0, (1000, 750, 500, 250))  # type: ignore[arg-type]


def tiny_wan(stream: StreamConfig | None = None, dtype: torch.dtype = torch.float64, seed: int = 0) -> WanGenerator:
    """A random causal Wan of two blocks, in float64."""
    torch.manual_seed(seed)
    config = WanConfig(dim=48, ffn_dim=96, num_heads=2, num_layers=2, freq_dim=32, text_dim=8)
    transformer = CausalWan(config).to(dtype)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, dtype=dtype) + (parameter == 1))
    return WanGenerator(transformer, stream or tiny_stream(), LATENT)


@pytest.fixture
def wan() -> WanGenerator:
    """A tiny random model that sees its whole past."""
    return tiny_wan()


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test silences (as one of several processes) is silent in that test alone."""
    monkeypatch.setattr("astrolabe.runtime.progress._silent", False)


class WordEncoder:
    """Embeddings that belong to the prompt alone (``models.wan.generator.TextEncoder``)."""

    def check(self, texts: Sequence[str]) -> None:
        """Any text will do."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        rngs = [torch.Generator().manual_seed(sum(map(ord, text))) for text in texts]
        return torch.stack([torch.randn(5, 8, generator=rng, dtype=torch.float64) for rng in rngs])


class CarryingCodec:
    """A causal decoder in two lines: a frame shows its latents and a little of those before (the carried state)."""

    def decode(self, latents: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        before = torch.zeros_like(latents[:, 0]) if state is None else state
        frames = []
        for index, latent in enumerate(latents.unbind(1)):
            before = latent + 0.5 * before
            frames += [before[:, :3].sigmoid()] * (1 if state is None and index == 0 else 4)
        return torch.stack(frames, 1), before

    def to(self, device: torch.device | str) -> CarryingCodec:
        return self

    def select(self, state: Tensor, rows: Tensor) -> Tensor:
        return state[rows]

    def pack(self, state: Tensor) -> dict[str, Tensor]:
        return {"before": state}

    def unpack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors["before"]


def tiny_world(stream: StreamConfig | None = None, seed: int = 0) -> WanGenerator:
    """``tiny_wan`` in float64 with a text encoder and a decoder."""
    model = tiny_wan(stream, torch.float64, seed)
    model.text_encoder, model.codec = WordEncoder(), CarryingCodec()
    return model
