"""Adapters that other programs wrote: under every name, at the strength they state, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from astrolabe.models import adapter_files, layer_names
from astrolabe.models.adapter_scale import read_strength
from astrolabe.models.adapters import Adapter, Pair, read_adapter
from astrolabe.models.layer_names import to_diffusers, to_original
from astrolabe.models.lora import freeze_onto, linear_layers
from astrolabe.models.wan.weights import load_transformer, recognise
from astrolabe.runtime.errors import UserError
from tests.models.test_adapters import LAYOUTS, assert_same, network, trained, velocity

NAMES: dict[str, Any] = {
    "ComfyUI": ("diffusion_model.{}", "lora_A.weight", "lora_B.weight"),
    "PEFT": ("base_model.model.{}", "lora_A.default.weight", "lora_B.default.weight"),
    "diffusers": ("transformer.{diffusers}", "lora_A.weight", "lora_B.weight"),
    "old diffusers": ("transformer.{diffusers}", "lora.down.weight", "lora.up.weight"),
    "musubi-tuner": ("lora_unet_{underscored}", "lora_down.weight", "lora_up.weight"),
    "two underscores": ("lora_unet__{underscored}", "lora_down.weight", "lora_up.weight"),
    "LyCORIS": ("lycoris_{underscored}", "lora_down.weight", "lora_up.weight"),
    "underscored diffusers": ("lora_transformer_{underscored_diffusers}", "lora_down.weight", "lora_up.weight"),
    "under DDP": ("module.{}", "lora_A", "lora_B"),
}


def named(adapter: Adapter, how: str, alpha: bool = True) -> dict[str, Tensor]:
    """The tensors of an adapter as another program calls them; ``alpha`` beside each layer."""
    stem, down, up = NAMES[how]
    tensors: dict[str, Tensor] = {}
    for layer, pair in adapter.items():
        theirs = to_diffusers(layer)
        name = stem.format(
            layer, diffusers=theirs, underscored=layer.replace(".", "_"), underscored_diffusers=theirs.replace(".", "_")
        )
        tensors |= {f"{name}.{down}": pair.a, f"{name}.{up}": pair.b}
        tensors |= {f"{name}.alpha": torch.tensor(pair.scale * pair.a.shape[0])} if alpha else {}
    return tensors


@pytest.mark.parametrize("how", NAMES)
def test_an_adapter_is_the_same_under_the_names_of_every_program(how: str, tmp_path: Path) -> None:
    _, adapter = trained()
    save_file(named(adapter, how), tmp_path / "lora.safetensors")
    assert_same(read_adapter(tmp_path / "lora.safetensors"), adapter)


def test_every_spelling_of_every_layer_is_one_layer() -> None:
    layers = [f"blocks.17.{name}" for name in layer_names.INSIDE] + list(layer_names.AROUND)
    for layer in layers:
        assert layer_names.is_layer(layer) and not layer_names.is_layer(f"x.{layer}")
        for spelling in (layer, to_diffusers(layer)):
            assert to_original(spelling) == to_original(spelling.replace(".", "_")) == layer
    for other in ("blocks.0.norm3", "blocks.0.ffn.1", "patch_embedding", "blocks_0_self_attn_q", "blocks.0.attn1.to_q"):
        assert not layer_names.is_layer(other)


HEADERS: dict[str, dict[str, Any]] = {
    "diffusers": {"lora_adapter_metadata": {"transformer.r": 4, "transformer.lora_alpha": 6.0}},
    "diffusers without a component": {"lora_adapter_metadata": {"r": 4, "lora_alpha": 6, "use_dora": False}},
    "diffusers with a text encoder": {
        "lora_adapter_metadata": {"transformer.lora_alpha": 6.0, "text_encoder.lora_alpha": 1.0, "text_encoder.r": 9}
    },
    "kohya": {"ss_network_dim": "4", "ss_network_alpha": "6.0", "ss_network_args": {"conv_alpha": "1"}},
    "kohya's tags": {"ss_network_alpha": "6", "ss_tag_frequency": {"cats": {"alpha": 3}}, "ss_lr_alpha": "7"},
    "plain PEFT": {"lora_alpha": "6.0", "r": "4"},
    "lightx2v": {"alpha": "6", "rank": "4"},
    "network_alpha": {"network_alpha": "6"},
    "JSON within": {"lora_config": {"lora_alpha": 6.0, "target_modules": ["q"], "alpha_pattern": {}}},
    "our own": {"astrolabe": {"alpha": "6.0", "rank": "4", "base": "f"}},
}


def header(fields: dict[str, Any]) -> dict[str, str]:
    """As safetensors keeps it: text by text."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}


@pytest.mark.parametrize("who", HEADERS)
def test_the_alpha_of_a_header_counts_in_every_spelling(who: str, tmp_path: Path) -> None:
    _, adapter = trained(rank=4, alpha=6.0)
    save_file(named(adapter, "diffusers", alpha=False), tmp_path / "lora.safetensors", header(HEADERS[who]))
    assert {pair.scale for pair in read_adapter(tmp_path / "lora.safetensors").values()} == {1.5}


def test_without_a_word_of_alpha_it_is_the_rank_and_beside_a_layer_it_counts_more_than_a_header(tmp_path: Path) -> None:
    _, adapter = trained(rank=4, alpha=6.0)
    path = tmp_path / "lora.safetensors"
    save_file(named(adapter, "ComfyUI", alpha=False), path, {"format": "pt", "software": "x", "author": "alphabet"})
    assert {pair.scale for pair in read_adapter(path).values()} == {1.0}
    save_file(named(adapter, "ComfyUI"), path, {"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"})
    assert {pair.scale for pair in read_adapter(path).values()} == {1.5}


@pytest.mark.parametrize(
    "fields, complaint",
    [
        ({"lora_alpha": "much"}, "says lora_alpha=much, which is not understood"),
        ({"ss_network_alpha": "Dynamic"}, "ss_network_alpha=Dynamic"),
        ({"my_alpha": "6"}, "my_alpha=6"),
        ({"loraAlpha": "6"}, "loraAlpha=6"),
        ({"LoRA alpha": "6"}, "LoRA alpha=6"),
        ({"lora_scaling": "0.5"}, "lora_scaling=0.5"),
        ({"lora_alpha": ""}, "lora_alpha=, which is not understood"),
        ({"lora_alpha": {"value": 6}}, "lora_alpha="),
        ({"lora_alpha": "0"}, "has alpha 0; expected a number above zero"),
        ({"lora_adapter_metadata": "{broken"}, "lora_adapter_metadata={broken"),
        ({"lora_adapter_metadata": "[4]"}, "lora_adapter_metadata="),
        ({"alpha": "6", "lora_alpha": "8"}, "says alpha 6 and 8"),
        ({"lora_adapter_metadata": "{broken lora_alpha"}, "lora_adapter_metadata"),
        ({"lora_alpha": "6", "r": "8"}, "says rank 8, but .* has 4"),
        ({"lora_adapter_metadata": {"transformer.r": 4}}, "has no number as lora_alpha"),
        ({"lora_alpha": "nan"}, "lora_alpha=nan"),
        ({"lora_adapter_metadata": {"transformer.lora_alpha": 6, "transformer.use_rslora": True}}, "use_rslora=True"),
        ({"lora_alpha": "6", "use_dora": "true"}, "use_dora=true"),
        ({"lora_alpha": "6", "ss_network_args": {"rs_lora": "True"}}, "rs_lora=True"),
        ({"lora_alpha": "6", "init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4"),
        ({"lora_alpha": "6", "alpha_pattern": {"attn7": 3}}, "alpha_pattern or rank_pattern names attn7"),
        ({"lora_alpha": "6", "alpha_pattern": {"attn1": "x"}}, "alpha_pattern="),
    ],
)
def test_a_strength_that_is_not_understood_is_refused(fields: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    _, adapter = trained(rank=4, alpha=6.0)
    save_file(named(adapter, "diffusers", alpha=False), tmp_path / "lora.safetensors", header(fields))
    with pytest.raises(UserError, match=complaint) as caught:
        read_adapter(tmp_path / "lora.safetensors")
    assert "\n" not in str(caught.value)


@given(
    key=st.sampled_from(["lora_alpha", "network_alpha", "ss_network_alpha", "alpha"]),
    alpha=st.floats(0.01, 1000),
    above=st.sampled_from(["", "transformer.", "a.b."]),
    boxes=st.lists(st.sampled_from(["lora_adapter_metadata", "config", "x.y"]), max_size=2),
)
def test_alpha_is_found_however_deep_it_is_packed(key: str, alpha: float, above: str, boxes: list[str]) -> None:
    said: dict[str, Any] = {above + key: alpha}
    for box in boxes:
        said = {box: json.dumps(said)}
    assert read_strength(said, "x").of(("blocks.0.ffn.0",), 4) == pytest.approx(alpha)


def test_patterns_give_layers_their_own_alpha_and_rank_as_peft_reads_them(tmp_path: Path) -> None:
    base = network()
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q", "ffn.0"], rank_pattern={"ffn.0": 2},
        alpha_pattern={"blocks.0.ffn.0": 7.0, "self_attn.q": 5.0}, init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(5)
    model = get_peft_model(base, config)
    model.save_pretrained(str(tmp_path / "peft"))
    theirs = {
        name.removeprefix("base_model.model."): module.scaling["default"]
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    found = read_adapter(tmp_path / "peft")
    assert {layer: pair.scale for layer, pair in found.items()} == theirs
    assert len(set(theirs.values())) == 4  # the rule, either pattern, and the rank of ffn.0 alone
    other = network()
    freeze_onto(other, found, "peft")
    torch.testing.assert_close(velocity(other), velocity(model.get_base_model()), rtol=0, atol=1e-5)


def test_a_peft_folder_may_be_a_zip_be_named_by_its_file_and_must_say_its_alpha(tmp_path: Path) -> None:
    _, adapter = trained()
    adapter_files.write_peft(adapter, tmp_path, "x")
    assert_same(read_adapter(tmp_path / "adapter_model.safetensors"), adapter)
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    assert_same(read_adapter(tmp_path), adapter)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for changed in (config | {"lora_alpha": None}, {k: v for k, v in config.items() if k != "lora_alpha"}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"adapter_config\.json: has no number as lora_alpha"):
            read_adapter(tmp_path)


def test_a_folder_that_diffusers_saved_is_read(tmp_path: Path) -> None:
    _, adapter = trained()
    fields = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 6, "transformer.r": 4})}
    save_file(named(adapter, "diffusers", alpha=False), tmp_path / "pytorch_lora_weights.safetensors", fields)
    assert_same(read_adapter(tmp_path), adapter)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16])
def test_eight_bits_become_float32_and_other_precisions_stay(dtype: torch.dtype, tmp_path: Path) -> None:
    _, adapter = trained()
    rounded = {layer: Pair(pair.a.to(dtype), pair.b.to(dtype), pair.scale) for layer, pair in adapter.items()}
    save_file(named(rounded, "ComfyUI"), tmp_path / "lora.safetensors")
    found = read_adapter(tmp_path / "lora.safetensors")
    assert {pair.a.dtype for pair in found.values()} == {torch.float32 if dtype.itemsize == 1 else dtype}
    assert_same(found, {layer: Pair(p.a.float(), p.b.float(), p.scale) for layer, p in rounded.items()})
    base = network()
    freeze_onto(base, found, "lora")
    assert torch.isfinite(velocity(base)).all()


def test_layers_around_the_blocks_act_as_they_do_when_merged(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(4)
    sizes = {layer: linear_layers(network())[layer] for layer in layer_names.AROUND if "img" not in layer}
    adapter = {
        layer: Pair(0.2 * torch.randn(3, columns, generator=rng), torch.randn(rows, 3, generator=rng), 0.5)
        for layer, (rows, columns) in sizes.items()
    }
    for how in ("ComfyUI", "diffusers", "musubi-tuner"):
        save_file(named(adapter, how), tmp_path / "lora.safetensors")
        assert_same(read_adapter(tmp_path / "lora.safetensors"), adapter)
    base, merged = network(), network()
    freeze_onto(base, adapter, "lora")
    with torch.no_grad():
        for layer, pair in adapter.items():
            merged.get_submodule(layer).weight += pair.delta  # type: ignore[operator]
    assert not torch.allclose(velocity(base), velocity(network()), atol=1e-3)
    torch.testing.assert_close(velocity(base), velocity(merged), rtol=0, atol=1e-4)


PAIR = {f"blocks.0.ffn.0.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}


@pytest.mark.parametrize(
    "tensors, complaint",
    [
        ({"blocks.0.q.lora_A.weight": torch.zeros(2, 3)}, "A or B is missing"),
        ({f"blocks.0.q.lora_{side}.weight": torch.zeros(2, 3) for side in "AB"}, "ranks differ"),
        ({}, "no adapter; it has no tensors"),
        ({"blocks.0.q.lora_A.weight": torch.zeros(0, 3), "blocks.0.q.lora_B.weight": torch.zeros(2, 0)}, "are empty"),
        (PAIR | {"blocks.0.ffn.0.alpha": torch.tensor(-1.0)}, "has alpha -1; expected a number above zero"),
        ({"blocks.0.q.weight": torch.zeros(2, 3)}, "are no LoRA weights: blocks.0.q.weight"),
        (PAIR | {"blocks.0.norm3.diff": torch.ones(2)}, r"blocks\.0\.norm3\.diff; whole changes of weights"),
        (PAIR | {"blocks.0.ffn.0.diff_b": torch.ones(2)}, "whole changes of weights and biases"),
        (PAIR | {"blocks.0.ffn.0.lora_magnitude_vector.weight": torch.ones(2)}, "DoRA is not supported"),
        (PAIR | {"blocks.0.ffn.0.dora_scale": torch.ones(2)}, "DoRA is not supported"),
        (PAIR | {"blocks.0.ffn.0.lora_B.bias": torch.ones(2)}, "biases of LoRA layers"),
        ({"blocks.0.ffn.0.hada_w1_a": torch.ones(2, 2)}, "LoHa, LoKr"),
        (PAIR | {"lora_te_text_model_x.weight": torch.ones(2)}, "text encoder"),
        (PAIR | {"patch_embedding.weight": torch.ones(2)}, r"no LoRA weights: patch_embedding\.weight"),
        ({"patch_embedding.weight": torch.ones(2)}, "a whole model and no adapter; name it with --model.weights"),
        ({name: value[..., None, None] for name, value in PAIR.items()}, r"A \[2, 2, 1, 1\] .* of a convolution"),
        ({name: value * float("nan") for name, value in PAIR.items()}, "1 layers have numbers that are not finite"),
        (PAIR | {"blocks.0.ffn.0.alpha": torch.tensor(float("inf"))}, "not finite: blocks.0.ffn.0"),
        (PAIR | {"blocks.0.ffn.0.alpha": torch.ones(2)}, r"alpha has shape \[2\]; expected one number"),
        (PAIR | {name.replace("ffn.0", "ffn.net.0.proj"): v for name, v in PAIR.items()}, "two tensors A; one adapter"),
        ({name: value.to(torch.int8) for name, value in PAIR.items()}, "kept in torch.int8"),
    ],
)
def test_what_is_no_adapter_is_refused(tensors: dict[str, Tensor], complaint: str, tmp_path: Path) -> None:
    save_file({name: value.clone() for name, value in tensors.items()}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match=complaint) as caught:
        read_adapter(tmp_path / "lora.safetensors")
    assert "\n" not in str(caught.value)


def test_alphas_of_a_zip_may_be_plain_numbers(tmp_path: Path) -> None:
    _, adapter = trained(rank=4, alpha=6.0)
    tensors: dict[str, Any] = named(adapter, "ComfyUI")
    tensors = {name: value.item() if name.endswith(".alpha") else value for name, value in tensors.items()}
    for content in (tensors, {"generator_lora": tensors, "step": 3}, {"state_dict": tensors}):
        torch.save(content, tmp_path / "lora.pt")
        assert_same(read_adapter(tmp_path / "lora.pt"), adapter)
    plain = named(adapter, "ComfyUI", alpha=False)
    for said in ({"lora_alpha": 6}, {"config": {"lora_alpha": 6.0, "r": 4}}):
        torch.save({"state_dict": plain, **said}, tmp_path / "lora.pt")
        assert_same(read_adapter(tmp_path / "lora.pt"), adapter)


@pytest.mark.parametrize(
    "source, name", [("bare.pt", "x.safetensors"), ("flat.safetensors", "x.pt"), ("ema.pt", "x.bin")]
)
def test_a_merged_checkpoint_is_what_its_name_says(source: str, name: str, tmp_path: Path) -> None:
    wan, adapter = trained()
    content = LAYOUTS[source](network().state_dict())
    write: Any = save_file if source.endswith("safetensors") else torch.save
    write(content, tmp_path / source)
    adapter_files.write_merged(recognise(tmp_path / source), adapter, tmp_path / name)
    assert recognise(tmp_path / name).file.format == ("safetensors" if "safetensors" in name else "torch zip")
    torch.testing.assert_close(velocity(load_transformer(tmp_path / name)), velocity(wan), rtol=0, atol=1e-5)
    for other in ("x.gguf", "x"):
        with pytest.raises(UserError, match=r"its name should end in \.safetensors or \.pt"):
            adapter_files.write_merged(recognise(tmp_path / source), adapter, tmp_path / other)


def test_adapters_are_written_in_the_precision_asked_for_under_a_name_that_fits(tmp_path: Path) -> None:
    _, adapter = trained()
    for write in (adapter_files.write_comfyui, adapter_files.write_diffusers):
        write(adapter, tmp_path / f"{write.__name__}.safetensors", torch.bfloat16)
        tensors = load_file(tmp_path / f"{write.__name__}.safetensors")
        assert {value.dtype for name, value in tensors.items() if "lora" in name} == {torch.bfloat16}
        with pytest.raises(UserError, match=r"x\.pt: its name should end in \.safetensors"):
            write(adapter, tmp_path / "x.pt")
    adapter_files.write_peft(adapter, tmp_path / "peft", "x", torch.bfloat16)
    assert {pair.a.dtype for pair in read_adapter(tmp_path / "peft").values()} == {torch.bfloat16}
    with pytest.raises(UserError, match="peft is a folder"):
        adapter_files.write_peft(adapter, tmp_path / "peft.safetensors", "x")


def test_only_layers_that_the_target_has_are_written() -> None:
    pair = Pair(torch.zeros(1, 2), torch.zeros(2, 1), 1.0)
    adapter_files.check_layers({"blocks.39.cross_attn.k_img": pair, "head.head": pair}, "x")
    with pytest.raises(UserError, match=r"2 layers are no linear layers of a Wan: lora_unet_x, blocks\.0\.norm3"):
        adapter_files.check_layers({"lora_unet_x": pair, "blocks.0.norm3": pair, "blocks.1.ffn.0": pair}, "x")


def test_no_checkpoint_is_written_whose_numbers_are_not_finite(tmp_path: Path) -> None:
    _, adapter = trained()
    torch.save(network().state_dict(), tmp_path / "x.pt")
    huge = {layer: Pair(pair.a * 1e30, torch.ones_like(pair.b) * 1e30, 1.0) for layer, pair in adapter.items()}
    with pytest.raises(UserError, match="would no longer be finite in float32"):
        adapter_files.write_merged(recognise(tmp_path / "x.pt"), huge, tmp_path / "merged.pt")
    assert not (tmp_path / "merged.pt").exists()
