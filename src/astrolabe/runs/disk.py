"""How much disk the checkpoints of a run take, known before its first step."""

from __future__ import annotations

import shutil

import torch
from torch import Tensor

from astrolabe.experiment import ModelSettings, TrainConfig
from astrolabe.models.lora import lora_parameters
from astrolabe.models.settings import ReleasedSettings
from astrolabe.models.wan.config import WanConfig
from astrolabe.runs.folder import RunFolder
from astrolabe.runtime.device import torch_dtype
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import nearest_folder, size

COPIES = 3 + 2  # the slots, and two moments of the optimiser, in float32
WAN_VAE_WIDTH = 96


def checkpoint_bytes(cfg: TrainConfig, wan: WanConfig) -> int:
    """Bytes of the largest checkpoint: in the middle of a stream it holds the stream too."""
    adapters = COPIES * 4 * lora_parameters(wan, cfg.lora.rank)
    return adapters + (cfg.rollout.prompts * stream_bytes(cfg, wan) if cfg.window.per_stream > 1 else 0)


def stream_bytes(cfg: TrainConfig, wan: WanConfig) -> int:
    """Bytes of what one stream goes on from: the cache, what the decoder carries, and pixels that are still judged."""
    model, length = cfg.model, cfg.window.length
    _, rows, columns = model.latent_shape
    frames = min(model.stream.window_frames or length, length)
    cache = wan.cache_bytes(1, frames, rows * columns // 4, torch_dtype(model.dtype, model.place).itemsize)
    judged = cfg.window.credit > 0 or any(reward.span == "video" for reward in cfg.rewards)
    return cache + decoder_bytes(model) + judged * model.stream.video_frames(length) * 3 * 64 * rows * columns


def decoder_bytes(model: ModelSettings) -> int:
    """Bytes of what the decoder carries from chunk to chunk of one video: it is run without numbers."""
    if not isinstance(model, ReleasedSettings):
        return 0  # the embedded codec carries a few frames of 64 pixels
    from diffusers import AutoencoderKLWan

    from astrolabe.models.wan.vae import WanVAE

    dtype = torch_dtype(model.dtype, model.place)
    with torch.device("meta"):
        vae = AutoencoderKLWan(base_dim=WAN_VAE_WIDTH).requires_grad_(False)
        torch.nn.Module.to(vae, dtype)  # its own ``to`` warns of weights that no Wan has
        _, state = WanVAE(vae, model.vae_tile).decode(torch.empty(1, 2, *model.latent_shape, dtype=dtype))
    return sum(value.nbytes for part in state.features for value in part if isinstance(value, Tensor))


def check_disk(cfg: TrainConfig, wan: WanConfig, folder: RunFolder) -> str:
    """What the checkpoints take that will lie there at once; UserError when there is no room for those to come."""
    one, count = checkpoint_bytes(cfg, wan), cfg.checkpoints_kept + 1  # one is written before the oldest goes
    place = nearest_folder(folder.path)
    free, needed = shutil.disk_usage(place).free, one * (count - min(len(folder.steps), cfg.checkpoints_kept))
    if free < needed:
        fewer = "" if cfg.checkpoints_kept == 1 else " or lower checkpoints_kept"
        raise UserError(
            f"{size(needed)} are needed at {place} for checkpoints of {size(one)} each, {count} at once, and "
            f"{size(free)} are free; name another --out{fewer}"
        )
    return f"{size(one * count)} at {place} for {count} checkpoints of {size(one)} at once"
