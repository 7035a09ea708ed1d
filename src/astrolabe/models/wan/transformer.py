"""The causal Wan transformer, in the key names of the released checkpoints.

It knows nothing of caches or masks: self-attention hands its queries, keys and values to a ``Memory``, which decides
what each chunk sees. Streaming, teacher forcing and block-causal forwards are the same network with another memory.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from astrolabe.models import rope
from astrolabe.models.attention import Heads, KeyPart, attend
from astrolabe.models.visibility import Memory
from astrolabe.models.wan.config import WanConfig
from astrolabe.types import Latents, TextEmbeddings

Tokens = Float[Tensor, "b n dim"]
TextKeys = tuple[Float[Tensor, "prompts words heads head_dim"], Float[Tensor, "prompts words heads head_dim"]]
Conditioning = list[TextKeys]  # of every block


def timestep_embedding(timestep: Tensor, dims: int) -> Tensor:
    """[cos | sin] of the timestep (0 to 1000) at ``dims / 2`` speeds; float64, shape [..., dims]."""
    half = dims // 2
    speeds = 10000.0 ** -(torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
    angles = timestep.to(torch.float64)[..., None] * speeds
    return torch.cat([angles.cos(), angles.sin()], -1)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the whole width (before the split into heads), in at least float32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight.to(
            x.dtype
        )


class Attention(nn.Module):
    """The four projections and two norms that self- and cross-attention share."""

    def __init__(self, config: WanConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(config.dim, config.dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(config.dim, config.eps), RMSNorm(config.dim, config.eps)

    def _heads(self, x: Tokens) -> Heads:
        return x.unflatten(-1, (self.num_heads, -1))


class SelfAttention(Attention):
    def forward(self, x: Tokens, turn: rope.Rotation, memory: Memory, layer: int) -> Tokens:
        query = rope.rotate(self._heads(self.norm_q(self.q(x))), turn)
        key = rope.rotate(self._heads(self.norm_k(self.k(x))), turn)
        return self.o(memory.attend(layer, query, key, self._heads(self.v(x))).flatten(2))


class CrossAttention(Attention):
    def condition(self, text: Float[Tensor, "b words dim"]) -> TextKeys:
        """Keys and values of the text, which depend on nothing else: computed once a prompt."""
        return self._heads(self.norm_k(self.k(text))), self._heads(self.v(text))

    def forward(self, x: Tokens, text: TextKeys) -> Tokens:
        """Rows of text may be fewer than those of ``x``: then each is shared by a group of videos side by side."""
        return self.o(attend(self._heads(self.norm_q(self.q(x))), [KeyPart(*text)]).flatten(2))


class Block(nn.Module):
    def __init__(self, config: WanConfig):
        super().__init__()
        dim, eps = config.dim, config.eps
        self.norm1 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(dim, eps)
        self.cross_attn = CrossAttention(config)
        self.norm2 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = nn.Sequential(nn.Linear(dim, config.ffn_dim), nn.GELU("tanh"), nn.Linear(config.ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self, x: Tokens, time: Float[Tensor, "b f 6 dim"], turn: rope.Rotation, text: TextKeys,
        memory: Memory, layer: int,
    ) -> Tokens:  # fmt: skip
        rows = (self.modulation[:, None] + time).unbind(2)
        shift_attn, scale_attn, gate_attn, shift_ffn, scale_ffn, gate_ffn = rows
        y = self.self_attn(modulate(self.norm1(x), shift_attn, scale_attn), turn, memory, layer)
        x = x + gate(y, gate_attn)
        x = x + self.cross_attn(self.norm3(x), text)
        y = self.ffn(modulate(self.norm2(x), shift_ffn, scale_ffn))
        return x + gate(y, gate_ffn)


def modulate(x: Tokens, shift: Float[Tensor, "b f dim"], scale: Float[Tensor, "b f dim"]) -> Tokens:
    """``x (1 + scale) + shift``, each latent frame by its own row."""
    by_frame = x.unflatten(1, (shift.shape[1], -1))
    return torch.addcmul(shift[:, :, None], by_frame, 1 + scale[:, :, None]).flatten(1, 2)


def gate(y: Tokens, row: Float[Tensor, "b f dim"]) -> Tokens:
    """``y * row``, each latent frame by its own row."""
    return (y.unflatten(1, (row.shape[1], -1)) * row[:, :, None]).flatten(1, 2)


class Head(nn.Module):
    def __init__(self, config: WanConfig):
        super().__init__()
        patch = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.norm = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, patch * config.out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, x: Tokens, time: Float[Tensor, "b f dim"]) -> Tensor:
        shift, scale = (self.modulation[:, None] + time[:, :, None]).unbind(2)
        return self.head(modulate(self.norm(x), shift, scale))


class CausalWan(nn.Module):
    """Velocity of noisy latents, given text and whatever the memory shows (Wan 2.1 t2v, causal).

    With ``gradient_checkpointing`` a block keeps only its input for the backward pass, and is run again there.
    """

    def __init__(self, config: WanConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, config.patch_size, config.patch_size)
        self.text_embedding = nn.Sequential(nn.Linear(config.text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)

    def condition(self, text: TextEmbeddings) -> Conditioning:
        """Keys and values of the text in every block. Padding rows are zero and attended to, as in Wan."""
        tokens = self.text_embedding(text)
        return [block.cross_attn.condition(tokens) for block in self._blocks()]

    def forward(
        self, x: Latents, timestep: Float[Tensor, "b f"], text: Conditioning, memory: Memory, first_frame: int = 0
    ) -> Latents:
        """Velocity [b, f, c, h, w]; ``first_frame`` is the absolute position of ``x[:, 0]`` in its video."""
        frames, height, width = (
            x.shape[1],
            x.shape[3] // self.config.patch_size[1],
            x.shape[4] // self.config.patch_size[2],
        )
        tokens = self._patchify(x)
        time, rows = self._embed_time(timestep)
        wide = torch.promote_types(tokens.dtype, torch.float32)
        turn = rope.rotation(first_frame, frames, height, width, self.config.head_dim, wide, x.device)
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        for layer, block in enumerate(self._blocks()):
            if recompute:
                tokens = checkpoint(block, tokens, rows, turn, text[layer], memory, layer, use_reentrant=False)
            else:
                tokens = block(tokens, rows, turn, text[layer], memory, layer)
        return self._unpatchify(self.head(tokens, time), frames, height, width)

    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def _embed_time(self, timestep: Float[Tensor, "b f"]) -> tuple[Tensor, Tensor]:
        """Embedding [b, f, dim] and its projection to modulation rows [b, f, 6, dim], in the weights' precision."""
        with torch.autocast(timestep.device.type, enabled=False):
            sinusoid = timestep_embedding(timestep, self.config.freq_dim).to(self.patch_embedding.weight.dtype)
            time = self.time_embedding(sinusoid)
            return time, self.time_projection(time).unflatten(-1, (6, -1))

    def _patchify(self, x: Latents) -> Tokens:
        # As the convolution lays it out, the residual stream would be strided to the last block, and copied by norms.
        return self.patch_embedding(x.transpose(1, 2)).flatten(2).transpose(1, 2).contiguous()

    def _unpatchify(self, x: Tokens, frames: int, height: int, width: int) -> Latents:
        _, rows, columns = self.config.patch_size
        x = x.reshape(x.shape[0], frames, height, width, rows, columns, self.config.out_dim)
        return x.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


def initialise(model: CausalWan, generator: torch.Generator) -> None:
    """Weights for training from nothing: Xavier projections, small embeddings, a head that starts silent."""
    for name, parameter in model.named_parameters():
        if "modulation" in name:
            nn.init.normal_(parameter, std=model.config.dim**-0.5, generator=generator)
        elif "norm" in name:
            nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias") or name == "head.head.weight":
            nn.init.zeros_(parameter)
        elif "text_embedding" in name or "time_embedding" in name:
            nn.init.normal_(parameter, std=0.02, generator=generator)
        else:
            nn.init.xavier_uniform_(parameter.flatten(1), generator=generator)
