"""The training loop: it reads as the method."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from astrolabe.experiment import TrainConfig, make_generator, make_prompts, make_rewards
from astrolabe.rewards.base import score
from astrolabe.rl.nft import NFT
from astrolabe.rl.policies import SLOTS, Policies
from astrolabe.rl.update import make_optimizer, update
from astrolabe.rollout.group import group_rollout
from astrolabe.runs import ADAPTER, RunFolder, base_fingerprint, make_policies, save_adapter, to_bytes
from astrolabe.runtime.checkpoint import CheckpointStore, flatten_optimizer, restore_optimizer, save_tensors
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.interrupts import graceful_interrupt
from astrolabe.runtime.random import rng_for
from astrolabe.runtime.tracking import MetricsLog, TensorBoardLog, training_display
from astrolabe.types import Experience, Metrics


class Interrupted(Exception):
    """Training stopped on request, after a checkpoint of ``step``."""

    def __init__(self, step: int):
        super().__init__(f"stopped after step {step}; the same command goes on from there")


def train(cfg: TrainConfig, out: Path) -> Path:
    """Align a model: new, or on from the last checkpoint in ``out``. Returns the run's folder.

    Raises UserError for a folder that is not this run's, Interrupted after Ctrl-C.
    """
    folder = RunFolder(out)
    generator, rewards, prompts = make_generator(cfg.model), make_rewards(cfg), make_prompts(cfg)
    algorithm = NFT(cfg.algorithm, tuple(reward.weight for reward in cfg.rewards))
    generator.stream.chunks(cfg.rollout.frames)  # what cannot work should fail before a folder is made
    algorithm.level_table(generator)
    folder.claim(cfg)
    if folder.finished:
        return out
    base = base_fingerprint(generator)
    policies = make_policies(cfg, generator)
    optimizer = make_optimizer(policies, cfg.optimizer)
    store, start = folder.checkpoints, 0
    if (latest := store.latest()) is not None:
        start = resume(store, latest, policies, optimizer, base)
    log = MetricsLog(out / "metrics.jsonl")
    log.truncate_after(start - 1)
    board = TensorBoardLog(out / "tensorboard") if cfg.tensorboard else None
    shown = (*[f"reward/{reward.name}" for reward in rewards], "loss")
    with graceful_interrupt() as interrupt, training_display(cfg.steps, start, shown) as display:
        for step in range(start, cfg.steps):
            began = time.monotonic()
            with policies.using("behavior"):
                rollout = group_rollout(generator, prompts.batch(step), cfg.rollout, rng_for(cfg.seed, step, "rollout"))
            rolled = time.monotonic()
            scores = score(rewards, rollout)
            scored = time.monotonic()
            experience = algorithm.prepare(rollout, scores)
            metrics = update(
                generator, policies, algorithm, experience, optimizer, cfg.optimizer, step,
                rng_for(cfg.seed, step, "update"),
            )  # fmt: skip
            algorithm.after_step(policies)
            metrics |= describe(experience) | {
                "seconds/rollout": rolled - began,
                "seconds/rewards": scored - rolled,
                "seconds/update": time.monotonic() - scored,
            }
            log.write(step, metrics)
            if board:
                board.write(step, metrics)
            display.update(step, metrics)
            if step % cfg.sample_every == 0 or step + 1 == cfg.steps:
                keep_group(out / "samples" / f"step_{step:06d}.safetensors", experience)
            if (step + 1) % cfg.checkpoint_every == 0 or step + 1 == cfg.steps or interrupt.requested:
                save(store, step + 1, policies, optimizer, base)
            if interrupt.requested and step + 1 < cfg.steps:
                raise Interrupted(step + 1)
    if board:
        board.close()
    save_adapter(out / ADAPTER, policies, cfg, base)
    return out


def describe(experience: Experience) -> Metrics:
    """Mean of every reward, its spread within groups, and how much of the step teaches anything."""
    scores, size = experience.scores, experience.rollout.group_size
    metrics: Metrics = {}
    for name in scores.names:
        column = scores.column(name)
        metrics[f"reward/{name}"] = column.mean().item()
        metrics[f"group_std/{name}"] = column.view(-1, size).std(1, correction=0).mean().item()
    metrics["useful_samples"] = (experience.advantages != 0).float().mean().item()
    return metrics


def save(store: CheckpointStore, step: int, policies: Policies, optimizer: torch.optim.Optimizer, base: str) -> None:
    """Every state that decides the future: the slots and the optimiser. All else is a function of the step."""
    tensors = {f"{slot}/{key}": value for slot in SLOTS for key, value in policies.tensors(slot).items()}
    optimizer_state = flatten_optimizer(optimizer, policies.trainable())
    store.save(step, tensors | {f"optimizer/{key}": value for key, value in optimizer_state.items()}, {"base": base})


def resume(store: CheckpointStore, step: int, policies: Policies, optimizer: torch.optim.Optimizer, base: str) -> int:
    """Restore what ``save`` wrote; returns the step to go on with."""
    tensors, state = store.load(step)
    if state.get("base") != base:
        raise UserError(
            f"{store.run_dir}: the checkpoint of step {step} belongs to another base model; start a new run"
        )
    parts: dict[str, dict[str, Any]] = {name: {} for name in (*SLOTS, "optimizer")}
    for key, value in tensors.items():
        owner, _, rest = key.partition("/")
        if owner not in parts:
            raise UserError(f"{store.run_dir}: the checkpoint of step {step} has an unknown part {owner!r}")
        parts[owner][rest] = value
    for slot in SLOTS:
        policies.load(slot, parts[slot])
    restore_optimizer(optimizer, policies.trainable(), parts["optimizer"])
    return step


def keep_group(path: Path, experience: Experience) -> None:
    """The first group of a step whose candidates differ, with scores and advantages, for the report."""
    rollout, size = experience.rollout, experience.rollout.group_size
    spread = experience.advantages.view(-1, size).abs().sum(1)
    group = int(spread.argmax())
    rows = slice(group * size, (group + 1) * size)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "video": to_bytes(rollout.video[rows]),
        "scores": experience.scores.values[rows],
        "advantages": experience.advantages[rows],
    }
    save_tensors(path, tensors, {"prompt": rollout.prompts[group], "rewards": ",".join(experience.scores.names)})
