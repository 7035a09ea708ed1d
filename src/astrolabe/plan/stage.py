"""The networks of a run on fake tensors, for the parts of a step to run on: their own classes, in a few blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from astrolabe.experiment import TrainConfig
from astrolabe.models.adapters import Pair
from astrolabe.models.attention import as_on
from astrolabe.models.lora import FROZEN, TARGETS, freeze_onto, linear_layers
from astrolabe.models.released import released
from astrolabe.models.settings import ReleasedSettings
from astrolabe.models.wan.config import WanConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.models.wan.transformer import CausalWan
from astrolabe.models.wan.vae import WanVAE
from astrolabe.plan.ledger import Ledger, Number
from astrolabe.rl.policies import Policies
from astrolabe.runtime.device import torch_dtype
from astrolabe.shapes.codec import Codec
from astrolabe.shapes.model import keep_linears_in
from astrolabe.shapes.settings import LATENT_SHAPE, WAN
from astrolabe.shapes.text import TextEncoder
from astrolabe.types import TextEmbeddings

WAN_VAE_WIDTH, WAN_WORDS = 96, 512
Build = Callable[[TrainConfig], WanGenerator]


class BlankText:
    """Embeddings of the right size."""

    def __init__(self, words: int, dim: int):
        self.shape = words, dim

    def check(self, texts: Sequence[str]) -> None:
        """Any text will do."""

    def encode(self, texts: Sequence[str]) -> TextEmbeddings:
        return torch.zeros(len(texts), *self.shape)


def hollow(cfg: TrainConfig) -> WanGenerator:
    """The generator of a configuration, without numbers: call it where tensors have none."""
    settings = cfg.model
    dtype = torch_dtype(settings.dtype, "cpu" if settings.dtype != "auto" else settings.place)
    if isinstance(settings, ReleasedSettings):
        model = released(settings.name)
        vae = AutoencoderKLWan(base_dim=WAN_VAE_WIDTH).requires_grad_(False)
        torch.nn.Module.to(vae, dtype)  # its own ``to`` warns of weights that no Wan has
        codec = WanVAE(vae, settings.vae_tile)
        made = empty_generator(model.wan, settings.stream, settings.latent_shape, WAN_WORDS, codec, dtype)
        if settings.adapter != "none" and (settings.adapter or model.lora):
            wear(made.transformer, model.lora_rank or cfg.lora.rank)
        return made
    words = TextEncoder().text_len
    made = empty_generator(WAN, settings.stream, LATENT_SHAPE, words, Codec().requires_grad_(False), torch.float32)
    keep_linears_in(made.transformer, dtype)
    made.dtype = dtype
    return made


def wear(transformer: CausalWan, rank: int) -> None:
    """Freeze an adapter of that rank onto a transformer on ``meta``, as ``open_model`` does with the model's own."""
    sizes = {name: size for name, size in linear_layers(transformer).items() if re.fullmatch(TARGETS, name)}
    pairs = {name: Pair(torch.empty(rank, wide), torch.empty(out, rank), 1.0) for name, (out, wide) in sizes.items()}
    freeze_onto(transformer, pairs, "the model's own adapter")


def empty_generator(
    wan: WanConfig, stream: Any, shape: tuple[int, int, int], words: int, codec: Any, dtype: torch.dtype
) -> WanGenerator:
    """A generator of any size around a decoder."""
    transformer = CausalWan(wan).to(dtype).requires_grad_(False)
    return WanGenerator(transformer, stream, shape, BlankText(words, wan.text_dim), codec, dtype)


def decoder_of(generator: WanGenerator) -> torch.nn.Module:
    """The decoder's network."""
    module = getattr(generator.codec, "vae", generator.codec)
    assert isinstance(module, torch.nn.Module)
    return module


def pretend(module: torch.nn.Module) -> None:
    """Let a module made on ``meta`` look as if it were on the CPU; it still has no numbers."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            shown = torch.empty_like(parameter, device="cpu")
            part.register_parameter(name, torch.nn.Parameter(shown, parameter.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            part.register_buffer(name, torch.empty_like(buffer, device="cpu"))


class Stage:
    """The generator of a configuration in its first ``blocks`` blocks, with the policies' adapters, and a ledger that
    knows them.

    Tensors claim to be on the CPU, where autograd runs without a device; ``device``: the type of device whose
    attention code is run.
    """

    def __init__(self, cfg: TrainConfig, build: Build, blocks: int, device: str):
        self.device, self.ledger, self.fake = device, Ledger(), FakeTensorMode(allow_non_fake_inputs=True)
        with torch.device("meta"):
            self.generator = build(cfg)
            transformer = self.generator.transformer
            self.whole = len(transformer.blocks)
            del transformer.blocks[blocks:]
            transformer.config = replace(transformer.config, num_layers=len(transformer.blocks))
            self.policies = Policies(transformer, cfg.lora, torch.Generator())
        with self.fake:
            for module in (transformer, decoder_of(self.generator)):
                pretend(module)
        if isinstance(self.generator.codec, WanVAE):
            with self.fake:
                self.generator.codec = WanVAE(self.generator.codec.vae, self.generator.codec.tile)
        self.held = self._count()

    def _count(self) -> dict[str, Number]:
        """Bytes that are always there, by owner."""
        transformer, decoder = self.generator.transformer, decoder_of(self.generator)
        slots = {id(t): slot for slot in self.policies.names for t in self.policies.tensors(slot).values()}
        held = dict.fromkeys(("weights", "its own adapter", "decoder", "adapters", "reference"), 0.0)
        tensors: list[tuple[str, Tensor]]
        tensors = [(slots.get(id(t), name), t) for name, t in transformer.named_parameters()]
        tensors += [("decoder", t) for t in (*decoder.parameters(), *decoder.buffers())]
        for name, tensor in tensors:
            own = "its own adapter" if f".{FROZEN}" in name else "weights"
            owner = {"learner": "adapters", "behavior": "adapters"}.get(name, name if name in held else own)
            before = self.ledger.live
            self.ledger.count(tensor)
            held[owner] += self.ledger.live - before
        return held

    @contextmanager
    def playing(self) -> Iterator[None]:
        """What happens within is counted."""
        with as_on(self.device), self.ledger:
            yield

    def blank(self, *shape: int) -> Tensor:
        """Zeros without numbers."""
        with self.fake:
            return torch.zeros(*shape)
