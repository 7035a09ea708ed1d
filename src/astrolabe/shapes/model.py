"""The embedded model: a causal Wan of 3 M parameters on the shapes codec, as data and as shipped files."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from astrolabe.models.wan.config import StreamConfig, WanConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.models.wan.transformer import CausalWan
from astrolabe.runtime.checkpoint import load_tensors
from astrolabe.shapes.codec import LATENT_CHANNELS, PATCH, Codec
from astrolabe.shapes.text import TextEncoder
from astrolabe.shapes.world import CANVAS

WAN = WanConfig(dim=192, ffn_dim=768, num_heads=6, num_layers=5, freq_dim=128, text_dim=64)
STREAM = StreamConfig(
    chunk_frames=3,
    window_frames=9,
    sink_frames=0,
    positions="absolute",
    shift=5.0,
    denoising_steps=(1000, 750, 500, 250),
)
LATENT_SHAPE = (LATENT_CHANNELS, CANVAS // PATCH, CANVAS // PATCH)
CLIP_FRAMES = 12  # latent frames of a short clip: 45 video frames, 2.8 seconds
SHIPPED = Path(str(files("astrolabe.shapes") / "weights"))


def build(weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> WanGenerator:
    """The generator of a flat dictionary with ``transformer.``, ``text_encoder.`` and ``codec.`` tensors.

    Weights are held in float32 whatever they were stored in; ``dtype`` is what the transformer computes in.
    """
    transformer, text_encoder, codec = CausalWan(WAN), TextEncoder(WAN.text_dim), Codec()
    parts: dict[str, nn.Module] = {"transformer": transformer, "text_encoder": text_encoder, "codec": codec}
    for name, module in parts.items():
        own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        module.load_state_dict(own, strict=True)
        module.eval().requires_grad_(False)
    return WanGenerator(transformer, STREAM, LATENT_SHAPE, text_encoder, codec, dtype)


def load_shapes_model(dtype: torch.dtype = torch.float32, folder: Path = SHIPPED) -> WanGenerator:
    """The shipped model: ``transformer.safetensors`` (with its text encoder) and ``codec.safetensors``."""
    weights: dict[str, Tensor] = {}
    for name in ("transformer", "codec"):
        weights |= load_tensors(folder / f"{name}.safetensors")[0]
    model = build(weights, dtype)
    keep_linears_in(model.transformer, dtype)
    return model


def keep_linears_in(transformer: CausalWan, dtype: torch.dtype) -> None:
    """Cast the linear layers of the blocks once, as autocast would at every call."""
    for layer in transformer.blocks.modules():
        if isinstance(layer, nn.Linear):
            layer.to(dtype)
