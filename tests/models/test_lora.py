"""What a layer with adapters computes, and in what."""

from __future__ import annotations

import copy

import pytest
import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn

from astrolabe.models.lora import FROZEN, AdaptedLinear, LoraSlots, lora_layers
from astrolabe.plan.ledger import Ledger


class Net(nn.Module):
    """A layer by a name that is given an adapter."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Module()
        block.ffn = nn.Sequential(nn.Linear(64, 96))
        self.blocks = nn.ModuleList([block])


def adapted(dtype: torch.dtype, slots: tuple[str, ...] = ("learner", "behavior")) -> AdaptedLinear:
    """A base in ``dtype`` with slots whose B is not zero; the first acts."""
    torch.manual_seed(0)
    net = Net().to(dtype)
    made = LoraSlots(net, slots, rank=8, alpha=12.0, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name in slots:
            for key, value in made.tensors(name).items():
                if "lora_B" in key:
                    value.copy_(0.05 * torch.randn(value.shape))
    (layer,) = lora_layers(net).values()
    assert isinstance(layer, AdaptedLinear)
    return layer


def given(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(2)).to(dtype)


def formula(layer: AdaptedLinear, x: Tensor, *names: str) -> Tensor:
    """In float64."""
    base = layer.get_base_layer()
    out = x.double() @ base.weight.double().t() + base.bias.double()
    for name in names:
        a, b = layer.lora_A[name].weight.double(), layer.lora_B[name].weight.double()
        out = out + layer.scaling[name] * (x.double() @ a.t() @ b.t())
    return out


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_it_is_the_base_and_the_scaled_product(dtype: torch.dtype, rtol: float) -> None:
    layer = adapted(dtype)
    torch.testing.assert_close(layer(given(dtype)).double(), formula(layer, given(), "learner"), rtol=rtol, atol=rtol)


def test_in_float32_it_is_what_peft_computes() -> None:
    layer = adapted(torch.float32)
    theirs = copy.deepcopy(layer)
    theirs.__class__ = PeftLinear
    torch.testing.assert_close(layer(given()), theirs(given()), rtol=1e-5, atol=1e-5)
    layer.enable_adapters(False)
    assert torch.equal(layer(given()), layer.get_base_layer()(given()))


def test_adapters_that_belong_to_the_base_add_to_the_one_that_acts() -> None:
    own = FROZEN + "0"
    layer = adapted(torch.float32, ("learner", own))
    layer.set_adapter([own, "learner"])
    torch.testing.assert_close(layer(given()).double(), formula(layer, given(), own, "learner"), rtol=1e-5, atol=1e-5)


def relative(one: Tensor, other: Tensor) -> float:
    return ((one.double() - other).norm() / other.norm()).item()


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_it_rounds_little_more_than_the_base_does(autocast: bool) -> None:
    layer = adapted(torch.float32 if autocast else torch.bfloat16)
    x = given() if autocast else given(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    assert relative(out, formula(layer, x, "learner")) < 5e-3  # a number of bfloat16 is off by up to 4e-3


def test_gradients_reach_the_masters_in_float32() -> None:
    layer, exact = adapted(torch.bfloat16), adapted(torch.float64)
    exact.get_base_layer().load_state_dict(layer.get_base_layer().state_dict())
    for one, dtype in ((layer, torch.bfloat16), (exact, torch.float64)):
        one(given(torch.bfloat16).to(dtype)).double().square().sum().backward()
    for side in ("lora_A", "lora_B"):
        ours, theirs = (getattr(one, side)["learner"].weight for one in (layer, exact))
        assert ours.dtype == torch.float32 and ours.grad is not None and theirs.grad is not None
        assert relative(ours.grad, theirs.grad.double()) < 1e-2
    assert layer.lora_A["behavior"].weight.grad is None


def test_a_bfloat16_base_multiplies_nothing_in_float32() -> None:
    layer, x = adapted(torch.bfloat16), given(torch.bfloat16).requires_grad_()
    with Ledger() as ledger:
        layer(x).sum().backward()
    assert ledger.work.tensor > 0 and ledger.work.exact == 0
