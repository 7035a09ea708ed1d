"""Tiny reward models in the layouts of the released checkpoints, and tokenizers for them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, Qwen2VLConfig

from astrolabe.rewards.hpsv3 import MARK, head
from astrolabe.rewards.qwen import QwenScorer
from astrolabe.rewards.videoalign import DIMENSIONS

WORDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
         "<|video_pad|>")  # fmt: skip
DIM, RANK = 128, 4


def tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and Qwen2-VL's special ones."""
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    plain = Tokenizer(BPE(letters, []))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=plain)
    made.add_tokens(list(WORDS), special_tokens=True)
    return made


def scorer(rows: int, top: nn.Module, seed: int, head_dim: int = DIM, heads: int = 1) -> QwenScorer:
    """A network with random weights, wide enough that its scores differ. Its first axis turns all pairs of a head that
    the two others leave."""
    dim, share = heads * head_dim, 24 if head_dim == DIM else 0
    torch.manual_seed(seed)
    ids = tokenizer().convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={"vocab_size": rows, "hidden_size": dim, "intermediate_size": 96, "num_hidden_layers": 2,
                     "num_attention_heads": heads, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "bos_token_id": None,
                     "eos_token_id": None, "rope_parameters": {
                         "rope_type": "default", "rope_theta": 1e6,
                         "mrope_section": [head_dim // 2 - 2 * share, share, share]}},
        vision_config={"depth": 1, "embed_dim": 64, "num_heads": 16, "hidden_size": dim, "mlp_ratio": 2},
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
    )  # fmt: skip
    made = QwenScorer(config, top)
    for name, weight in made.named_parameters():
        if weight.ndim > 1:
            weight.data.normal_(std=0.5 if "embed_tokens" in name else 1.5 / weight[0].numel() ** 0.5)
    return made


def official(made: QwenScorer) -> dict[str, Tensor]:
    """Its tensors under the names of the checkpoints."""
    return {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): value.contiguous()
        for name, value in made.state_dict().items()
    }


def write_hpsv3(path: Path, seed: int = 0) -> Path:
    """HPSv3's layout."""
    save_file(official(scorer(len(tokenizer()) + 1, head(DIM), seed)), path)
    return path


def write_videoalign(path: Path, seed: int = 0) -> Path:
    """VideoReward's layout: adapters beside every linear layer of the language model, tied embeddings twice."""
    made = official(scorer(len(tokenizer()) + len(DIMENSIONS), nn.Linear(DIM, 1, bias=False), seed))
    made["lm_head.weight"] = made["model.embed_tokens.weight"].clone()
    tensors = {}
    for name, value in made.items():
        if name.startswith("model.layers.") and "_proj." in name:
            stem, end = name.rsplit(".", 1)
            tensors[f"base_model.model.{stem}.base_layer.{end}"] = value
            if end == "weight":
                tensors[f"base_model.model.{stem}.lora_A.default.weight"] = torch.randn(RANK, value.shape[1]) / 7
                tensors[f"base_model.model.{stem}.lora_B.default.weight"] = torch.randn(value.shape[0], RANK) / 4
        else:
            tensors[f"base_model.model.{name}"] = value
    torch.save({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


def marks_of(name: str) -> list[str]:
    """What a reward model adds to its tokenizer."""
    return [MARK] if name == "hpsv3" else [f"<|{dimension}_reward|>" for dimension in DIMENSIONS]


def clip_config(side: int = 28) -> CLIPConfig:
    """A small CLIP for the tokenizer above."""
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "hidden_act": "gelu", "vocab_size": len(tokenizer()), "projection_dim": 24, "bos_token_id": 1,
            "eos_token_id": tokenizer().convert_tokens_to_ids("<|endoftext|>"), "pad_token_id": 1}  # fmt: skip
    vision = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
              "hidden_act": "gelu", "image_size": side, "patch_size": 7, "projection_dim": 24}  # fmt: skip
    return CLIPConfig(projection_dim=24, text_config=text, vision_config=vision)


def clip_model(seed: int = 0) -> CLIPModel:
    """A small CLIP with random weights."""
    torch.manual_seed(seed)
    return CLIPModel(clip_config()).eval()
