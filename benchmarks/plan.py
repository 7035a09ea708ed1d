"""``python -m benchmarks.plan``: what ``astrolabe plan`` predicts of memory and time, beside what a real step takes.

Each configuration runs two training steps, the second of which is measured: its seconds in one process; in another its
peak memory, from before its model was made, after two steps for what the libraries keep for themselves (code, kernels
made for a size). The reward is the one that compares neighbouring frames. Sizes: the
embedded model, and a causal Wan of random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan

from astrolabe.assembly import make_algorithm
from astrolabe.data.scripts import parse_script
from astrolabe.experiment import TrainConfig
from astrolabe.models.wan.config import StreamConfig, WanConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.models.wan.vae import WanVAE
from astrolabe.plan.cards import measured
from astrolabe.plan.plays import Measurer
from astrolabe.plan.stage import decoder_of, empty_generator, hollow
from astrolabe.plan.step import make_plan
from astrolabe.recipes.shapes import shapes
from astrolabe.rewards.base import Member, Scorer
from astrolabe.rewards.pixels import ANY_VIDEO
from astrolabe.rewards.settings import RewardSettings
from astrolabe.rl.policies import Policies
from astrolabe.rl.settings import LoraSettings
from astrolabe.rl.update import make_optimizer, update
from astrolabe.rollout.settings import RolloutSettings, WindowSettings
from astrolabe.rollout.window import Windows
from astrolabe.runtime.arguments import Parser, one_of, run_program, whole
from astrolabe.runtime.clock import Clock
from astrolabe.runtime.config import override
from astrolabe.trainer import Scoring
from astrolabe.types import Experience, Scores
from benchmarks.measuring import GIVE_BACK, at_rest, peak_of_process, reset_peak
from benchmarks.provenance import write_result

RESULT = Path("benchmarks/results/plan.json")
MIDDLE = WanConfig(dim=512, ffn_dim=2048, num_heads=4, num_layers=10, freq_dim=256, text_dim=512)
MIDDLE_STREAM = StreamConfig(3, 12, 3, "relative", 5.0, (1000, 750, 500, 250))
MIDDLE_SHAPE, WORDS, VAE_WIDTH = (16, 12, 16), 64, 4


def middle(cfg: TrainConfig) -> WanGenerator:
    """A causal Wan of 50 M parameters that makes 96 x 128 pixels."""
    vae = WanVAE(AutoencoderKLWan(base_dim=VAE_WIDTH).requires_grad_(False))
    return empty_generator(MIDDLE, MIDDLE_STREAM, MIDDLE_SHAPE, WORDS, vae, torch.float32)


def configurations() -> dict[str, tuple[TrainConfig, Any]]:
    """What is compared: the configuration, and what makes its generator."""
    demo = shapes()
    # With a share of the samples, how full a micro-batch gets is decided by the scores; a plan counts full ones.
    small = replace(demo, rewards=(RewardSettings(name="pixel_motion"),), optimizer=replace(demo.optimizer, share=1.0))
    far = replace(small, window=WindowSettings(frames=12, start="choices", choices=(48,), video_frames=60))
    large = replace(
        small,
        rollout=RolloutSettings(prompts=1, group_size=4, micro_batch=4),
        window=WindowSettings(frames=12, start="choices", choices=(12,), video_frames=24),
        lora=LoraSettings(rank=32, alpha=32.0),
        optimizer=replace(small.optimizer, minibatches=1, share=1.0, micro_batch=1),
    )
    return {
        "embedded, the demo's recipe, every sample": (small, hollow),
        "embedded, all candidates at once": (
            override(small, {"rollout.group_size": "12", "rollout.micro_batch": "12"}), hollow),
        "embedded, behind 48 frames, blocks run again": (
            override(far, {"optimizer.gradient_checkpointing": "true"}), hollow),
        "embedded, behind 48 frames, a chunk at a time": (override(far, {"optimizer.chunks": "1"}), hollow),
        "50 M, one sample at a time": (large, middle),
        "50 M, two samples, blocks run again": (
            override(large, {"optimizer.micro_batch": "2", "optimizer.gradient_checkpointing": "true"}), middle),
        "50 M, a chunk at a time, rank 128": (
            override(large, {"optimizer.chunks": "1", "lora.rank": "128"}), middle),
    }  # fmt: skip


def real(cfg: TrainConfig, build: Any) -> tuple[WanGenerator, Policies]:
    """The generator with numbers."""
    with torch.device("meta"):
        generator = build(cfg)
    policies = Policies(generator.transformer, cfg.lora, torch.Generator())
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in (generator.transformer, decoder_of(generator)):
            module.to_empty(device="cpu")
            for parameter in module.parameters():
                parameter.normal_(std=0.02, generator=rng)
    if isinstance(generator.codec, WanVAE):
        generator.codec = WanVAE(generator.codec.vae)
    return generator, policies


def seconds_of(name: str) -> dict[str, Any]:
    """The seconds of a real step by phase."""
    names = ("history", "rollout and decode", "judging", "update")
    return {"measured_seconds": dict(zip(names, two_steps(*configurations()[name]), strict=True))}


def memory_of(name: str) -> dict[str, Any]:
    """The peak of a real step beyond what was held before its model."""
    cfg, build = configurations()[name]
    two_steps(cfg, build)
    before = at_rest()
    two_steps(cfg, build)
    return {"measured_bytes": peak_of_process() - before, "libraries_bytes": before}


MEASURED = {"memory": memory_of, "seconds": seconds_of}


def in_a_process(what: str, name: str) -> Any:
    """What ``MEASURED[what]`` finds for a configuration."""
    words = [sys.executable, "-m", "benchmarks.plan", "--measure", what, name]
    environment = os.environ | (GIVE_BACK if what == "memory" else {})
    child = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(child.stdout.splitlines()[-1])


def two_steps(cfg: TrainConfig, build: Any) -> list[float]:
    """Two real steps; the seconds of the second."""
    generator, policies = real(cfg, build)
    generator.transformer.gradient_checkpointing = cfg.optimizer.gradient_checkpointing
    algorithm, optimizer = make_algorithm(cfg), make_optimizer(policies, cfg.optimizer)
    windows = Windows(generator, cfg.rollout, cfg.window)
    prompts = [f"a red circle moving left{'.' * i}" for i in range(cfg.rollout.prompts)]
    for step in range(2):
        reset_peak()
        clock = Clock()
        with policies.using("behavior"):
            start = cfg.window.start_of(cfg.seed, step, generator.stream.chunk_frames)
            with clock.phase("history"):
                windows.begin(prompts, [parse_script(line) for line in prompts], step, start)
            rows = cfg.rollout.prompts * cfg.rollout.group_size
            scoring = Scoring(Scorer([Member(ANY_VIDEO["pixel_motion"])], rows), None, clock)
            with clock.phase("rollout"):
                rollout = windows.candidates(step, see=scoring.see)
        # Credit at random: weights at random make videos that are all alike.
        credit = torch.randn(len(rollout.latents), generator=torch.Generator().manual_seed(step))
        scores = Scores(("credit",), credit[:, None])
        experience = Experience(rollout, scores, credit, algorithm.credit(credit), credit > torch.inf)
        with clock.phase("update"):
            update(generator, policies, algorithm, experience, optimizer, cfg.optimizer, cfg.optimizer.lr,
                   torch.Generator().manual_seed(step))  # fmt: skip
        del rollout, experience
    return [round(clock.seconds[phase], 2) for phase in ("history", "rollout", "rewards", "update")]


def compare(name: str) -> dict[str, Any]:
    """Prediction and measurement of one configuration."""
    cfg, build = configurations()[name]
    plan = make_plan(cfg, Measurer(build))
    predicted = plan.total(on_host=True)
    found = in_a_process("memory", name) | in_a_process("seconds", name)
    seconds = plan.seconds(measured(cfg.model.place, cfg))
    return {
        "configuration": name, "predicted_bytes": predicted, **found,
        "error": round(predicted / found["measured_bytes"] - 1, 4),
        "predicted_seconds": {phase: round(value, 2) for phase, value in seconds.items()},
        "held": plan.held, "phases": {phase: value.bytes for phase, value in plan.phases.items()},
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Every configuration, then the JSON."""
    parser = Parser(prog="python -m benchmarks.plan", description=__doc__)
    parser.add_argument("--only", type=whole(0, len(configurations()) - 1), help="one of them, by its number")
    parser.add_argument("--measure", type=one_of([*MEASURED, *configurations()]), nargs=2, help=argparse.SUPPRESS)
    args = parser.read(argv)
    if args.measure:
        print("\n" + json.dumps(MEASURED[args.measure[0]](args.measure[1])))
        return
    rows = []
    for number, name in enumerate(configurations()):
        if args.only in (None, number):
            rows.append(compare(name))
            row = rows[-1]
            print(f"{name:48} {row['predicted_bytes'] / 1e6:8.0f} MB predicted  {row['measured_bytes'] / 1e6:8.0f} MB "
                  f"measured  {row['error']:+.1%}", flush=True)  # fmt: skip
    if args.only is None:
        worst = max(abs(row["error"]) for row in rows)
        write_result(RESULT, "python -m benchmarks.plan", {"worst_error": worst, "configurations": rows})


if __name__ == "__main__":
    run_program(main)
