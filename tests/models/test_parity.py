"""An independent implementation of the same network: diffusers'."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import WanTransformer3DModel

from astrolabe.models.layer_names import to_diffusers
from astrolabe.models.wan.config import WanConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.models.wan.transformer import CausalWan
from astrolabe.types import per_frame
from tests.conftest import tiny_stream

CONFIG = WanConfig(dim=256, ffn_dim=320, num_heads=2, num_layers=3, freq_dim=32, text_dim=24)
OUTSIDE = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "patch_embedding": "patch_embedding",
}


def theirs(name: str) -> str:
    """The name in diffusers of a tensor under its original name."""
    if name == "head.modulation":
        return "scale_shift_table"
    layer, _, kind = name.rpartition(".")
    if layer in OUTSIDE:
        return f"{OUTSIDE[layer]}.{kind}"
    if kind == "modulation":
        return f"{layer}.scale_shift_table"
    if layer.endswith("norm3"):
        return name.replace("norm3", "norm2")
    if match := re.match(r"(blocks\.\d+)\.(self|cross)_attn\.(norm_[qk])", layer):
        return f"{match[1]}.attn{1 if match[2] == 'self' else 2}.{match[3]}.{kind}"
    return f"{to_diffusers(layer)}.{kind}"


@pytest.mark.parametrize("frames", [1, 3])
def test_one_chunk_with_full_attention_equals_diffusers(frames: int) -> None:
    torch.manual_seed(0)
    ours = CausalWan(CONFIG)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(0.06 * torch.randn(parameter.shape) + (parameter == 1))
    other = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=128, text_dim=24, freq_dim=32, ffn_dim=320,
        num_layers=3,
    ).eval()  # fmt: skip
    other.load_state_dict({theirs(name): value for name, value in ours.state_dict().items()}, strict=True)
    noisy, text = torch.randn(2, frames, 16, 6, 10), torch.randn(2, 7, 24)
    model = WanGenerator(ours, tiny_stream(chunk=frames), (16, 6, 10))
    with torch.no_grad():
        for sigma in (1.0, 0.625, 0.02):
            mine = model.velocity_block_causal(noisy, per_frame(sigma, noisy), model.condition(text))
            out = other(noisy.transpose(1, 2), torch.full((2,), 1000 * sigma), text, return_dict=False)[0]
            torch.testing.assert_close(mine, out.transpose(1, 2), rtol=0, atol=2e-5)
            assert out.std() > 0.8
