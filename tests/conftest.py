"""Shape annotations are checked while testing, and tiny models to test on."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import install_import_hook

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
