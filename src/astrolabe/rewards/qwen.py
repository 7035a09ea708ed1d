"""Qwen2-VL with a head that scores: what HPSv3 and VideoAlign are made of.

The network is transformers' own, under its authors' checkpoints, loaded strictly. Both were trained with positions that
simply count tokens, on all three axes of Qwen2-VL's rotary embedding; with its usual positions they give other scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLModel

from astrolabe.runtime.errors import UserError
from astrolabe.runtime.progress import progress
from astrolabe.runtime.strict import check, few
from astrolabe.runtime.tensorfile import Container, Entry, TensorFile
from astrolabe.runtime.wrapped import tensors_of

LORA = re.compile(r"^(.*)\.(base_layer|lora_A\.default|lora_B\.default)\.(weight|bias)$")


@dataclass(frozen=True)
class QwenSizes:
    """What cannot be read off the tensors: numbers of one attention head in the language model, and how many heads
    the vision tower has."""

    head_dim: int = 128
    vision_heads: int = 16

    def __post_init__(self) -> None:
        if self.head_dim < 2 or self.head_dim % 2:
            raise UserError(f"heads of {self.head_dim} numbers: rotary positions turn pairs, so they must be even")


@dataclass(frozen=True)
class Merged:
    """A weight that a low-rank adapter changes: W + scale B A."""

    base: Entry
    down: Entry
    up: Entry

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the merged weight."""
        return self.base.shape

    @property
    def fits(self) -> bool:
        """Whether B A has the shape of W."""
        shapes = self.base.shape, self.up.shape, self.down.shape
        return all(map(lambda s: len(s) == 2, shapes)) and shapes[1][1] == shapes[2][0] and \
            (shapes[1][0], shapes[2][1]) == shapes[0]  # fmt: skip


Weights = dict[str, Entry | Merged]


class QwenScorer(nn.Module):
    """The network; ``rm_head`` reads scores off the last hidden state. ``lm_head`` lies in the checkpoints, unused."""

    def __init__(self, config: Qwen2VLConfig, head: nn.Module):
        super().__init__()
        self.model = Qwen2VLModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.rm_head = head

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    def logits(
        self,
        marks: Sequence[int],
        ids: Int[Tensor, "b n"],
        mask: Int[Tensor, "b n"],
        patches: Float[Tensor, "rows 1176"],
        grid: Int[Tensor, "b 3"],
    ) -> Float[Tensor, "b marks outputs"]:
        """What the head says, in float32, of the hidden states at the tokens ``marks``, in the order of the text."""
        ids, mask, grid = (part.to(self.device) for part in (ids, mask, grid))
        marked = torch.isin(ids, torch.tensor(marks, device=self.device))
        found = self.hidden(ids, mask, patches.to(self.device), grid)[marked]
        return self.rm_head(found.float()).view(len(ids), len(marks), -1)

    def hidden(
        self,
        ids: Int[Tensor, "b n"],
        mask: Int[Tensor, "b n"],
        patches: Float[Tensor, "rows 1176"],
        grid: Int[Tensor, "b 3"],
    ) -> Float[Tensor, "b n d"]:
        """The last hidden state, of pictures or of videos by what placeholders the tokens have; zero at padding."""
        config = self.model.config
        positions = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        kind = "video" if bool((ids == config.video_token_id).any()) else "image"
        seen = {"pixel_values_videos": patches} if kind == "video" else {"pixel_values": patches}
        found = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False,
            **seen, **{f"{kind}_grid_thw": grid},
        ).last_hidden_state  # fmt: skip
        return found * mask[..., None].to(found.dtype)


def read_config(entries: Container | Weights, sizes: QwenSizes, tokens: dict[str, int], path: Path) -> Qwen2VLConfig:
    """The sizes of a network, read off its tensors; ``tokens``: numbers of the tokens image, video, vision_start and
    vision_end. UserError when a tensor that tells a size is missing."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in entries:
            raise UserError(f"{path}: not a Qwen2-VL reward model: {name} is missing")
        return entries[name].shape

    def depth(pattern: str) -> int:
        return 1 + max((int(found[1]) for name in entries if (found := re.match(pattern, name))), default=-1)

    def heads(name: str) -> int:
        rows = shape(name)[0]
        if rows % sizes.head_dim:
            raise UserError(f"{path}: {name} has {rows} rows, which are no whole heads of {sizes.head_dim}")
        return rows // sizes.head_dim

    words, dim = shape("model.embed_tokens.weight")
    turned, third = sizes.head_dim // 2, 3 * sizes.head_dim // 16
    text = {
        "vocab_size": words, "hidden_size": dim, "num_hidden_layers": depth(r"model\.layers\.(\d+)\."),
        "intermediate_size": shape("model.layers.0.mlp.gate_proj.weight")[0],
        "num_attention_heads": heads("model.layers.0.self_attn.q_proj.weight"),
        "num_key_value_heads": heads("model.layers.0.self_attn.k_proj.weight"),
        "rms_norm_eps": 1e-6,
        # How the frequencies are dealt among the axes: as positions are equal on all, it does not matter, but
        # transformers wants all of them dealt. Of 128 numbers it deals as Qwen2-VL does.
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6, "mrope_section": [turned - 2 * third, third, third],
        },
    }  # fmt: skip
    wide = shape("visual.patch_embed.proj.weight")[0]
    vision = {
        "depth": depth(r"visual\.blocks\.(\d+)\."), "embed_dim": wide, "hidden_size": dim,
        "num_heads": sizes.vision_heads, "mlp_ratio": shape("visual.blocks.0.mlp.fc1.weight")[0] // wide,
        "hidden_act": "quick_gelu",
    }  # fmt: skip
    named = {f"{name}_token_id": number for name, number in tokens.items()}
    return Qwen2VLConfig(text_config=text, vision_config=vision, **named)


def plain(entries: Container, path: Path) -> Weights:
    """A checkpoint with adapters beside their weights, under the names of one without; UserError for an adapter that
    is not whole or does not fit."""
    pairs: dict[str, dict[str, Entry]] = {}
    weights: Weights = {}
    for name, entry in entries.items():
        name = name.removeprefix("base_model.model.")
        found = LORA.match(name)
        if found is None or found[3] == "bias":
            weights[name.replace(".base_layer.", ".")] = entry
        else:
            pairs.setdefault(f"{found[1]}.weight", {})[found[2]] = entry
    for name, parts in pairs.items():
        if len(parts) < 3:
            raise UserError(f"{path}: of {name} with its adapter there is only {few(parts)}")
        merged = Merged(parts["base_layer"], parts["lora_A.default"], parts["lora_B.default"])
        if not merged.fits:
            raise UserError(
                f"{path}: the adapter of {name} does not fit it: B {list(merged.up.shape)} A {list(merged.down.shape)} "
                f"on {list(merged.base.shape)}"
            )
        weights[name] = merged
    return weights


def renamed(name: str) -> str:
    """The name in ``QwenScorer`` of a tensor of a checkpoint."""
    return re.sub(r"^visual\.", "model.visual.", re.sub(r"^model\.", "model.language_model.", name))


def assemble(
    file: TensorFile, weights: Weights, config: Qwen2VLConfig, head: nn.Module, scale: float = 0.0,
    device: torch.device | str = "cpu", dtype: torch.dtype | None = None,
) -> QwenScorer:  # fmt: skip
    """The network with tensors of ``file``, each straight to ``device`` in ``dtype``, frozen; the head in float32.

    ``scale`` is that of the adapters, alpha / rank. Raises UserError for anything missing, unknown or of another shape.
    On the device ``meta`` that is all: nothing is read.
    """
    with init_empty_weights():
        scorer = QwenScorer(config, head)
    wanted = {renamed(name): entry for name, entry in weights.items()}
    check(wanted, scorer, f"{file.path} (recognised as a Qwen2-VL reward model, {len(wanted)} tensors)")
    if torch.device(device).type == "meta":
        return scorer
    del scorer.lm_head, wanted["lm_head.weight"]  # nothing is generated
    state = {}
    with file.reader() as reader, progress(f"loading {file.path.name}", len(wanted), "tensors") as task:
        for name, entry in wanted.items():
            task.advance()
            kept = torch.float32 if name.startswith("rm_head.") else dtype
            if isinstance(entry, Merged):
                up, down, base = (reader.read(e, device, torch.float32) for e in (entry.up, entry.down, entry.base))
                state[name] = (base + scale * (up @ down)).to(kept or entry.base.dtype)
            else:
                state[name] = reader.read(entry, device, kept)
    scorer.load_state_dict(state, strict=True, assign=True)
    return scorer.to(device).eval().requires_grad_(False)  # buffers that no checkpoint has move too


def flat(file: TensorFile) -> Container:
    """The tensors of a file, at its top or in one of the usual containers."""
    return tensors_of(file)


def same_tensor(file: TensorFile, one: Entry | Merged, other: Entry | Merged) -> bool:
    """Whether two tensors of a file, neither changed by an adapter, have the same numbers."""
    if isinstance(one, Merged) or isinstance(other, Merged):
        return False
    with file.reader() as reader:
        return torch.equal(reader.read(one), reader.read(other))


def padded(rows: Sequence[Sequence[int]], padding: int) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]:
    """Token ids and mask, filled up on the right."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Numbers of rows that go through together: as many as ``budget`` tokens allow, padding included, one at least."""
    some: list[int] = []
    for number, length in enumerate(lengths):
        longest = max([length, *(lengths[i] for i in some)])
        if some and longest * (len(some) + 1) > budget:
            yield some
            some = []
        some.append(number)
    if some:
        yield some


def check_words(name: str, scorer: QwenScorer, tokenizer: Sized) -> None:
    """UserError unless the checkpoint has one embedding for every token."""
    rows = scorer.model.config.text_config.vocab_size
    if rows != len(tokenizer):
        raise UserError(
            f"{name}: the checkpoint embeds {rows} tokens, and the tokenizer knows {len(tokenizer)} with those of the "
            "reward; give it Qwen2-VL's"
        )
