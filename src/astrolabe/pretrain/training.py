"""A network trained by steps that several processes share, and that goes on where it stopped.

A step's work is cut into two pieces, each with random numbers of its own; so the weights are the same to the bit with
one process as with two, and whether or not it was interrupted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from astrolabe.pretrain.progress import stage_bar
from astrolabe.runtime.checkpoint import CheckpointStore, flatten_optimizer, restore_optimizer
from astrolabe.runtime.world import ALONE, World

PIECES = 2
SAVE = 200  # steps
Loss = Callable[[torch.Generator, torch.Generator], tuple[str, Tensor]]


@dataclass(frozen=True)
class Rates:
    """How fast a network learns: the rate rises over ``warmup`` steps and falls to zero on a straight line."""

    steps: int
    learning_rate: float
    warmup: int
    ema: float
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01

    def at(self, step: int) -> float:
        """The learning rate of a step."""
        return self.learning_rate * min((step + 1) / self.warmup, 1.0) * max(1 - step / self.steps, 0.01)


def train(
    name: str, network: nn.Module, loss: Loss, rates: Rates, seed: int, folder: Path | None = None,
    world: World = ALONE, watch: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:  # fmt: skip
    """Train ``network``; returns the average (EMA) of its weights, frozen and in eval mode.

    ``loss(step, piece)`` is a name and half a batch's loss; the first generator is the same for both halves. What was
    reached is kept in ``folder``. ``watch(steps, average)`` is called whenever it is.
    """
    network.requires_grad_(True)
    average = copy.deepcopy(network).requires_grad_(False).eval()
    named = dict(network.named_parameters())
    parameters = list(named.values())
    optimizer = torch.optim.AdamW(parameters, betas=rates.betas, weight_decay=rates.weight_decay)
    store = CheckpointStore(folder, keep=1) if folder else None
    done = store.latest() if store else None
    if store and done:
        tensors, _ = store.load(done)
        for part, module in (("network", network), ("average", average)):
            module.load_state_dict({key: tensors[f"{part}/{key}"] for key in module.state_dict()})
        state = {
            key.removeprefix("optimizer/"): value for key, value in tensors.items() if key.startswith("optimizer/")
        }
        restore_optimizer(optimizer, named, state)

    def gradients(task: tuple[int, int]) -> tuple[str, float, list[Tensor]]:
        step, piece = task
        network.zero_grad(set_to_none=True)
        kind, value = loss(seeded(seed, step, PIECES), seeded(seed, step, piece))
        value.backward()
        return kind, value.item(), [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]

    with stage_bar(name, rates.steps) as bar:
        bar.task.done = float(done or 0)
        for step in range(done or 0, rates.steps):
            pieces = list(world.shared([(step, piece) for piece in range(PIECES)], gradients))
            for parameter, *halves in zip(parameters, *(piece[2] for piece in pieces), strict=True):
                parameter.grad = torch.stack(halves).mean(0)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.param_groups[0]["lr"] = rates.at(step)
            optimizer.step()
            follow(average, network, min(rates.ema, (1 + step) / (10 + step)))
            bar.advance(**{pieces[0][0]: sum(piece[1] for piece in pieces) / PIECES})
            if (step + 1) % SAVE == 0 or step + 1 == rates.steps:
                if store and world.leads:
                    parts = {f"{part}/{key}": value for part, module in (("network", network), ("average", average))
                             for key, value in module.state_dict().items()}  # fmt: skip
                    state = {f"optimizer/{key}": value for key, value in flatten_optimizer(optimizer, named).items()}
                    store.save(step + 1, parts | state, {})
                if watch and world.leads:
                    watch(step + 1, average)
    return average


def seeded(seed: int, step: int, piece: int) -> torch.Generator:
    """The random numbers of a piece of a step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * (PIECES + 1) + piece)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """``average <- decay average + (1 - decay) model``."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
