"""Wan's text encoder: transformers' UMT5 under Wan's own file, and prompts cleaned as Wan cleans them."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ftfy
import torch
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from astrolabe.runtime.checkpoint import fingerprint
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.strict import check, fill
from astrolabe.runtime.tensorfile import Container, TensorFile, open_tensors
from astrolabe.runtime.wrapped import tensors_of
from astrolabe.types import TextEmbeddings

TEXT_LEN = 512  # tokens of a prompt, padding included

RENAMES = (
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.", "encoder.block."),
    (r"\.attn\.", ".layer.0.SelfAttention."),
    (r"\.pos_embedding\.embedding\.", ".layer.0.SelfAttention.relative_attention_bias."),
    (r"\.norm1\.", ".layer.0.layer_norm."),
    (r"\.norm2\.", ".layer.1.layer_norm."),
    (r"\.ffn\.gate\.0\.", ".layer.1.DenseReluDense.wi_0."),
    (r"\.ffn\.fc1\.", ".layer.1.DenseReluDense.wi_1."),
    (r"\.ffn\.fc2\.", ".layer.1.DenseReluDense.wo."),
)


@runtime_checkable
class Tokenizer(Protocol):
    """Prompts to token ids and mask, [b, TEXT_LEN] each (``transformers.AutoTokenizer`` of google/umt5-xxl)."""

    def __call__(self, texts: list[str], **options: Any) -> Any: ...


def transformers_name(name: str) -> str:
    """The name in transformers' UMT5 of a tensor of Wan's own file."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def clean_prompt(text: str) -> str:
    """Mended encoding, HTML entities resolved (twice, as in Wan), every run of white space one space."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


def read_sizes(entries: Container, path: Path | str) -> dict[str, int]:
    """The sizes of the encoder, read off Wan's tensors; UserError when one that tells a size is missing."""
    needed = ("token_embedding.weight", "blocks.0.attn.q.weight", "blocks.0.ffn.fc1.weight",
              "blocks.0.pos_embedding.embedding.weight")  # fmt: skip
    if missing := [name for name in needed if name not in entries]:
        raise UserError(f"{path}: not a UMT5 encoder in Wan's layout: {', '.join(missing)} missing")
    vocabulary, dim = entries["token_embedding.weight"].shape
    buckets, heads = entries["blocks.0.pos_embedding.embedding.weight"].shape
    return {
        "vocab_size": vocabulary,
        "d_model": dim,
        "d_kv": entries["blocks.0.attn.q.weight"].shape[0] // heads,
        "d_ff": entries["blocks.0.ffn.fc1.weight"].shape[0],
        "num_layers": 1 + max(int(match[1]) for name in entries if (match := re.match(r"blocks\.(\d+)\.", name))),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
    }


def assemble_umt5(
    file: TensorFile, entries: Container, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> UMT5EncoderModel:
    """The encoder with tensors of ``file`` under Wan's own names."""
    with torch.device("meta"):
        encoder = UMT5EncoderModel(UMT5Config(**read_sizes(entries, file.path)))
    renamed = {transformers_name(name): entry for name, entry in entries.items()}
    renamed["encoder.embed_tokens.weight"] = renamed["shared.weight"]  # one tensor under two names
    check(renamed, encoder, f"{file.path} (recognised as Wan's UMT5, {len(entries)} tensors; names as in transformers)")
    fill(encoder, file, renamed, device, dtype)
    encoder.tie_weights()
    return encoder


def load_umt5(
    path: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> UMT5EncoderModel:
    """The encoder of Wan's own file (``models_t5_umt5-xxl-enc-bf16.pth``).

    Raises UserError for anything missing, unknown or of another shape.
    """
    file = open_tensors(path)
    return assemble_umt5(file, tensors_of(file, "token_embedding.weight"), device, dtype)


class WanTextEncoder:
    """Prompts to [b, TEXT_LEN, d] (``models.wan.generator.TextEncoder``); rows of padding are zero."""

    def __init__(self, encoder: UMT5EncoderModel, tokenizer: Tokenizer):
        self.encoder, self.tokenizer = encoder, tokenizer

    @property
    def dim(self) -> int:
        """Numbers of one token's embedding."""
        return int(self.encoder.config.d_model)

    def identity(self) -> str:
        """What tells one encoder from another: a hash of its small tensors and of every tensor's name and shape."""
        state = self.encoder.state_dict()
        small = {name: value.float() for name, value in state.items() if value.numel() <= 2**16}
        shapes = "".join(f"{name}{list(value.shape)}" for name, value in sorted(state.items()))
        return fingerprint(
            small | {"shapes": torch.tensor(list(shapes.encode()), dtype=torch.uint8)}, "the text encoder"
        )

    def check(self, texts: Sequence[str]) -> None:
        """Any text can be encoded."""

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextEmbeddings:
        """Embeddings of the cleaned prompts; longer ones are cut at TEXT_LEN tokens, as in Wan."""
        tokens = self.tokenizer(
            [clean_prompt(text) for text in texts], max_length=TEXT_LEN, padding="max_length", truncation=True,
            add_special_tokens=True, return_tensors="pt",
        )  # fmt: skip
        return embed(self.encoder, tokens.input_ids, tokens.attention_mask)


@torch.no_grad()
def embed(encoder: UMT5EncoderModel, ids: Tensor, mask: Tensor) -> TextEmbeddings:
    """Embeddings [b, n, d] of token ids [b, n]; rows where ``mask`` is 0 are zero."""
    ids, mask = ids.to(encoder.device), mask.to(encoder.device)
    found = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    return found * mask[..., None].to(found.dtype)
