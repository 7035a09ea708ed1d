"""LoRA adapters in every layout, there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from astrolabe.models import adapter_files
from astrolabe.models.adapters import Adapter, Pair, from_slot, read_adapter
from astrolabe.models.layer_names import to_diffusers, to_original
from astrolabe.models.lora import LoraSlots, freeze_onto
from astrolabe.models.wan.config import WanConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.models.wan.transformer import CausalWan
from astrolabe.models.wan.weights import load_transformer, recognise
from astrolabe.runtime.errors import UserError
from astrolabe.types import per_frame
from tests.conftest import LATENT, tiny_stream

CONFIG = WanConfig(dim=256, ffn_dim=320, num_heads=2, num_layers=2, freq_dim=32, text_dim=8)


def network(seed: int = 0) -> CausalWan:
    torch.manual_seed(seed)
    wan = CausalWan(CONFIG)
    with torch.no_grad():
        for parameter in wan.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape) + (parameter == 1))
    return wan


def trained(rank: int = 4, alpha: float = 6.0) -> tuple[CausalWan, Adapter]:
    """A network with a slot that acts, and the slot as an adapter."""
    wan = network()
    slots = LoraSlots(wan, ("learner",), rank, alpha, torch.Generator().manual_seed(1))
    tensors = slots.tensors("learner")
    with torch.no_grad():
        for name, value in tensors.items():
            if "lora_B" in name:
                value.copy_(0.1 * torch.randn(value.shape))
    return wan, from_slot({name: value.detach().clone() for name, value in tensors.items()}, rank, alpha)


def velocity(wan: CausalWan) -> Tensor:
    model = WanGenerator(wan, tiny_stream(), LATENT)
    rng = torch.Generator().manual_seed(2)
    noisy, text = torch.randn(1, 3, *LATENT, generator=rng), torch.randn(1, 5, 8, generator=rng)
    with torch.no_grad():
        return model.velocity_block_causal(noisy, per_frame(0.8, noisy), model.condition(text))


def assert_same(one: Adapter, two: Adapter, atol: float = 0.0) -> None:
    assert set(one) == set(two)
    for layer in one:
        torch.testing.assert_close(one[layer].delta, two[layer].delta, rtol=0, atol=atol)


def test_a_slot_goes_to_a_peft_folder_and_back_in_float32(tmp_path: Path) -> None:
    _, adapter = trained()
    adapter_files.write_peft(adapter, tmp_path / "peft", "self-forcing")
    assert_same(read_adapter(tmp_path / "peft"), adapter)
    back = read_adapter(tmp_path / "peft")
    assert all(torch.equal(back[layer].a, adapter[layer].a) for layer in adapter)
    assert {pair.b.dtype for pair in back.values()} == {torch.float32}


def test_peft_itself_loads_the_folder_and_computes_the_same(tmp_path: Path) -> None:
    wan, adapter = trained()
    adapter_files.write_peft(adapter, tmp_path / "peft", "self-forcing")
    model = PeftModel.from_pretrained(network(), str(tmp_path / "peft"))
    torch.testing.assert_close(velocity(model.get_base_model()), velocity(wan), rtol=0, atol=1e-5)


def test_comfyui_and_diffusers_files_come_back(tmp_path: Path) -> None:
    _, adapter = trained()
    adapter_files.write_comfyui(adapter, tmp_path / "comfy.safetensors")
    assert_same(read_adapter(tmp_path / "comfy.safetensors"), adapter)
    assert "diffusion_model.blocks.0.self_attn.q.lora_A.weight" in load_file(tmp_path / "comfy.safetensors")
    adapter_files.write_diffusers(adapter, tmp_path / "diffusers.safetensors")
    assert_same(read_adapter(tmp_path / "diffusers.safetensors"), adapter, atol=1e-6)


def test_names_go_to_diffusers_and_back_and_exist_there() -> None:
    modules = network().named_modules()
    layers = [name for name, module in modules if isinstance(module, torch.nn.Linear) and "blocks" in name]
    assert [to_original(to_diffusers(layer)) for layer in layers] == layers
    assert [to_original(layer) for layer in layers] == layers
    theirs = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=128, text_dim=8, freq_dim=32, ffn_dim=320,
        num_layers=2,
    )  # fmt: skip
    known = {name for name, _ in theirs.named_modules()}
    assert {to_diffusers(layer) for layer in layers} <= known


@pytest.mark.parametrize("container", ["generator_lora", None])
def test_longlives_adapter_is_read(container: str | None, tmp_path: Path) -> None:
    _, adapter = trained(alpha=4.0)  # rank = alpha, as there
    tensors: dict[str, Tensor] = {}
    for layer, pair in adapter.items():
        name = f"base_model.model.model.{layer}"
        tensors |= {f"{name}.lora_A.weight": pair.a, f"{name}.lora_B.weight": pair.b}
    torch.save({container: tensors} if container else tensors, tmp_path / "lora.pt")
    assert_same(read_adapter(tmp_path / "lora.pt"), adapter)


LAYOUTS: dict[str, Any] = {
    "ema.pt": lambda w: {"generator_ema": {f"model.{name}": value for name, value in w.items()}},
    "bare.pt": lambda w: w,
    "fsdp.pt": lambda w: {"generator": {f"model._fsdp_wrapped_module.{name}": value for name, value in w.items()}},
    "flat.safetensors": lambda w: w,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_merged_checkpoint_keeps_the_layout_and_computes_what_the_adapter_does(name: str, tmp_path: Path) -> None:
    wan, adapter = trained()
    content = LAYOUTS[name](network().state_dict())
    source, merged = tmp_path / name, tmp_path / f"merged-{name}"
    if name.endswith(".pt"):
        torch.save(content, source)
    else:
        save_file(content, source)
    adapter_files.write_merged(recognise(source), adapter, merged)
    before, after = recognise(source), recognise(merged)
    assert (after.container, after.names, after.file.format) == (before.container, before.names, before.file.format)
    assert {k: e.dtype for k, e in after.entries.items()} == {k: e.dtype for k, e in before.entries.items()}
    torch.testing.assert_close(velocity(load_transformer(merged)), velocity(wan), rtol=0, atol=1e-5)


def test_a_frozen_adapter_belongs_to_the_base_under_every_slot() -> None:
    wan, adapter = trained()
    with_it = velocity(wan)
    base = network()
    freeze_onto(base, adapter, "lora.pt")
    torch.testing.assert_close(velocity(base), with_it, rtol=0, atol=1e-5)
    slots = LoraSlots(base, ("learner", "behavior"), 2, 2.0, torch.Generator().manual_seed(3))
    assert set(slots.tensors("learner")) == set(LoraSlots(network(), ("x",), 2, 2.0, torch.Generator()).tensors("x"))
    with torch.no_grad():
        for name, value in slots.tensors("learner").items():
            value.copy_(0.1 * torch.randn(value.shape) if "lora_B" in name else value)
    learner = velocity(base)
    assert not torch.allclose(learner, with_it, atol=1e-3)
    for slot in (None, "behavior"):
        with slots.using(slot):
            torch.testing.assert_close(velocity(base), with_it, rtol=0, atol=1e-5)
    trainable = {name for name, parameter in base.named_parameters() if parameter.requires_grad}
    assert trainable and all("learner" in name for name in trainable)


def test_two_frozen_adapters_of_different_layers_and_ranks_add_up() -> None:
    _, adapter = trained()
    some = {layer: pair for layer, pair in adapter.items() if "ffn" in layer}
    rest = {layer: pair for layer, pair in adapter.items() if "ffn" not in layer}
    name = next(iter(rest))
    rest[name] = Pair(torch.cat([rest[name].a] * 2), torch.cat([rest[name].b] * 2, 1), rest[name].scale / 2)
    one, two = network(), network()
    freeze_onto(one, adapter, "all")
    freeze_onto(two, some, "some")
    freeze_onto(two, rest, "rest")
    torch.testing.assert_close(velocity(two), velocity(one), rtol=0, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in two.parameters())
    with pytest.raises(UserError, match=r"wide\.pt does not fit the model: 1 layers of another size"):
        freeze_onto(network(), {name: Pair(torch.zeros(4, 99), torch.zeros(256, 4), 1.0)}, "wide.pt")


def test_an_adapter_for_another_size_is_refused(tmp_path: Path) -> None:
    _, adapter = trained()
    torch.save(network().state_dict(), tmp_path / "model.pt")
    wrong = dict(adapter) | {"blocks.0.self_attn.q": Pair(torch.zeros(4, 99), torch.zeros(256, 4), 1.0)}
    with pytest.raises(UserError, match=r"blocks.0.self_attn.q \[256, 99\] instead of \[256, 256\]"):
        adapter_files.write_merged(recognise(tmp_path / "model.pt"), wrong, tmp_path / "out.pt")
    wrong = dict(adapter) | {"blocks.9.self_attn.q": adapter["blocks.0.self_attn.q"]}
    with pytest.raises(UserError, match=r"of another model: blocks\.9\.self_attn\.q"):
        adapter_files.write_merged(recognise(tmp_path / "model.pt"), wrong, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_a_peft_folder_that_is_not_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a PEFT folder"):
        read_adapter(tmp_path)
    for text, complaint in (("{", "not JSON"), ("{}", "not the configuration of a LoRA")):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(UserError, match=complaint):
            read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "use_dora": True}))
    with pytest.raises(UserError, match="dora"):
        read_adapter(tmp_path)
