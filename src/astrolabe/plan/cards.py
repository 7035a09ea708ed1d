"""How fast a device is, by the kind of work, and how much memory it has."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from astrolabe.experiment import TrainConfig
from astrolabe.plan.ledger import Number, Work
from astrolabe.rewards.settings import MODELS
from astrolabe.runtime.device import memory, torch_dtype
from astrolabe.runtime.errors import UserError, nearest

LAUNCH = 6e-6  # seconds that Python takes to ask a GPU for a kernel: work cannot go faster than it is asked for
BUS = 2e10  # bytes a second between the host's memory and a GPU: PCIe 4, what a locked page reaches


@dataclass(frozen=True)
class Rates:
    """Operations a second in bfloat16 and in float32, and bytes a second. ``launch``: seconds of a kernel that is
    asked for while others run (0: nothing is, asking is part of the work)."""

    tensor: Number
    exact: Number
    traffic: Number
    launch: Number = 0.0

    def parts(self, work: Work) -> dict[str, Number]:
        """Seconds of a work by what it waits for; the work itself takes their sum."""
        return {
            "products in bfloat16": work.tensor / self.tensor,
            "products in float32": work.exact / self.exact,
            "memory traffic": work.traffic / self.traffic,
        }

    def seconds(self, work: Work) -> Number:
        """Seconds: the kinds one after another, or if that takes longer the asking for kernels."""
        return max(sum(self.parts(work).values()), work.calls * self.launch)

    def slowest(self, work: Work) -> str:
        """What a work waits for most."""
        parts = self.parts(work)
        if work.calls * self.launch > sum(parts.values()):
            return "starting kernels"
        return max(parts, key=lambda name: parts[name])


# Shares of what a maker promises that such networks reach: assumed from what is usual, not measured here.
REACHED = Rates(0.5, 0.75, 0.8)
HOST = Rates(1e12, 5e11, 5e10)  # a host that is not known: a good workstation's processor


@dataclass(frozen=True)
class Card:
    """A device to plan for: usable bytes, rates, and whether it is the host itself."""

    name: str
    bytes: Number
    rates: Rates
    is_host: bool = False


def made(bytes_: Number, tensor: Number, exact: Number, traffic: Number) -> tuple[Number, Rates]:
    """What a maker says: bytes; dense bfloat16 and plain float32 operations, and bytes, a second."""
    return bytes_, Rates(
        REACHED.tensor * tensor, REACHED.exact * exact, REACHED.traffic * traffic, LAUNCH
    )  # TF32 is off in torch unless asked for: products in float32 do not see tensor cores


DEVICES = {
    "rtx-4090": made(24e9, 165e12, 82e12, 1.01e12), "rtx-5090": made(32e9, 210e12, 105e12, 1.79e12),
    "l40s": made(48e9, 362e12, 92e12, 0.86e12), "a100-40": made(40e9, 312e12, 19.5e12, 1.56e12),
    "a100": made(80e9, 312e12, 19.5e12, 2.04e12), "h100": made(80e9, 989e12, 67e12, 3.35e12),
    "h200": made(141e9, 989e12, 67e12, 4.8e12), "b200": made(180e9, 2250e12, 75e12, 8e12),
}  # fmt: skip
RESERVE = 1.5e9  # bytes of a GPU for its context, its kernels and the gaps between blocks


def target(name: str | None, cfg: TrainConfig) -> tuple[Card, TrainConfig]:
    """A device by its name, and the configuration as it would be resolved there: nothing depends on this machine. By
    default this machine's own device. UserError for a name that is not known."""
    if name is None:
        free, _ = memory(cfg.model.place)
        on_host = torch.device(cfg.model.place).type == "cpu"
        return Card(cfg.model.place, free, measured(cfg.model.place, cfg), on_host), cfg
    if name not in DEVICES:
        raise UserError(f"device {name!r} is unknown{nearest(name, DEVICES)}; there are: {', '.join(DEVICES)}")
    size, rates = DEVICES[name]
    return Card(name, size - RESERVE, rates), on_card(cfg)


def on_card(cfg: TrainConfig) -> TrainConfig:
    """The configuration on a machine whose GPU the model has: what is ``auto`` is that GPU, and bfloat16."""
    model = replace(cfg.model, device="cuda", dtype="bfloat16" if cfg.model.dtype == "auto" else cfg.model.dtype)
    home = {"auto", "cuda", "cuda:0", cfg.model.device} - {"cpu"}
    rewards = tuple(
        replace(reward, model=replace(reward.reward_model, device="cuda"))
        if reward.name in MODELS and reward.reward_model.device in home
        else reward
        for reward in cfg.rewards
    )
    return replace(cfg, model=model, rewards=rewards)


def measured(place: str, cfg: TrainConfig) -> Rates:
    """What this machine reaches: in products of large matrices times what networks reach of it, and in copying."""
    dtype = torch_dtype(cfg.model.dtype, place)
    on_host = torch.device(place).type == "cpu"
    side = 1024 if on_host else 8192
    products = {}
    for kind in {dtype, torch.float32}:
        products[kind] = 2 * side**3 / best_of(partial(product, torch.randn(side, side, dtype=kind, device=place)))
    numbers = torch.zeros(2**24 if on_host else 2**28, device=place)
    traffic = 2 * numbers.nbytes / best_of(lambda: numbers.mul_(2)[0].item())
    low = products.get(torch.bfloat16, products[torch.float32])
    return Rates(
        REACHED.tensor * low, REACHED.exact * products[torch.float32], REACHED.traffic * traffic,
        0.0 if on_host else LAUNCH,
    )  # fmt: skip


def product(one: torch.Tensor) -> Number:
    """A matrix product that is done when this returns, not only begun."""
    return (one @ one).sum().item()


def best_of(what: Callable[[], object]) -> Number:
    """The fewest seconds of five tries."""
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        what()
        best = min(best, time.perf_counter() - began)
    return best
