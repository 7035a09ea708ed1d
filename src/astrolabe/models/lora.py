"""LoRA slots: several adapters on one frozen base, kept in float32 and computed in what the base computes in.

A base may have a frozen adapter of its own already (``freeze_onto``): it belongs to the base and acts always.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from astrolabe.models.adapters import Adapter, fits
from astrolabe.models.wan.config import WanConfig
from astrolabe.runtime.errors import UserError

# Every linear layer of every block (method: policies); embeddings and head stay as they are.
TARGETS = r"blocks\.\d+\.(self_attn|cross_attn)\.(q|k|v|o)|blocks\.\d+\.ffn\.(0|2)"
FROZEN = "frozen"  # what the names of adapters that belong to the base begin with


class AdaptedLinear(PeftLinear):
    """peft's layer, names and all, with a forward of our own: ``base(x) + sum of scale x A' B'`` over the adapters that
    act.

    Products are taken in the dtype of the base, as a GPU's tensor cores do, with sums in float32 inside them; A and B
    stay in float32, and so do their gradients. Learner, behavior and sampler compute alike.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Of ``x`` [..., in]: [..., out]."""
        kind, base = x.device.type, self.get_base_layer()
        x = x.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else base.weight.dtype)
        out = base(x)
        for name in () if self.disable_adapters else self.active_adapters:
            a, b = (matrices[name].weight.to(x.dtype) for matrices in (self.lora_A, self.lora_B))
            low = functional.linear(x.flatten(0, -2), a)
            out.view(-1, out.shape[-1]).addmm_(low, b.t(), alpha=self.scaling[name])  # a view: a copy would be lost
        return out


def adapt(base: nn.Module, config: LoraConfig, name: str) -> None:
    """Give the layers of ``base`` that ``config`` names an adapter ``name``."""
    with quiet():
        inject_adapter_in_model(config, base, name)
    for layer in lora_layers(base).values():
        layer.__class__ = AdaptedLinear


def lora_parameters(config: WanConfig, rank: int) -> int:
    """Numbers of one slot: eight square layers and two of the MLP in every block."""
    square, wide = 2 * config.dim, config.dim + config.ffn_dim
    return config.num_layers * rank * (8 * square + 2 * wide)


def freeze_onto(base: nn.Module, adapter: Adapter, source: str) -> None:
    """Make ``adapter`` part of ``base`` for good: it always acts, beside whichever slot does, and is never trained.

    It is not merged into the weights: small changes of a bfloat16 weight would be rounded away. Raises UserError when
    it does not fit; ``source`` names it there.
    """
    fits(adapter, linear_layers(base), source)
    taken = {name for layer in lora_layers(base).values() for name in layer.lora_A}
    own = f"{FROZEN}{len(taken)}"
    ranks = {layer: pair.a.shape[0] for layer, pair in adapter.items()}
    alphas = {layer: pair.scale * pair.a.shape[0] for layer, pair in adapter.items()}
    config = LoraConfig(target_modules=list(adapter), rank_pattern=ranks, alpha_pattern=alphas)
    adapt(base, config, own)
    with torch.no_grad():
        for name, layer in lora_layers(base).items():
            if name in adapter:
                layer.lora_A[own].to(adapter[name].a.dtype).weight.copy_(adapter[name].a)
                layer.lora_B[own].to(adapter[name].b.dtype).weight.copy_(adapter[name].b)
            layer.set_adapter([known for known in layer.lora_A if known.startswith(FROZEN)])
    base.requires_grad_(False)


def linear_layers(base: nn.Module) -> dict[str, tuple[int, ...]]:
    """(out, in) of every linear layer of the base, by name."""
    return {
        name.removesuffix(".base_layer"): (module.out_features, module.in_features)
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Without peft's warning about a second adapter on a model: several are the point here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        yield


def lora_layers(base: nn.Module) -> dict[str, LoraLayer]:
    """The layers that have adapters, by name."""
    return {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}


class LoraSlots:
    """Adapters ``names`` on ``base``; at first all equal, and equal to no adapter at all (B = 0).

    Exactly one adapter acts at a time, or none; outside of ``using`` it is the first. Only the first is trainable.
    """

    def __init__(self, base: nn.Module, names: Sequence[str], rank: int, alpha: float, generator: torch.Generator):
        self.names = tuple(names)
        base.requires_grad_(False)
        for name in names:
            adapt(base, LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS), name)
        self.layers = {key: layer for key, layer in lora_layers(base).items() if self.names[0] in layer.lora_A}
        with torch.no_grad():
            for layer in self.layers.values():
                start = torch.empty(layer.lora_A[names[0]].weight.shape)  # drawn on the CPU: the same start everywhere
                nn.init.kaiming_uniform_(start, a=5**0.5, generator=generator)
                for name in names:
                    layer.lora_A[name].weight.copy_(start)
                    layer.lora_B[name].weight.zero_()
                    for matrix in (layer.lora_A[name], layer.lora_B[name]):
                        matrix.float()
        self._activate(self.names[0])

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Within the scope ``name`` acts (None: the bare base); afterwards the one that acted before."""
        before = self.active
        self._activate(name)
        try:
            yield
        finally:
            self._activate(before)

    def _activate(self, name: str | None) -> None:
        for layer in self.layers.values():
            acting = [adapter for adapter in layer.lora_A if adapter == name or adapter.startswith(FROZEN)]
            layer.enable_adapters(bool(acting))
            if acting:
                layer.set_adapter(acting)
            # peft makes whatever is active trainable; here only the first slot ever is
            for adapter in layer.lora_A:
                for matrix in (layer.lora_A[adapter], layer.lora_B[adapter]):
                    matrix.requires_grad_(adapter == self.names[0])
        self.active = name

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The adapter's live tensors, keyed ``blocks.0.ffn.0.lora_A.weight`` and so on."""
        return {
            f"{key}.lora_{side}.weight": getattr(layer, f"lora_{side}")[name].weight
            for key, layer in self.layers.items()
            for side in ("A", "B")
        }

    def copy(self, name: str) -> dict[str, Tensor]:
        """The adapter's tensors as they are now, in the host's memory."""
        return {key: value.detach().to("cpu", copy=True) for key, value in self.tensors(name).items()}

    @torch.no_grad()
    def load(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Copy an adapter in; UserError names what is missing, unknown or of another size."""
        own = self.tensors(name)
        wrong = [f"{key} is missing" for key in own if key not in tensors]
        wrong += [f"{key} is unknown" for key in tensors if key not in own]
        wrong += [
            f"{key} has shape {list(tensors[key].shape)}, expected {list(own[key].shape)}"
            for key in own
            if key in tensors and tensors[key].shape != own[key].shape
        ]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise UserError(f"this adapter belongs to another model or rank: {'; '.join(wrong[:3])}{more}")
        for key, value in own.items():
            value.copy_(tensors[key])

    def move(self, name: str, device: torch.device | str) -> None:
        """Keep an adapter's weights on ``device``: elsewhere than the base, while it does not act."""
        for layer in self.layers.values():
            for matrix in (layer.lora_A[name], layer.lora_B[name]):
                matrix.to(device)

    @torch.no_grad()
    def blend(self, source: str, into: str, keep: float) -> None:
        """``into <- keep into + (1 - keep) source``."""
        targets, sources = self.tensors(into), self.tensors(source)
        torch._foreach_lerp_(list(targets.values()), list(sources.values()), 1 - keep)
