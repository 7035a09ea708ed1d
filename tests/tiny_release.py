"""Released models in small: every file where and as its authors have it, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from astrolabe.models.wan.config import WanConfig
from astrolabe.models.wan.transformer import CausalWan
from tests.golden import replay
from tests.rewards import tiny

GOLDEN = Path(__file__).parent / "golden"
TINY = WanConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=2, freq_dim=16, text_dim=48)
WORDS = ["a", "the", "cat", "dog", "bird", "runs", "sleeps", "sings", "on", "in", "small", "big", "mat", "sky"]


def weights_of(name: str) -> dict[str, Tensor]:
    """The tensors of a golden file's tiny network, under Wan's own names."""
    _, tensors = replay.read(str(GOLDEN / f"{name}.safetensors"))
    return {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}


def transformer_weights(seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the original names."""
    torch.manual_seed(seed)
    wan = CausalWan(TINY)
    return {
        name: 0.1 * torch.randn(value.shape) + (value == 1)
        if "modulation" not in name
        else 0.1 * torch.randn(value.shape)
        for name, value in wan.state_dict().items()
    }


def write_wan(folder: Path) -> Path:
    """VAE, text encoder and tokenizer, as in the folder Wan2.1-T2V-1.3B."""
    tokens = folder / "google" / "umt5-xxl"
    tokens.mkdir(parents=True)
    torch.save(weights_of("wan_vae"), folder / "Wan2.1_VAE.pth")
    torch.save(weights_of("umt5_encoder"), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )
    whole.save_pretrained(tokens)
    return folder


def write_checkpoint(folder: Path, name: str) -> Path:
    """The transformer of a released model, in its container and with its prefixes."""
    inner = {f"model.{key}": value for key, value in transformer_weights().items()}
    content: dict[str, tuple[str, Any]] = {
        "self-forcing": ("checkpoints/self_forcing_dmd.pt", {"generator": {}, "generator_ema": inner}),
        "causal-forcing": ("chunkwise/causal_forcing.pt", {"generator": inner}),
        "causal-forcing-framewise": ("framewise/causal_forcing.pt", {"generator_ema": inner}),
        "causal-forcing-2step": ("causal-forcing++/framewise-2step.pt", {"generator_ema": inner}),
        "longlive": ("models/longlive_base.pt", {"generator": inner, "step": 3}),
    }
    place, tensors = content[name]
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)
    if name == "longlive":
        torch.save({"generator_lora": lora_weights()}, folder / "models" / "lora.pt")
    return folder


def lora_weights(rank: int = 4, scale: float = 0.1) -> dict[str, Tensor]:
    """An adapter with PEFT's keys on every linear layer of every block."""
    torch.manual_seed(7)
    tensors = {}
    for name, value in transformer_weights().items():
        if name.startswith("blocks.") and name.endswith(".weight") and value.ndim == 2:
            layer = f"base_model.model.model.{name.removesuffix('.weight')}"
            tensors[f"{layer}.lora_A.weight"] = scale * torch.randn(rank, value.shape[1])
            tensors[f"{layer}.lora_B.weight"] = scale * torch.randn(value.shape[0], rank)
    return tensors


def arguments(folder: Path, name: str) -> list[str]:
    """The words of the command line that open the model in ``folder``; made there when it is not yet."""
    if not (folder / "wan").exists():
        write_wan(folder / "wan")
    if not (folder / name).exists():
        write_checkpoint(folder / name, name)
    return [
        f"--model.weights={folder / name}", f"--model.wan={folder / 'wan'}", f"--model.text_cache={folder / 'text'}",
        "--model.height=32", "--model.width=48", "--model.dtype=float32",
    ]  # fmt: skip


def judges(folder: Path) -> list[str]:
    """The words of the command line that give a recipe's reward models tiny files; made there when they are not yet."""
    if not (folder / "tokens").exists():
        tiny.tokenizer().save_pretrained(folder / "tokens")
        tiny.write_hpsv3(folder / "HPSv3.safetensors")
        tiny.write_videoalign(folder / "model.pth")
    files = ("HPSv3.safetensors", "model.pth", "model.pth")
    words = [f"--rewards.{i}.model.weights={folder / file}" for i, file in enumerate(files)]
    return [*words, *(f"--rewards.{i}.model.base={folder / 'tokens'}" for i in range(3)), "--rewards.0.model.every=20"]
