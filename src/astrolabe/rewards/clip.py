"""Scores from CLIP embeddings of single frames: CLIPScore, PickScore, HPSv2.1, and the LAION aesthetic predictor.

Of a video the mean over its frames counts. Sources: Hessel et al. 2021 (arXiv 2104.08718), Pick-a-Pic (2305.01569),
HPSv2 (2306.09341), improved-aesthetic-predictor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from accelerate import init_empty_weights
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from astrolabe.rewards.base import check_batch
from astrolabe.rewards.frames import Pictures, normalised, pillow_bicubic, to_pictures
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.strict import check, fill
from astrolabe.runtime.tensorfile import Container, TensorFile
from astrolabe.types import PerSample, Video

Fit = Literal["crop", "pad"]
AESTHETIC = (768, 1024, 128, 64, 16, 1)  # numbers between its layers; there is nothing but dropout between them
PLACES = re.compile(r"(text|vision)_model\.embeddings\.position_ids")  # of old files: counts, no weights
# The sizes of ViT-H-14, and that of OpenCLIP's own activation: HPSv2.1 has no file that says so.
VIT_H = {
    "projection_dim": 1024,
    "text_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                    "hidden_act": "gelu", "projection_dim": 1024},
    "vision_config": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "projection_dim": 1024,
                      "num_attention_heads": 16, "patch_size": 14, "image_size": 224, "hidden_act": "gelu"},
}  # fmt: skip


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a transformers tokenizer."""

    def __call__(self, text: list[str], **options: Any) -> Any: ...


def shown(frames: Pictures, side: int, fit: Fit) -> Float[Tensor, "n 3 side side"]:
    """Square pictures for CLIP: the middle of the frame (``crop``), or all of it between black bars (``pad``)."""
    height, width = frames.shape[-2:]
    if fit == "crop":
        short = min(height, width)
        new = (int(side * height / short), int(side * width / short))
        top, left = (new[0] - side) // 2, (new[1] - side) // 2
        return normalised(pillow_bicubic(frames, new)[..., top : top + side, left : left + side])
    scale = side / max(height, width)
    new = (round(height * scale), round(width * scale))
    above, before = (side - new[0]) // 2, (side - new[1]) // 2
    bars = (before, side - new[1] - before, above, side - new[0] - above)
    return normalised(functional.pad(pillow_bicubic(frames, new), bars))


@dataclass(frozen=True)
class Clip:
    """CLIP with its tokenizer; no more than ``at_once`` pictures go through it together."""

    model: CLIPModel
    tokenizer: Tokenizer
    fit: Fit = "crop"
    at_once: int = 64

    @torch.no_grad()
    def pictures(self, name: str, video: Video, prompts: Sequence[str], every: int) -> Float[Tensor, "b f d"]:
        """Embeddings of every ``every``-th frame of every video."""
        check_batch(name, video, prompts)
        frames = to_pictures(video[:, ::every].to(self.model.device))
        side = self.model.config.vision_config.image_size
        found = [
            image_features(self.model, shown(some, side, self.fit)) for some in frames.flatten(0, 1).split(self.at_once)
        ]
        return torch.cat(found).unflatten(0, frames.shape[:2])

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Embeddings of prompts, cut at the length that CLIP knows."""
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=77, return_tensors="pt")
        return text_features(self.model, tokens.input_ids, tokens.attention_mask)


def image_features(model: CLIPModel, pixels: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n d"]:
    """Projected, not normalised, in float32."""
    dtype = model.visual_projection.weight.dtype
    return model.get_image_features(pixel_values=pixels.to(model.device, dtype)).pooler_output.float()


def text_features(model: CLIPModel, ids: Int[Tensor, "b n"], mask: Int[Tensor, "b n"]) -> Float[Tensor, "b d"]:
    """Projected, not normalised, in float32."""
    ids, mask = ids.to(model.device), mask.to(model.device)
    return model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output.float()


def cosine(pictures: Float[Tensor, "... d"], texts: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
    """HPSv2.1's score."""
    return functional.cosine_similarity(pictures, texts, dim=-1)


def pickscore(angle: Float[Tensor, "*b"], logit_scale: Tensor) -> Float[Tensor, "*b"]:
    """Its authors' logit, over the 26 that training code divides it by, so that it is about 1."""
    return logit_scale.float().exp() * angle / 26


def clipscore(angle: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """2.5 times the cosine, at least zero."""
    return 2.5 * angle.clamp(min=0)


class ClipReward:
    """How well frames fit their prompt, mean over every ``every``-th frame; ``score`` makes it of their cosine."""

    def __init__(self, name: str, clip: Clip, score: Callable[[Tensor], Tensor], every: int = 1):
        self.name, self.clip, self.score, self.every = name, clip, score, every

    @property
    def networks(self) -> Sequence[nn.Module]:
        """See ``rewards.visiting``."""
        return (self.clip.model,)

    def __call__(self, video: Video, prompts: Sequence[str]) -> PerSample:
        """See ``rewards.base.Reward``."""
        pictures = self.clip.pictures(self.name, video, prompts, self.every)
        return self.score(cosine(pictures, self.clip.texts(prompts)[:, None])).mean(1).cpu()


class Aesthetic:
    """How beautiful frames are, whatever the prompt: about 1 to 10."""

    name = "aesthetic"

    def __init__(self, clip: Clip, layers: nn.Module, every: int = 1):
        self.clip, self.layers, self.every = clip, layers, every

    @property
    def networks(self) -> Sequence[nn.Module]:
        """See ``rewards.visiting``."""
        return self.clip.model, self.layers

    def __call__(self, video: Video, prompts: Sequence[str]) -> PerSample:
        """See ``rewards.base.Reward``."""
        pictures = self.clip.pictures(self.name, video, prompts, self.every)
        return aesthetic(self.layers, pictures).mean(1).cpu()


@torch.no_grad()
def aesthetic(layers: nn.Module, pictures: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
    """The predictor on embeddings of length one."""
    return layers(functional.normalize(pictures.float(), dim=-1))[..., 0]


class AestheticLayers(nn.Module):
    """Linear layers with nothing but dropout between them, under the checkpoint's numbers."""

    def __init__(self, sizes: Sequence[int] = AESTHETIC) -> None:
        super().__init__()
        numbers = (0, 2, 4, 6, 7)
        self.layers = nn.ModuleDict(
            {str(n): nn.Linear(*pair) for n, pair in zip(numbers, pairwise(sizes), strict=True)}
        )

    def forward(self, pictures: Tensor) -> Tensor:
        for layer in self.layers.values():
            pictures = layer(pictures)
        return pictures


def assemble_aesthetic(file: TensorFile, entries: Container, device: torch.device | str = "cpu") -> AestheticLayers:
    """The predictor with tensors of ``file``, in float32; UserError for anything missing, unknown or misshapen. On the
    device ``meta`` that is all: nothing is read."""
    with init_empty_weights():
        layers = AestheticLayers()
    check(entries, layers, f"{file.path} (recognised as the aesthetic predictor, {len(entries)} tensors)")
    if torch.device(device).type != "meta":
        fill(layers, file, entries, device, torch.float32)
    return layers


def read_config(path: Path | str) -> CLIPConfig:
    """The configuration beside a checkpoint, ``config.json``."""
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        return CLIPConfig(**{name: fields[name] for name in ("projection_dim", "text_config", "vision_config")})
    except Exception as error:  # whatever transformers says of fields that it does not expect
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not the configuration of a CLIP model ({reason})") from None


def assemble_clip(
    file: TensorFile, entries: Container, config: CLIPConfig, device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> CLIPModel:  # fmt: skip
    """CLIP with tensors of ``file`` under transformers' names; UserError for anything missing, unknown or misshapen. On
    the device ``meta`` that is all: nothing is read."""
    try:
        with init_empty_weights():
            model = CLIPModel(config)
    except Exception as error:  # whatever transformers says of sizes that make no network
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file.path}: the configuration beside it makes no CLIP model ({reason})") from None
    own = {name: entry for name, entry in entries.items() if not PLACES.fullmatch(name)}
    check(own, model, f"{file.path} (recognised as CLIP, {len(own)} tensors)")
    if torch.device(device).type == "meta":
        return model
    fill(model, file, own, device, dtype)
    return model.to(device)  # buffers that no checkpoint has move too


LAYERS = (
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"\.ln_1\.", ".layer_norm1."), (r"\.ln_2\.", ".layer_norm2."), (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."), (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^visual\.proj$", "visual_projection.weight"), (r"^text_projection$", "text_projection.weight"),
)  # fmt: skip


def from_open_clip(entries: Container) -> Container:
    """OpenCLIP's tensors under transformers' names: queries, keys and values apart, projections the other way round."""
    found: Container = {}
    for name, entry in entries.items():
        if name == "attn_mask":  # which token sees which: no weight
            continue
        for pattern, replacement in LAYERS:
            name = re.sub(pattern, replacement, name)
        joined = re.match(r"(.*)\.attn\.in_proj_(weight|bias)$", name)
        if joined and entry.shape[0] % 3 == 0:  # else it stays what it is, unknown
            rows = entry.shape[0] // 3
            for number, part in enumerate("qkv"):
                offset = entry.offset + number * rows * entry.stride[0] * entry.dtype.itemsize
                piece = replace(entry, shape=(rows, *entry.shape[1:]), offset=offset)
                found[f"{joined[1]}.self_attn.{part}_proj.{joined[2]}"] = piece
        elif name in ("visual_projection.weight", "text_projection.weight"):
            found[name] = replace(entry, shape=entry.shape[::-1], stride=entry.stride[::-1])
        else:
            found[name] = entry
    return found
