"""Names of a Wan's linear layers: the original model's, diffusers', and kohya's, which has underscores for dots."""

from __future__ import annotations

import re

# The original's name and diffusers': of the layers of a block, and of those around the blocks.
INSIDE = {
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in
       (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in
       (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"), ("k_img", "add_k_proj"),
        ("v_img", "add_v_proj"))},
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}  # fmt: skip
AROUND = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "head.head": "proj_out",
}


def _spellings(table: dict[str, str]) -> dict[str, str]:
    return {name.replace(".", "_"): original for original, theirs in table.items() for name in (original, theirs)}


IN_BLOCK, OUTSIDE = _spellings(INSIDE), _spellings(AROUND)
BLOCK = re.compile(r"blocks[._](\d+)[._](.+)")


def to_original(layer: str) -> str:
    """The original name of a layer in any spelling; one that is no layer of a Wan stays as it is."""
    if match := BLOCK.fullmatch(layer):
        inside = IN_BLOCK.get(match[2].replace(".", "_"))
        return f"blocks.{match[1]}.{inside}" if inside else layer
    return OUTSIDE.get(layer.replace(".", "_"), layer)


def is_layer(layer: str) -> bool:
    """Whether it is the original name of a linear layer that a Wan has, given enough blocks."""
    match = BLOCK.fullmatch(layer)
    return (match is not None and layer == f"blocks.{match[1]}.{match[2]}" and match[2] in INSIDE) or layer in AROUND


def to_diffusers(layer: str) -> str:
    """The name in diffusers' WanTransformer3DModel of a layer, given its original one (``is_layer``)."""
    match = BLOCK.fullmatch(layer)
    return f"blocks.{match[1]}.{INSIDE[match[2]]}" if match else AROUND[layer]
