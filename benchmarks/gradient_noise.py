"""``python -m benchmarks.gradient_noise``: how much of a gradient is signal, by what a group's candidates share.

Every rollout of the base policy gives one gradient for every kind of draw. The mean cosine between the gradients of
different rollouts says how much of one is signal: near 0 each points its own way, at 1 all agree. The result goes to
``benchmarks/results/gradient_noise.json``.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astrolabe.experiment import make_generator, make_prompts, make_rewards, resolved
from astrolabe.recipes.shapes import shapes
from astrolabe.rewards.base import score
from astrolabe.rl.nft import NFT
from astrolabe.rl.policies import Policies
from astrolabe.rl.update import update
from astrolabe.rollout.group import group_rollout
from astrolabe.runs import make_policies
from astrolabe.runtime.random import rng_for
from astrolabe.types import Experience
from benchmarks.evidence import commit, machine

RESULT = Path("benchmarks/results/gradient_noise.json")
ROLLOUTS = 12
# name -> common noise, levels a sample, share of the samples
KINDS: dict[str, tuple[bool, int, float]] = {
    "own noise, 1 level": (False, 1, 1.0),
    "own noise, 4 levels": (False, 4, 1.0),
    "common noise, 1 level": (True, 1, 1.0),
    "common noise, 4 levels": (True, 4, 1.0),
    "common noise, 4 levels, best third": (True, 4, 1 / 3),
}


def agreement(gradients: Tensor) -> float:
    """Mean cosine between different rows of ``gradients`` [n, parameters]."""
    rows = torch.nn.functional.normalize(gradients, dim=1)
    cosines = rows @ rows.T
    return ((cosines.sum() - cosines.trace()) / (len(rows) * (len(rows) - 1))).item()


def main() -> None:
    """Roll out once, differentiate in every way, write the result."""
    cfg = resolved(shapes())
    generator, rewards, prompts = make_generator(cfg.model), make_rewards(cfg), make_prompts(cfg)
    policies = make_policies(cfg, generator)
    rollouts = []
    for step in range(ROLLOUTS):
        rollout = group_rollout(generator, prompts.batch(step), cfg.rollout, rng_for(cfg.seed, step, "rollout"))
        rollouts.append((rollout, score(rewards, rollout)))

    def gradient(algorithm: NFT, experience: Experience, share: float, step: int, policies: Policies) -> Tensor:
        parameters = list(policies.trainable().values())
        still = torch.optim.SGD(parameters, lr=0.0)  # leaves the gradient and moves nothing
        settings = replace(cfg.optimizer, share=share, minibatches=1)
        update(generator, policies, algorithm, experience, still, settings, 0.0, rng_for(cfg.seed, step, "update"))
        # at the start B is zero, and with it the gradient of A
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])

    found: dict[str, Any] = {}
    for name, (common, levels, share) in KINDS.items():
        algorithm = NFT(
            replace(cfg.algorithm, common_noise=common, levels_per_sample=levels),
            tuple(reward.weight for reward in cfg.rewards),
        )
        began = time.monotonic()
        gradients = torch.stack(
            [
                gradient(algorithm, algorithm.prepare(*scored), share, step, policies)
                for step, scored in enumerate(rollouts)
            ]
        )
        seconds = (time.monotonic() - began) / ROLLOUTS
        found[name] = {"agreement": round(agreement(gradients), 4), "seconds": round(seconds, 2)}
        print(f"{name:36} {found[name]}", flush=True)
    content = {
        "command": "python -m benchmarks.gradient_noise",
        "commit": commit(),
        "machine": machine(),
        "rollouts": ROLLOUTS,
        "kinds": found,
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
