"""``python -m benchmarks.generation``: how fast a stream comes, and that its memory does not grow with its length.

    --size tiny | 1.3B | 14B     random weights of that size
    --frames 21 84 336 ...       lengths in latent frames, each in a process of its own
    --device cpu | cuda          --dtype bfloat16 | float32
    --window 12 --sink 3         how much of its past the stream sees

Peak memory is taken while streaming, after a warm-up of one window: the allocator's on a GPU; on a CPU the largest
resident size after any chunk, with large blocks given back to the system at once (else it measures how fragmented the
heap happens to be). Every chunk is decoded as it comes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan

from astrolabe.models.released import WAN_1_3B, WAN_14B
from astrolabe.models.wan.config import StreamConfig, WanConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.models.wan.transformer import CausalWan
from astrolabe.models.wan.vae import WanVAE
from astrolabe.rollout.live import PlacedNoise, VideoStream
from astrolabe.runtime.arguments import Parser, new_file, one_of, run_program, whole
from astrolabe.runtime.device import check_device
from benchmarks.measuring import resident
from benchmarks.provenance import write_result

SIZES = {
    "tiny": (WanConfig(dim=128, ffn_dim=256, num_heads=1, num_layers=4, freq_dim=64, text_dim=64), (16, 4, 8), 4),
    "1.3B": (WAN_1_3B, (16, 60, 104), 96),
    "14B": (WAN_14B, (16, 60, 104), 96),
}
CHUNK = 3  # latent frames
LENGTHS = (21, 84, 336, 1344, 4098)
# Large blocks are given back at once; small ones are not, which would cost speed.
LARGE_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144", "MALLOC_ARENA_MAX": "1"}
RESULT = Path("benchmarks/results/generation.json")


def streaming(args: argparse.Namespace) -> StreamConfig:
    """How it streams; UserError when its window cannot hold the sink."""
    return StreamConfig(CHUNK, args.window, args.sink, "relative", 5.0, (1000, 750, 500, 250))


def build(args: argparse.Namespace) -> WanGenerator:
    """A model of random weights, made on its device."""
    config, shape, width = SIZES[args.size]
    dtype = getattr(torch, args.dtype)
    stream = streaming(args)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(args.device):
        transformer = CausalWan(config).requires_grad_(False).eval()
        vae = AutoencoderKLWan(base_dim=width).requires_grad_(False).eval()
    torch.set_default_dtype(torch.float32)
    return WanGenerator(transformer, stream, shape, codec=WanVAE(vae))


@torch.no_grad()
def one(args: argparse.Namespace, frames: int) -> dict[str, Any]:
    """Stream one video of so many latent frames."""
    model = build(args)
    on_gpu = torch.device(args.device).type == "cuda"
    text = torch.randn(1, 512 if on_gpu else 16, model.transformer.config.text_dim).to(model.device, model.dtype)
    warm = VideoStream(model, text, PlacedNoise(1, [0]))
    for _ in range(1 + (args.window or CHUNK) // CHUNK):
        warm.step()
    del warm
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    stream = VideoStream(model, text, PlacedNoise(0, [0]))
    began, shown, first, peak = time.monotonic(), 0, 0.0, 0
    for _ in range(frames // CHUNK):
        video = stream.step().video
        assert video is not None
        shown += video[0].cpu().shape[0]  # as a viewer has it
        first = first or time.monotonic() - began
        peak = max(peak, torch.cuda.max_memory_allocated() if on_gpu else resident())
    seconds = time.monotonic() - began
    return {
        "latent_frames": frames,
        "video_frames": shown,
        "seconds": round(seconds, 2),
        "first_chunk_seconds": round(first, 4),
        "frames_per_second": round(shown / seconds, 2),
        "peak_bytes": peak,
        "cache_bytes": stream.cache.nbytes,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Every length, then the JSON."""
    parser = Parser(prog="python -m benchmarks.generation", description=__doc__)
    parser.add_argument("--size", type=one_of(SIZES), default="tiny")
    parser.add_argument("--frames", type=whole(CHUNK, multiple_of=CHUNK), nargs="+", default=LENGTHS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", type=one_of(("bfloat16", "float32")), default="float32")
    parser.add_argument("--window", type=whole(CHUNK), default=12)
    parser.add_argument("--sink", type=whole(0), default=3)
    parser.add_argument("--out", type=new_file, default=RESULT)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.read(argv)
    check_device(args.device, "--device")
    streaming(args)
    if args.alone:
        print(json.dumps(one(args, args.frames[0])))
        return
    rows = []
    for frames in args.frames:
        words = ["--size", args.size, "--frames", str(frames), "--device", args.device, "--dtype", args.dtype,
                 "--window", str(args.window), "--sink", str(args.sink)]  # fmt: skip
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.generation", "--alone", *words],
            env=os.environ | LARGE_BLOCKS,
            check=True,
            capture_output=True,
            text=True,
        )
        rows.append(json.loads(child.stdout))
        print(rows[-1], flush=True)
    peaks = [row["peak_bytes"] for row in rows]
    what = {"size": args.size, "dtype": args.dtype, "device": args.device, "window": args.window, "sink": args.sink}
    growth = max(peaks) / peaks[0] - 1
    print(f"peak memory grows by {growth:.2%} from {args.frames[0]} to {args.frames[-1]} latent frames")
    write_result(args.out, " ".join(["python -m benchmarks.generation", *sys.argv[1:]]),
                 what | {"runs": rows, "memory_growth": round(growth, 4)})  # fmt: skip


if __name__ == "__main__":
    run_program(main)
