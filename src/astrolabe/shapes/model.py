"""The embedded models: causal Wans of 3 M parameters on one codec, as data and as shipped files."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from astrolabe.models.wan.generator import WanGenerator
from astrolabe.models.wan.transformer import CausalWan
from astrolabe.runtime.checkpoint import load_tensors
from astrolabe.runtime.device import check_device, torch_dtype
from astrolabe.shapes.codec import Codec
from astrolabe.shapes.settings import LATENT_SHAPE, STREAMS, WAN, ShapesName, ShapesSettings
from astrolabe.shapes.text import TextEncoder

SHIPPED = Path(str(files("astrolabe.shapes") / "weights"))


def open_shapes_model(settings: ShapesSettings) -> WanGenerator:
    """A shipped model on the device, and in the dtype, that the settings name. UserError for an absent device."""
    check_device(settings.device)
    model = load_shapes_model(torch_dtype(settings.dtype, settings.device), settings.name)
    model.transformer.to(settings.device)
    for module in (model.text_encoder, model.codec):
        assert isinstance(module, nn.Module)
        module.to(settings.device)
    return model


def build(
    weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float32, name: ShapesName = "shapes"
) -> WanGenerator:
    """The generator of a flat dictionary with ``transformer.``, ``text_encoder.`` and ``codec.`` tensors, which streams
    as the model ``name`` does.

    Weights are held in float32 whatever they were stored in; ``dtype`` is what the transformer computes in.
    """
    transformer, text_encoder, codec = CausalWan(WAN), TextEncoder(WAN.text_dim), Codec()
    parts: dict[str, nn.Module] = {"transformer": transformer, "text_encoder": text_encoder, "codec": codec}
    for part, module in parts.items():
        own = {key.removeprefix(f"{part}."): value for key, value in weights.items() if key.startswith(f"{part}.")}
        module.load_state_dict(own, strict=True)
        module.eval().requires_grad_(False)
    return WanGenerator(transformer, STREAMS[name], LATENT_SHAPE, text_encoder, codec, dtype)


def load_shapes_model(
    dtype: torch.dtype = torch.float32, name: ShapesName = "shapes", folder: Path = SHIPPED
) -> WanGenerator:
    """A shipped model: ``NAME.safetensors`` (with its text encoder), and ``codec.safetensors``, which all share."""
    weights: dict[str, Tensor] = {}
    for file in (f"{name}.safetensors", "codec.safetensors"):
        weights |= load_tensors(folder / file)[0]
    model = build(weights, dtype, name)
    keep_linears_in(model.transformer, dtype)
    return model


def keep_linears_in(transformer: CausalWan, dtype: torch.dtype) -> None:
    """Cast the linear layers of the blocks once, as autocast would at every call."""
    for layer in transformer.blocks.modules():
        if isinstance(layer, nn.Linear):
            layer.to(dtype)
