"""The model card: held-out scores of the teacher and its students, the gates, the files that ship, and their hashes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astrolabe.evaluation.suites import MEASURES, Suite, run_suite, verdicts
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.pretrain.codec import psnr
from astrolabe.pretrain.sampling import sample_many_steps
from astrolabe.rollout.videos import video_noise
from astrolabe.runtime.checkpoint import load_tensors, save_tensors
from astrolabe.runtime.processes import one_thread, processes
from astrolabe.runtime.world import World
from astrolabe.shapes.captions import split
from astrolabe.shapes.codec import Codec
from astrolabe.shapes.model import build
from astrolabe.shapes.oracles import judge
from astrolabe.shapes.settings import CLIP_FRAMES, LONGEST, STREAMS, ShapesName
from astrolabe.shapes.world import ALL_SCENES, GOOD, render

NOISES = tuple(range(21, 37))  # of every test scene, for the students: enough to tell what differs within a prompt
FEW_NOISES = NOISES[:4]
MANY_STEPS = 32
GUIDANCE = 1.0
QUARTERS = 4
BATCH = 44
WATCHED = ("joint", "right", "made", "shape", "motion", "vividness", "cleanliness", "smoothness")
SHOWN = ("joint", "right", "made", "colour", "shape", "motion", "vividness", "cleanliness", "smoothness", "flicker")
# What makes a base that alignment can be shown on: neither good nor hopeless, and undecided on most prompts.
GATES = {
    "joint": (0.30, 0.55),
    "within_prompts": (0.7, 1.0),
    "mixed_scenes": (0.75, 1.0),
    "over_undistilled": (0.0, 1.0),
}
TRUTH_THROUGH_CODEC = 0.97


def write(out: Path, folder: Path, plans: Mapping[str, Any], count: int) -> None:
    """Ship the codec and the students as float16 files in ``out``, score what was shipped, with ``count`` processes,
    and write ``card.json`` and ``CARD.md``."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("codec", *STREAMS):
        tensors, _ = load_tensors(folder / f"{name}.safetensors")
        half = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
        save_tensors(out / f"{name}.safetensors", half, {"part": name})
    with one_thread(), processes(count, follow, out, folder) as world:
        scores = {name: held_out(world, out, folder, name) for name in STREAMS}
    shipped = {name: load_tensors(out / f"{name}.safetensors")[0] for name in ("codec", *STREAMS)}
    card = {
        "parameters": {
            "transformer": numbers(shipped["shapes"], "transformer."),
            "text_encoder": numbers(shipped["shapes"], "text_encoder."),
            "codec": numbers(shipped["codec"], "codec."),
        },
        "plans": plans,
        "seconds": {name: int(load_tensors(folder / f"{name}.safetensors")[1]["seconds"]) for name in plans},
        "machine": ", ".join(
            (f"{count} processes of one thread", torch.backends.cpu.get_cpu_capability(), f"torch {torch.__version__}")
        ),
        "held_out": {"split": "test", "scenes": len(split("test")), "noises": len(NOISES)},
        "models": scores,
        "gates": GATES,
        "ground_truth": ground_truth(build(shipped["shapes"] | shipped["codec"])),
        "files": {f"{name}.safetensors": sha256(out / f"{name}.safetensors") for name in shipped},
    }
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (out / "CARD.md").write_text(as_markdown(card), encoding="utf-8")
    print(as_markdown(card))


def follow(world: World, out: Path, folder: Path) -> None:
    """Score as one of several processes, behind the first."""
    for name in STREAMS:
        held_out(world, out, folder, name)


def numbers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Numbers held under a prefix."""
    return sum(value.numel() for key, value in tensors.items() if key.startswith(prefix))


def sha256(path: Path) -> str:
    """Hash of a file's bytes, hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@torch.no_grad()
def held_out(world: World, out: Path, folder: Path, name: ShapesName) -> dict[str, Any]:
    """Oracle scores on the test scenes of a student, of the teacher in as many steps, and of the teacher in many; what
    the gates ask about; and how the student's longest videos go, by quarter."""
    codec = load_tensors(out / "codec.safetensors")[0]
    student = build(load_tensors(out / f"{name}.safetensors")[0] | codec, torch.bfloat16, name)
    teacher = build(load_tensors(folder / "teacher.safetensors")[0] | codec, torch.bfloat16, name)
    own = run_suite(student, Suite("test", NOISES, CLIP_FRAMES), (), BATCH, world=world).scores
    undistilled = run_suite(teacher, Suite("test", FEW_NOISES, CLIP_FRAMES), (), BATCH, world=world).scores
    far = run_suite(student, Suite("test", FEW_NOISES[:2], LONGEST), (), BATCH, QUARTERS, world=world).windows
    same = own["joint"][:, : len(FEW_NOISES)].mean().item()
    return {
        "student": means(own),
        "teacher, as many steps": means(undistilled),
        f"teacher, {MANY_STEPS} steps": many_steps(world, teacher),
        "gates": gates(own["joint"]) | {"over_undistilled": same - undistilled["joint"].mean().item()},
        "quarters": {measure: far[measure].mean((1, 2)).tolist() for measure in SHOWN},
    }


def many_steps(world: World, teacher: WanGenerator) -> dict[str, float]:
    """Mean of every measure of the teacher's videos in many steps."""
    suite = Suite("test", FEW_NOISES, CLIP_FRAMES)

    def judged(seed: int) -> Tensor:
        text, noise = teacher.encode_text(suite.prompts(seed)), video_noise(seed, range(len(suite.scenes)))
        latents = sample_many_steps(teacher, text, suite.frames, noise, MANY_STEPS, GUIDANCE)
        return verdicts(teacher.decode(latents)[0], suite.scenes)

    found = torch.stack(list(world.shared(suite.seeds, judged)))
    return dict(zip(MEASURES, found.mean((0, 2)).tolist(), strict=True))


def means(scores: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean of every measure."""
    return {measure: value.mean().item() for measure, value in scores.items()}


def gates(joint: Tensor) -> dict[str, float]:
    """Of outcomes [prompts, noises]: their mean, the share of their variance that lies within prompts (without bias),
    and the share of prompts with both outcomes."""
    rate, noises = joint.double().mean(1), joint.shape[1]
    within = (rate * (1 - rate)).mean().item() * noises / (noises - 1)
    between = max(rate.var().item() - within / noises, 0.0)
    return {
        "joint": rate.mean().item(),
        "within_prompts": within / max(within + between, 1e-12),
        "mixed_scenes": ((rate > 0) & (rate < 1)).double().mean().item(),
    }


@torch.no_grad()
def scores_of(model: WanGenerator, name: str, seeds: tuple[int, ...]) -> dict[str, float]:
    """Mean of every measure of the model's videos of a split."""
    return means(run_suite(model, Suite(name, seeds, CLIP_FRAMES), (), BATCH).scores)


@torch.no_grad()
def ground_truth(model: WanGenerator) -> dict[str, float]:
    """Joint oracle on well-made rendered videos of every scene, and on the same after the codec."""
    video = render(ALL_SCENES, 1 + 4 * (CLIP_FRAMES - 1), torch.Generator().manual_seed(0), looks=GOOD)
    assert isinstance(model.codec, Codec)
    decoded = torch.cat([model.decode(model.codec.encode(part))[0] for part in video.split(32)])
    return {
        "rendered": judge(video, ALL_SCENES)["joint"].mean().item(),
        "through_codec": judge(decoded, ALL_SCENES)["joint"].mean().item(),
        "codec_psnr_db": psnr(decoded, video),
    }


def failed(card: Mapping[str, Any]) -> list[str]:
    """The gates that a card does not pass, one a line."""
    truth = card["ground_truth"]
    lines = [] if truth["rendered"] == 1 else [f"rendered ground truth scores {truth['rendered']:.3f} instead of 1"]
    if truth["through_codec"] < TRUTH_THROUGH_CODEC:
        lines.append(
            f"ground truth scores {truth['through_codec']:.3f} after the codec, {TRUTH_THROUGH_CODEC} is asked"
        )
    for name, model in card["models"].items():
        for gate, (low, high) in card["gates"].items():
            value = model["gates"][gate]
            if not low <= value <= high or math.isnan(value):
                lines.append(f"{name}: {gate} is {value:.3f}, {low} to {high} is asked")
    return lines


def as_markdown(card: Mapping[str, Any]) -> str:
    """The card for people."""
    sizes, plans, truth, asked = card["parameters"], card["plans"], card["ground_truth"], card["held_out"]
    stages = ", ".join(f"{name} {seconds} s" for name, seconds in card["seconds"].items())
    files = "\n".join(f"- `{name}` sha256 `{digest}`" for name, digest in card["files"].items())
    emphasis = ", ".join(f"{word} x {factor:g}" for word, factor in plans["teacher"]["emphasis"])
    looks = ", ".join(f"{look} {low:g} to {high:g}" for look, (low, high) in plans["data"]["looks"].items())
    return f"""# The embedded shapes models

Causal Wans ({sizes["transformer"]:,} parameters) with a word-level text encoder ({sizes["text_encoder"]:,}) on one
light causal codec ({sizes["codec"]:,}). They make 64x64 videos of moving coloured shapes as a stream, to try Astrolabe
without a GPU. They are decent and flawed on purpose, as models trained on videos of mixed quality are: alignment has
work to do.

**Data.** Rendered videos of the 152 training scenes (colour x shape x motion), {LONGEST} latent frames long; 28
validation and 44 test scenes never occur in the training of the transformers, only in that of the codec. Every video
has looks of its own that its caption does not tell, each uniform in its range: {looks}.

**Training** (`make shapes`, seed {plans["codec"]["seed"]}; {stages}; {card["machine"]}).
Codec: {plans["codec"]["steps"]} steps on the whole range of looks and beyond. Teacher:
{plans["teacher"]["rates"]["steps"]} steps of flow matching with clean context, in chunks of three frames and of one.
Students: {plans["shapes"]["rates"]["steps"]} further steps each, from the teacher's weights, in one way of streaming
and at the levels of its own sampler alone. Drawn more often than others: {emphasis}.

**Held-out scores** ({asked["scenes"]} test scenes, {asked["noises"]} noises each for a student and {len(FEW_NOISES)}
for the teacher; clips of {CLIP_FRAMES} latent frames)

{"".join(section(name, model) for name, model in card["models"].items())}
Well-made rendered videos score {truth["rendered"]:.3f} on the joint oracle, and {truth["through_codec"]:.3f} after the
codec ({truth["codec_psnr_db"]:.1f} dB).

**Gates** (in brackets what is asked)

| model | {" | ".join(f"{gate.replace('_', ' ')} [{low:g}, {high:g}]" for gate, (low, high) in card["gates"].items())} |
|---|{"---|" * len(card["gates"])}
{"".join(row(name, model["gates"], tuple(card["gates"])) for name, model in card["models"].items())}
*joint*: share of its videos that are right and well made. *within prompts*: share of that outcome's variance that lies
within prompts. *mixed scenes*: share of the test scenes on which it both succeeds and fails. *over undistilled*: by how
much it beats the teacher in as many steps.

**Files**

{files}
"""


def section(name: ShapesName, model: Mapping[str, Any]) -> str:
    """A model's scores."""
    stream = STREAMS[name]
    steps = f"{len(stream.denoising_steps)} steps"
    if stream.first_chunk_steps:
        steps += f" ({len(stream.first_chunk_steps)} for the first chunk)"
    memory = (
        f"each sees the first {stream.sink_frames} frames and the last {stream.window_frames - stream.sink_frames}"
        if stream.sink_frames and stream.window_frames
        else f"each sees all before it, up to {stream.window_frames} frames"
    )
    rows = "".join(row(who, scores, SHOWN) for who, scores in model.items() if who not in ("gates", "quarters"))
    quarters = ", ".join(f"{value:.2f}" for value in model["quarters"]["joint"])
    right = ", ".join(f"{value:.2f}" for value in model["quarters"]["right"])
    return f"""### `{name}`

Chunks of {stream.chunk_frames} latent frame{"s" if stream.chunk_frames > 1 else ""} in {steps}; {memory};
{stream.positions} positions.

| who | {" | ".join(SHOWN)} |
|---|{"---|" * len(SHOWN)}
{rows}
Videos of {LONGEST} latent frames, by quarter: joint {quarters}; right {right}.

"""


def row(name: str, values: Mapping[str, float], keys: tuple[str, ...]) -> str:
    """A line of a table."""
    return f"| {name} | " + " | ".join(f"{values[key]:.3f}" for key in keys) + " |\n"
