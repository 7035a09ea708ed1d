"""The model card: held-out scores of teacher and student, the files that ship, and their hashes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astrolabe.evaluation.suites import MEASURES, Suite, verdicts
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.pretrain.codec import psnr
from astrolabe.pretrain.sampling import sample_many_steps
from astrolabe.rollout.videos import generate, video_noise
from astrolabe.runtime.checkpoint import load_tensors, save_tensors
from astrolabe.shapes.captions import split
from astrolabe.shapes.codec import Codec
from astrolabe.shapes.model import build
from astrolabe.shapes.oracles import judge
from astrolabe.shapes.settings import CLIP_FRAMES
from astrolabe.shapes.world import ALL_SCENES, render

SEEDS = (21, 22, 23, 24)
MANY_STEPS = 32
GUIDANCE = 1.0
PARTS = {"transformer": ("transformer.", "text_encoder."), "codec": ("codec.",)}


def write(out: Path, build_folder: Path, teacher: dict[str, Tensor], student: dict[str, Tensor], plans: Any) -> None:
    """Ship the student as float16 files in ``out``, score what was shipped, and write ``card.json`` and ``CARD.md``."""
    out.mkdir(parents=True, exist_ok=True)
    for name, prefixes in PARTS.items():
        part = {k: v.half() if v.is_floating_point() else v for k, v in student.items() if k.startswith(prefixes)}
        save_tensors(out / f"{name}.safetensors", part, {"part": name})
    shipped = {key: value for name in PARTS for key, value in load_tensors(out / f"{name}.safetensors")[0].items()}
    models = {"teacher": build(teacher, torch.bfloat16), "student": build(shipped, torch.bfloat16)}
    card = {
        "parameters": {part: count(shipped, part) for part in ("transformer.", "text_encoder.", "codec.")},
        "plans": plans,
        "seconds": {path.stem: int(load_tensors(path)[1]["seconds"]) for path in build_folder.glob("*.safetensors")},
        "machine": ", ".join(
            (
                f"{torch.get_num_threads()} threads",
                torch.backends.cpu.get_cpu_capability(),
                f"torch {torch.__version__}",
            )
        ),
        "held_out": {"split": "test", "scenes": len(split("test")), "seeds": list(SEEDS), "scores": held_out(models)},
        "ground_truth": ground_truth(models["student"]),
        "files": {f"{name}.safetensors": sha256(out / f"{name}.safetensors") for name in PARTS},
    }
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (out / "CARD.md").write_text(as_markdown(card), encoding="utf-8")
    print(as_markdown(card))


def count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Numbers held under a prefix."""
    return sum(value.numel() for key, value in tensors.items() if key.startswith(prefix))


def sha256(path: Path) -> str:
    """Hash of a file's bytes, hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@torch.no_grad()
def held_out(models: Mapping[str, WanGenerator]) -> dict[str, dict[str, float]]:
    """Mean oracle scores on the test scenes of: the many-step teacher, the teacher in four steps, the student."""
    return {
        f"teacher, {MANY_STEPS} steps, guidance {GUIDANCE}": scores_of(models["teacher"], MANY_STEPS),
        "teacher, 4 steps (undistilled)": scores_of(models["teacher"], None),
        "student, 4 steps": scores_of(models["student"], None),
    }


def scores_of(
    model: WanGenerator, steps: int | None, name: str = "test", seeds: tuple[int, ...] = SEEDS
) -> dict[str, float]:
    """Mean of every measure; ``steps`` None is the model's own few-step sampler."""
    suite = Suite(name, seeds, CLIP_FRAMES)
    judged, began = [], time.monotonic()
    for seed in suite.seeds:
        text, noise = model.encode_text(suite.prompts(seed)), video_noise(seed, range(len(suite.scenes)))
        if steps is None:
            _, video = generate(model, text, suite.frames, noise)
        else:
            video, _ = model.decode(sample_many_steps(model, text, suite.frames, noise, steps, GUIDANCE))
        judged.append(verdicts(video, suite.scenes))
    means = torch.stack(judged).mean((0, 2)).tolist()
    return {m: round(v, 4) for m, v in zip(MEASURES, means, strict=True)} | {
        "seconds": round(time.monotonic() - began, 1)
    }


@torch.no_grad()
def ground_truth(model: WanGenerator) -> dict[str, float]:
    """Joint oracle on rendered videos of every scene, and on the same after the codec."""
    video = render(ALL_SCENES, 1 + 4 * (CLIP_FRAMES - 1), torch.Generator().manual_seed(0))
    assert isinstance(model.codec, Codec)
    decoded = torch.cat([model.decode(model.codec.encode(part))[0] for part in video.split(32)])
    return {
        "rendered": round(judge(video, ALL_SCENES)["joint"].mean().item(), 4),
        "through_codec": round(judge(decoded, ALL_SCENES)["joint"].mean().item(), 4),
        "codec_psnr_db": round(psnr(decoded, video), 2),
    }


def as_markdown(card: dict[str, Any]) -> str:
    """The card for people."""
    scores = card["held_out"]["scores"]
    undistilled, student = (scores[name]["joint"] for name in ("teacher, 4 steps (undistilled)", "student, 4 steps"))
    heads = " | ".join(MEASURES)
    rows = "\n".join(
        f"| {name} | " + " | ".join(f"{row[m]:.3f}" for m in MEASURES) + " |" for name, row in scores.items()
    )
    stages = ", ".join(f"{name} {seconds} s" for name, seconds in card["seconds"].items())
    files = "\n".join(f"- `{name}` sha256 `{digest}`" for name, digest in card["files"].items())
    truth, sizes, plans = card["ground_truth"], card["parameters"], card["plans"]
    emphasis = ", ".join(f"{word} x {factor:g}" for word, factor in plans["student"]["emphasis"])
    return f"""# The embedded shapes model

A causal Wan ({sizes["transformer."]:,} parameters) with a word-level text encoder
({sizes["text_encoder."]:,}) on a light causal codec ({sizes["codec."]:,}). It makes 64x64 videos of moving
coloured shapes, 3 latent frames at a time, in four denoising steps. It exists to try Astrolabe without a GPU, and it is
decent and flawed on purpose: alignment has work to do.

**Data.** Rendered videos of the 152 training scenes (colour x shape x motion); 28 validation and 44 test scenes never
occur in the training of the transformer, only in that of the codec.

**Training** (`make shapes`, seed {plans["codec"]["seed"]}; {stages}; {card["machine"]}).
Codec: {plans["codec"]["steps"]} steps. Teacher: {plans["teacher"]["steps"]} steps of flow matching with clean context.
Student: {plans["student"]["rounds"]} rounds of flow matching at the four warped levels, every
{plans["student"]["match_every"]}th also of distribution matching on its own four-step rollouts. Drawn
more often than others: {emphasis}.

**Held-out scores** ({card["held_out"]["scenes"]} test scenes x {len(card["held_out"]["seeds"])} noise seeds)

| model | {heads} |
|---|{"---|" * len(MEASURES)}
{rows}

In four steps the distilled student scores {student:.3f} on the joint oracle and the undistilled network
{undistilled:.3f}: {student - undistilled:+.3f}.
Rendered ground truth scores {truth["rendered"]:.3f} on it, and {truth["through_codec"]:.3f} after the codec
({truth["codec_psnr_db"]:.1f} dB).

**Files**

{files}
"""
