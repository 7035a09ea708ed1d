"""``python -m astrolabe.pretrain``: make the embedded model from nothing, stage by stage.

    codec -> teacher (flow matching) -> student (distillation) -> card (held-out scores, hashes, shipped files)

A stage whose result lies in the build folder, made with the same plan, is not repeated; an interrupted run goes on with
the stage it was in.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astrolabe.evaluation.suites import ATTRIBUTES
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.pretrain import card
from astrolabe.pretrain.codec import train_codec
from astrolabe.pretrain.data import LatentData
from astrolabe.pretrain.distill import StudentPlan, distill
from astrolabe.pretrain.flow_matching import TeacherPlan, train_teacher
from astrolabe.runtime.arguments import Parser, one_of, run_program, whole
from astrolabe.runtime.checkpoint import load_tensors, save_tensors
from astrolabe.shapes.codec import Codec
from astrolabe.shapes.model import SHIPPED, build
from astrolabe.shapes.settings import STREAM, WAN
from astrolabe.shapes.world import JITTER

SEED = 2026
CODEC_STEPS = 3000
VIDEOS_PER_SCENE = 40
STAGES = ("codec", "teacher", "student", "card")


def stage(path: Path, plan: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of ``path`` if it was made with ``plan``, else make them, with the seconds it took as metadata."""
    wanted = json.dumps(plan, sort_keys=True)
    if path.exists():
        tensors, metadata = load_tensors(path)
        if metadata["plan"] == wanted:
            print(f"{path.stem}: done in {metadata['seconds']} s, kept")
            return tensors
    began = time.monotonic()
    tensors = make()
    seconds = round(time.monotonic() - began)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, tensors, {"plan": wanted, "seconds": str(seconds)})
    print(f"{path.stem}: {seconds} s")
    return tensors


def network_tensors(model: WanGenerator) -> dict[str, Tensor]:
    """Transformer and text encoder as one flat dictionary."""
    assert isinstance(model.text_encoder, torch.nn.Module)
    parts = {"transformer": model.transformer, "text_encoder": model.text_encoder}
    return {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stages that are missing; see the module."""
    parser = Parser(prog="python -m astrolabe.pretrain", description=__doc__)
    parser.add_argument("--build", type=Path, default=Path("build/shapes"), help="folder for the stages' results")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder for the shipped files and the card")
    parser.add_argument("--seed", type=whole(0), default=SEED)
    parser.add_argument("--until", type=one_of(STAGES), default="card", help="the last stage (default: card)")
    args = parser.read(argv)
    plans: dict[str, dict[str, Any]] = {
        "codec": {"seed": args.seed, "steps": CODEC_STEPS},
        "teacher": {
            "seed": args.seed,
            "videos_per_scene": VIDEOS_PER_SCENE,
            **asdict(TeacherPlan()),
            "jitter": JITTER,
            "wan": asdict(WAN),
            "stream": asdict(STREAM),
        },
        "student": {"seed": args.seed, **asdict(StudentPlan())},
    }

    def make_codec() -> dict[str, Tensor]:
        return {f"codec.{key}": value for key, value in train_codec(args.seed, CODEC_STEPS).state_dict().items()}

    weights = stage(args.build / "codec.safetensors", plans["codec"], make_codec)
    if args.until == "codec":
        return

    def make_data(seed: int, emphasis: Mapping[str, float] | None = None) -> LatentData:
        codec = Codec().eval()
        codec.load_state_dict({key.removeprefix("codec."): value for key, value in weights.items()})
        return LatentData(codec, VIDEOS_PER_SCENE, torch.Generator().manual_seed(seed), emphasis)

    def make_teacher() -> dict[str, Tensor]:
        return network_tensors(train_teacher(make_data(args.seed), TeacherPlan(), args.seed))

    teacher = stage(
        args.build / "teacher.safetensors", {name: plans[name] for name in ("codec", "teacher")}, make_teacher
    )
    if args.until == "teacher":
        return

    def make_student() -> dict[str, Tensor]:
        def watch(rounds: int, student: WanGenerator) -> None:
            scores = card.scores_of(student, None, "validation", (1, 2))
            shown = "  ".join(f"{name} {scores[name]:.3f}" for name in ("joint", *ATTRIBUTES, "cleanliness"))
            print(f"student {rounds} rounds, {time.monotonic() - began:.0f} s, validation: {shown}", flush=True)

        model, plan = build(teacher | weights, torch.bfloat16), StudentPlan()
        data = make_data(args.seed + 1, dict(plan.emphasis))
        began = time.monotonic()
        return network_tensors(distill(model, data, plan, args.seed, watch))

    student = stage(args.build / "student.safetensors", plans, make_student)
    if args.until == "card":
        card.write(args.out, args.build, teacher | weights, student | weights, plans)


if __name__ == "__main__":
    run_program(main)
