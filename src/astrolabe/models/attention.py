"""Dense attention over keys that lie in several places, some of them shared by a whole group of queries.

G candidates see one frozen history and each its own clip. Nothing is copied to bring the two together: the softmax
over all keys is put together from the softmaxes over each part. With lse the log of a part's sum of exponentials,

    output = sum over parts of exp(lse_part - lse) output_part,     lse = logsumexp over parts of lse_part

A shared part is attended to by the queries of a group as if they were one longer sequence. In the backward pass each
part is its kernel's own backward, given the merged output and lse (as in ring attention, arXiv 2310.01889).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Heads = Float[Tensor, "b n heads head_dim"]
Keys = Float[Tensor, "b keys heads head_dim"]
# Keys up to which a CPU is faster without the fused kernel: 1.5x forward on one part, 5 to 10x backward in bfloat16.
# Forward on several parts, without a backward to come, the kernel is faster by 3x from the start.
FEW_KEYS = 1024
_told: ContextVar[str | None] = ContextVar("told", default=None)


@contextmanager
def as_on(device_type: str) -> Iterator[None]:
    """Within the scope attention goes the way of another type of device: a plan for a GPU is played without one."""
    token = _told.set(device_type)
    try:
        yield
    finally:
        _told.reset(token)


def _kind(x: Tensor) -> str:
    """The type of device that decides the way."""
    return _told.get() or x.device.type


def attention(query: Heads, key: Keys, value: Keys) -> Heads:
    """Dense softmax attention."""
    q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if _kind(q) == "cpu" and k.shape[2] <= FEW_KEYS:
        scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
        return (scores.softmax(3).to(v.dtype) @ v).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


@dataclass(frozen=True)
class KeyPart:
    """Keys and values [b, n, heads, head_dim]; with fewer rows than the queries, each row is shared by a group."""

    key: Tensor
    value: Tensor


def attend(query: Heads, parts: Sequence[KeyPart]) -> Heads:
    """Attention of every query to all parts together, as if they were one. Rows of a group stand side by side.

    Raises ValueError when the rows of a part do not divide those of the queries.
    """
    for part in parts:
        if len(query) % len(part.key):
            raise ValueError(f"{len(query)} queries cannot share {len(part.key)} rows of keys evenly")
    own = [part for part in parts if len(part.key) == len(query)]
    if len(own) > 1:  # what is not shared is one part
        together = KeyPart(torch.cat([part.key for part in own], 1), torch.cat([part.value for part in own], 1))
        parts, own = [*(part for part in parts if len(part.key) < len(query)), together], [together]
    if len(parts) == len(own):
        return attention(query, own[0].key, own[0].value)
    tensors = [tensor for part in parts for tensor in (part.key, part.value)]
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, *tensors))
    small = sum(part.key.shape[1] for part in parts) <= FEW_KEYS and (learns or len(parts) == 1)
    if _has_kernel(query) and (_kind(query) == "cuda" or not small):
        return _Merged.apply(query, *tensors)
    return written_out(query, parts)


def written_out(query: Heads, parts: Sequence[KeyPart]) -> Heads:
    """``attend`` by plain matrix products: the scores of all parts exist at once, the keys are still not copied."""
    scale, rows = query.shape[3] ** -0.5, len(query)
    scores = [
        _unfold(_fold(query, len(part.key)) @ part.key.permute(0, 2, 3, 1) * scale, rows, query.shape[1])
        for part in parts
    ]
    shares = torch.cat(scores, 3).softmax(3).split([part.key.shape[1] for part in parts], 3)
    outputs = [
        _unfold(_fold(share.transpose(1, 2), len(part.key)).to(part.value.dtype) @ part.value.transpose(1, 2), rows,
                query.shape[1])
        for share, part in zip(shares, parts, strict=True)
    ]  # fmt: skip
    return sum(outputs[1:], outputs[0]).transpose(1, 2)


def _fold(x: Tensor, rows: int) -> Tensor:
    """[b * g, n, heads, d] to [b, heads, g * n, d]: the sequences of a group one behind the other."""
    return x.unflatten(0, (rows, -1)).flatten(1, 2).transpose(1, 2)


def _unfold(x: Tensor, rows: int, count: int) -> Tensor:
    """The inverse of ``_fold``, but for the place of the heads: [b, heads, g * n, d] to [b * g, heads, n, d]."""
    return x.unflatten(2, (rows // len(x), count)).transpose(1, 2).flatten(0, 1)


def _has_kernel(query: Tensor) -> bool:
    """Whether a flash kernel tells its log-sum-exp for tensors like this one."""
    kind = _kind(query)
    return kind == "cpu" or (kind == "cuda" and query.dtype in (torch.bfloat16, torch.float16))


def _flash(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    """Output and log-sum-exp [b, heads, n] of [b, heads, n, d], and what the backward kernel asks for besides."""
    if query.is_cuda:
        output, lse, *rest, _ = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)
        return output, lse, tuple(rest)
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    return output, lse, ()


def _flash_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, rest: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one part, given the output and log-sum-exp of all parts together."""
    if query.is_cuda:
        cum_q, cum_k, most_q, most_k, seed, offset = rest
        return torch.ops.aten._scaled_dot_product_flash_attention_backward(
            gradient, query, key, value, output, lse, cum_q, cum_k, most_q, most_k, 0.0, False, seed, offset
        )
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient, query, key, value, output, lse, 0.0, False
    )


class _Merged(torch.autograd.Function):
    """``attend`` by the device's flash kernel, one call a part."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, *tensors: Tensor) -> Tensor:
        rows, count = query.shape[:2]
        outputs, sums, ctx.rests = [], [], []
        for key, value in zip(tensors[::2], tensors[1::2], strict=True):
            output, lse, rest = _flash(_fold(query, len(key)), key.transpose(1, 2), value.transpose(1, 2))
            outputs.append(_unfold(output, rows, count))
            sums.append(_unfold(lse.unsqueeze(3), rows, count))
            ctx.rests.append(rest)
        lse = torch.stack(sums).logsumexp(0)
        weighted = [output * (part - lse).exp().to(output.dtype) for output, part in zip(outputs, sums, strict=True)]
        merged = sum(weighted[1:], weighted[0]).transpose(1, 2)
        ctx.save_for_backward(query, merged, lse, *tensors)
        return merged

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, merged, lse, *tensors = ctx.saved_tensors
        rows, count = query.shape[:2]
        total, others = torch.zeros_like(query), []
        for key, value, rest in zip(tensors[::2], tensors[1::2], ctx.rests, strict=True):
            shared = len(key)
            sums = _fold(lse.transpose(1, 2), shared).squeeze(3).contiguous()
            for_query, for_key, for_value = _flash_backward(
                _fold(gradients[0], shared).contiguous(), _fold(query, shared), key.transpose(1, 2),
                value.transpose(1, 2), _fold(merged, shared), sums, rest,
            )  # fmt: skip
            total += _unfold(for_query, rows, count).transpose(1, 2)
            others += [for_key.transpose(1, 2), for_value.transpose(1, 2)]
        wanted = ctx.needs_input_grad[1:]
        return total, *(gradient if needed else None for gradient, needed in zip(others, wanted, strict=True))
