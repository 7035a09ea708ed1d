"""``python -m astrolabe.pretrain``: make the embedded models from nothing, stage by stage.

    codec -> data -> teacher -> students -> card (gates, held-out scores, hashes, shipped files)

A stage whose result lies in the build folder, made with the same plan, is not repeated; an interrupted run goes on
where it was, to the same weights.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from astrolabe.pretrain import card
from astrolabe.pretrain.codec import train_codec
from astrolabe.pretrain.data import make_latents
from astrolabe.pretrain.flow_matching import STUDENTS, TEACHER, Networks, fit, new_networks
from astrolabe.pretrain.training import PIECES
from astrolabe.runtime.arguments import Parser, one_of, whole
from astrolabe.runtime.checkpoint import load_tensors, own_metadata, save_tensors
from astrolabe.runtime.processes import one_thread, processes
from astrolabe.runtime.world import World
from astrolabe.shapes.codec import Codec
from astrolabe.shapes.model import SHIPPED, build
from astrolabe.shapes.settings import WAN, ShapesName
from astrolabe.shapes.world import JITTER, MIXED

SEED = 2026
CODEC_STEPS = 3600
VIDEOS_PER_SCENE = 32
STAGES = ("codec", "data", "teacher", *STUDENTS, "card")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stages that are missing; see the module."""
    parser = Parser(prog="python -m astrolabe.pretrain", description=__doc__)
    parser.add_argument("--build", type=Path, default=Path("build/shapes"), help="folder for the stages' results")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder for the shipped files and the card")
    parser.add_argument("--seed", type=whole(0), default=SEED)
    parser.add_argument("--until", type=one_of(STAGES), default="card", help="the last stage (default: card)")
    parser.add_argument(
        "--processes", type=whole(1), default=torch.get_num_threads(), metavar="N",
        help="how many share the training, two at most (default: as many as torch would use threads)",
    )  # fmt: skip
    args = parser.read(argv)
    made, count = plans(args.seed), min(args.processes, PIECES)
    for name in STAGES[: STAGES.index(args.until) + 1]:
        if name == "card":
            card.write(args.out, args.build, made, count)
        else:
            stage(args.build, name, made[name], partial(make, args.build, name, args.seed, count))


def plans(seed: int) -> dict[str, dict[str, Any]]:
    """What decides the result of every stage, that of the stages before it included."""
    codec = {"seed": seed, "steps": CODEC_STEPS}
    data = {"codec": codec, "videos_per_scene": VIDEOS_PER_SCENE, "jitter": JITTER, "looks": MIXED}
    teacher = {"seed": seed, "data": data, "wan": asdict(WAN), **asdict(TEACHER)}
    students: dict[str, Any] = {
        name: {"seed": seed, "teacher": teacher, **asdict(plan)} for name, plan in STUDENTS.items()
    }
    return {"codec": codec, "data": data, "teacher": teacher, **students}


def stage(folder: Path, name: str, plan: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> None:
    """Write NAME.safetensors unless it is there, made with ``plan``; its metadata tells the seconds that it took."""
    path, wanted = folder / f"{name}.safetensors", json.dumps(plan, sort_keys=True)
    found = own_metadata(path)
    if found.get("plan") == wanted:
        print(f"{name}: done in {found['seconds']} s, kept", flush=True)
        return
    unfinished = folder / f"{name}.part"
    if unfinished.exists() and (unfinished / "plan.json").read_text(encoding="utf-8") != wanted:
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True, exist_ok=True)
    (unfinished / "plan.json").write_text(wanted, encoding="utf-8")
    began = time.monotonic()
    tensors = make()
    seconds = round(time.monotonic() - began)
    save_tensors(path, tensors, {"plan": wanted, "seconds": str(seconds)})
    shutil.rmtree(unfinished)
    print(f"{name}: {seconds} s", flush=True)


def make(folder: Path, name: str, seed: int, count: int) -> dict[str, Tensor]:
    """The tensors of a stage, given those of the stages before it."""
    if name == "codec":
        return {f"codec.{key}": value for key, value in train_codec(seed, CODEC_STEPS).state_dict().items()}
    if name == "data":
        return {"latents": make_latents(read_codec(folder), VIDEOS_PER_SCENE, torch.Generator().manual_seed(seed))}
    with one_thread(), processes(count, follow, folder, name, seed) as world:
        return dict(train_networks(world, folder, name, seed).state_dict())


def train_networks(world: World, folder: Path, name: str, seed: int) -> Networks:
    """Train the teacher or a student as one of the processes of a world."""
    networks = new_networks(seed)
    if name != "teacher":
        networks.load_state_dict(load_tensors(folder / "teacher.safetensors")[0])
    codec = load_tensors(folder / "codec.safetensors")[0]

    def watch(steps: int, average: nn.Module) -> None:
        model = build(dict(average.state_dict()) | codec, torch.bfloat16, shown)
        scores = card.scores_of(model, "validation", (1, 2))
        text = "  ".join(f"{measure} {scores[measure]:.3f}" for measure in card.WATCHED)
        print(f"{name} after {steps} steps as {shown}, validation: {text}", flush=True)

    shown: ShapesName = name if name in STUDENTS else "shapes"
    latents = load_tensors(folder / "data.safetensors")[0]["latents"]
    plan = TEACHER if name == "teacher" else STUDENTS[shown]
    return fit(name, networks, latents, plan, seed, folder / f"{name}.part", world, watch)


def follow(world: World, folder: Path, name: str, seed: int) -> None:
    """Train as one of several processes, behind the first."""
    train_networks(world, folder, name, seed)


def read_codec(folder: Path) -> Codec:
    """The codec that was trained."""
    codec = Codec().eval()
    weights = load_tensors(folder / "codec.safetensors")[0]
    codec.load_state_dict({key.removeprefix("codec."): value for key, value in weights.items()})
    return codec
