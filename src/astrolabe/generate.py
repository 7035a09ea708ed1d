"""``astrolabe generate``: videos of the bare model or of a run, as mp4 files with a JSON line each."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from astrolabe.experiment import ModelSettings, make_generator
from astrolabe.models.base import Generator
from astrolabe.rollout.group import generate as stream_videos
from astrolabe.rollout.group import video_noise
from astrolabe.runs import RunFolder, open_run
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.video import write_mp4
from astrolabe.shapes.model import CLIP_FRAMES
from astrolabe.shapes.world import FPS


def generate(prompts: Sequence[str], run: Path | None, frames: int | None, seed: int, out: Path) -> list[Path]:
    """One mp4 a prompt in ``out`` (made, never overwritten), and ``videos.jsonl`` with a line a video.

    Raises UserError for words that the model's world does not know, frames that no chunking fits, or files in the way.
    """
    generator: Generator
    if run is None:
        generator, policies, length, name = make_generator(ModelSettings()), None, CLIP_FRAMES, ModelSettings().name
    else:
        cfg, generator, policies = open_run(RunFolder(run))
        length, name = cfg.rollout.frames, cfg.model.name
    length = length if frames is None else frames
    generator.stream.chunks(length)
    text = generator.encode_text(prompts)
    paths = [out / f"{index:04d}.mp4" for index in range(len(prompts))]
    taken = [str(path) for path in (*paths, out / "videos.jsonl") if path.exists()]
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder with --out")
    if taken:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise UserError(f"{taken[0]} exists{more}; name a new folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    with (out / "videos.jsonl").open("a", encoding="utf-8") as lines:
        for index, (prompt, path) in enumerate(zip(prompts, paths, strict=True)):
            began = time.monotonic()
            with policies.using("learner") if policies else nullcontext(), torch.no_grad():
                _, video = stream_videos(generator, text[index : index + 1], length, video_noise(seed, [index]))
            seconds = time.monotonic() - began
            write_mp4(path, video[0], FPS, scale=4)
            line: dict[str, Any] = {
                "prompt": prompt, "file": path.name, "seed": seed, "video": index, "model": name,
                "adapter": str(run) if run else None, "frames": video.shape[1], "seconds": round(seconds, 3),
                "frames_per_second": round(video.shape[1] / seconds, 1),
            }  # fmt: skip
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
            lines.flush()
    return paths
