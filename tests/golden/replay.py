"""Replay golden files: ``python -m tests.golden.replay FILE...`` prints one line a file, ending in the max abs error.

A file holds a tiny random model in the original checkpoint layout, its inputs, and the outputs of the real systems;
its configuration is in its metadata, under ``config`` or, for reward models, ``json``. Exit code 1 when any error
exceeds its tolerance, 2 for a file that cannot be replayed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from astrolabe.models.wan.config import StreamConfig, WanConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.models.wan.text import assemble_umt5, embed
from astrolabe.models.wan.transformer import CausalWan
from astrolabe.models.wan.vae import assemble_vae
from astrolabe.rollout.stream import denoise_chunk
from astrolabe.runtime.arguments import Parser, run_program
from astrolabe.runtime.tensorfile import FLAT, Container, TensorFile, open_tensors
from tests.golden import rewards

TOLERANCE = 2e-4


def read(path: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(configuration, tensors) of a golden file."""
    with safe_open(path, "pt") as file:
        said = file.metadata() or {}
        config = json.loads(said.get("config") or said.get("json") or "{}")
        return config, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def build(config: dict[str, Any], tensors: dict[str, Tensor], latent_shape: Sequence[int]) -> WanGenerator:
    """The model of a golden file, loaded strictly."""
    sizes = ("dim", "ffn_dim", "num_heads", "num_layers", "freq_dim", "text_dim", "in_dim", "out_dim", "eps")
    model = CausalWan(WanConfig(**{name: config[name] for name in sizes}, patch_size=tuple(config["patch_size"])))
    model.load_state_dict({k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")})
    stream = StreamConfig(
        chunk_frames=config["chunk_frames"],
        window_frames=config["local_attn_size"] if config["local_attn_size"] > 0 else None,
        sink_frames=config["sink_size"],
        positions=config.get("positions", "absolute"),
        shift=config.get("shift", 5.0),
        denoising_steps=tuple(config.get("denoising_steps", (1000, 750, 500, 250))),
    )
    channels, height, width = latent_shape
    return WanGenerator(model, stream, (channels, height, width))


@torch.no_grad()
def replay_stream(path: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> float:
    """Largest error over every chunk, step and level of a streamed video."""
    noise = tensors["noise"]
    model = build(config, tensors, noise.shape[2:])
    errors = [(model.stream.levels - tensors["sigmas"]).abs().max()]

    def recorded(chunk: int, step: int, shape: Sequence[int]) -> Tensor:
        first = chunk * shape[1]
        return noise[:, first : first + shape[1]] if step == 0 else tensors[f"chunk{chunk}.step{step - 1}.renoise"]

    text = model.condition(tensors["context"])
    cache = model.new_cache(noise.shape[0], noise.shape[1])
    for index, (first, end) in enumerate(model.stream.chunks(noise.shape[1])):
        shape = (noise.shape[0], end - first, *noise.shape[2:])
        for step, (_, clean, _) in enumerate(denoise_chunk(model, text, cache, recorded, index, shape)):
            errors.append((clean - tensors[f"chunk{index}.step{step}.x0"]).abs().max())
        errors.append((clean - tensors["latents"][:, first:end]).abs().max())
        model.commit(clean, text, cache)
    return float(torch.stack([error.float() for error in errors]).max())


@torch.no_grad()
def replay_forward(path: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> float:
    """Largest error of a one-pass forward."""
    noisy, sigma = tensors["noisy"], tensors["timestep"] / 1000
    model = build(config, tensors, noisy.shape[2:])
    text = model.condition(tensors["context"])
    if config["mode"] == "teacher_forced":
        flow = model.velocity_in_context(noisy, sigma, text, model.context(tensors["clean"], text))
    else:
        flow = model.velocity_block_causal(noisy, sigma, text)
    return float((flow - tensors["flow"]).abs().max())


def weights_of(path: str) -> tuple[TensorFile, Container]:
    """A golden file as a checkpoint: its index, and its weights under their original names."""
    file = open_tensors(path)
    entries = {k.removeprefix("weights."): v for k, v in file.containers[FLAT].items() if k.startswith("weights.")}
    return file, entries


def replay_umt5(path: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> float:
    """Largest error of the text encoder's embeddings."""
    encoder = assemble_umt5(*weights_of(path))
    return float((embed(encoder, tensors["ids"], tensors["mask"]) - tensors["embeds"]).abs().max())


def vae_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """diffusers' arguments of a golden VAE."""
    same = ("z_dim", "dim_mult", "num_res_blocks", "attn_scales", "temperal_downsample", "dropout")
    return {"base_dim": config["dim"]} | {name: config[name] for name in same}


def replay_vae(path: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> float:
    """Largest error of decoding at once, of decoding frame by frame against at once, and of encoding."""
    vae = assemble_vae(*weights_of(path), vae_sizes(config))
    whole, _ = vae.decode(tensors["latents"])
    errors = [whole * 2 - 1 - tensors["pixels"], vae.encode((tensors["encode_pixels"] + 1) / 2) - tensors["encoded"]]
    parts, state = [], None
    for chunk in tensors["latents"].split(1, 1):
        part, state = vae.decode(chunk, state)
        parts.append(part)
    errors.append(torch.cat(parts, 1) - whole)
    return max(float(error.abs().max()) for error in errors)


REPLAYS = {"stream": replay_stream, "forward": replay_forward, "umt5_encoder": replay_umt5, "wan_vae": replay_vae}


def golden_file(word: str) -> str:
    """The type of an argument that names a file which is there."""
    if not Path(word).is_file():
        raise argparse.ArgumentTypeError(f"{word}: no such file")
    return word


def main(argv: Sequence[str] | None = None) -> int:
    """Replay every file; see the module."""
    parser = Parser(prog="python -m tests.golden.replay", description=__doc__)
    parser.add_argument("files", type=golden_file, nargs="+", metavar="FILE")
    failed = False
    for path in parser.read(argv).files:
        config, tensors = read(path)
        kind = config.get("kind")
        if kind not in REPLAYS and kind not in rewards.REPLAYS:
            print(f"{path}: kind {kind!r} cannot be replayed; known kinds: {', '.join([*REPLAYS, *rewards.REPLAYS])}")
            return 2
        if kind in REPLAYS:
            errors = [(REPLAYS[kind](path, config, tensors), TOLERANCE)]
        else:
            errors = rewards.REPLAYS[kind](path, config, tensors)
        well = all(error <= tolerance for error, tolerance in errors)  # nan is not
        failed |= not well
        print(f"{path} {'ok' if well else 'FAILED'} {max(error for error, _ in errors):.3e}", flush=True)
    return int(failed)


if __name__ == "__main__":
    run_program(lambda: sys.exit(main()))
