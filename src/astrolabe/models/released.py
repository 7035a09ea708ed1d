"""The released distilled autoregressive video models, as data: each is one configuration of the one causal Wan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from astrolabe.models.wan.config import StreamConfig, WanConfig
from astrolabe.runtime.errors import UserError, nearest

WAN_1_3B = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, freq_dim=256, text_dim=4096)
WAN_14B = WanConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, freq_dim=256, text_dim=4096)
PARAMETERS = {WAN_1_3B: 1.419e9, WAN_14B: 14.29e9}
LATENT_SHAPE = (16, 60, 104)  # 480 x 832 pixels
FRAME_TOKENS = 60 * 104 // 4

WAN_REPOSITORY = "Wan-AI/Wan2.1-T2V-1.3B"
VAE_FILE = "Wan2.1_VAE.pth"
TEXT_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER_FILE = "google/umt5-xxl/tokenizer.json"
BESIDE_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "spiece.model")


CHUNKWISE = StreamConfig(
    chunk_frames=3,
    window_frames=None,
    sink_frames=0,
    positions="absolute",
    shift=5.0,
    denoising_steps=(1000, 750, 500, 250),
)
FRAMEWISE = replace(CHUNKWISE, chunk_frames=1)


@dataclass(frozen=True)
class ReleasedModel:
    """One released checkpoint: where it lies, which of its weights its authors use, and how it streams.

    ``containers`` are tried in order; ``lora`` is an adapter of the same repository that belongs to the model.
    """

    name: str
    repository: str
    file: str
    containers: tuple[str, ...]
    wan: WanConfig
    stream: StreamConfig
    licence: str
    note: str = ""
    lora: str | None = None
    lora_rank: int | None = None  # of that adapter

    @property
    def weight_bytes(self) -> int:
        """Bytes of the transformer in bfloat16."""
        return int(2 * PARAMETERS[self.wan])

    def cache_bytes(self, seconds: float) -> int:
        """Bytes of the key-value cache of one 480 x 832 stream that has run for so many seconds, in bfloat16."""
        frames = self.stream.latent_frames(int(seconds * self.stream.fps))
        if self.stream.window_frames is not None:
            frames = min(frames, self.stream.window_frames)
        return self.wan.cache_bytes(1, frames, FRAME_TOKENS, itemsize=2)


RELEASED: dict[str, ReleasedModel] = {
    model.name: model
    for model in (
        ReleasedModel(
            "self-forcing", "gdhe17/Self-Forcing", "checkpoints/self_forcing_dmd.pt", ("generator_ema", "generator"),
            WAN_1_3B, CHUNKWISE, "see its repository; its code is non-commercial",
            "trained on 21 latent frames: for more, use relative positions and a window of 21",
        ),
        ReleasedModel(
            "causal-forcing", "zhuhz22/Causal-Forcing", "chunkwise/causal_forcing.pt", ("generator",),
            WAN_1_3B, CHUNKWISE, "Apache-2.0", "trained on 21 latent frames",
        ),
        ReleasedModel(
            "causal-forcing-framewise", "zhuhz22/Causal-Forcing", "framewise/causal_forcing.pt", ("generator_ema",),
            WAN_1_3B, FRAMEWISE, "Apache-2.0", "goes on from an image",
        ),
        ReleasedModel(
            "causal-forcing-2step", "zhuhz22/Causal-Forcing", "causal-forcing++/framewise-2step.pt",
            ("generator_ema",), WAN_1_3B,
            replace(FRAMEWISE, denoising_steps=(1000, 500), first_chunk_steps=(1000, 750, 500, 250)),
            "Apache-2.0", "two steps a frame, four in the first",
        ),
        ReleasedModel(
            "causal-forcing-1step", "zhuhz22/Causal-Forcing", "causal-forcing++/framewise-1step.pt",
            ("generator_ema",), WAN_1_3B,
            replace(FRAMEWISE, denoising_steps=(1000,), first_chunk_steps=(1000, 750, 500, 250)),
            "Apache-2.0", "one step a frame, four in the first",
        ),
        ReleasedModel(
            "longlive", "Efficient-Large-Model/LongLive-1.3B", "models/longlive_base.pt", ("generator",),
            WAN_1_3B, replace(CHUNKWISE, window_frames=12, sink_frames=3), "CC-BY-NC-SA 4.0",
            "the base with its adapter, which stays frozen under the one that is trained",
            lora="models/lora.pt", lora_rank=256,
        ),
        ReleasedModel(
            "krea-realtime-14b", "krea/krea-realtime-video", "krea-realtime-video-14b.safetensors", ("",),
            WAN_14B, CHUNKWISE, "see its repository",
            "its server rebuilds the cache from the last 3 clean frames before each chunk: --model.rebuild_frames 3",
        ),
    )
}  # fmt: skip


def released(name: str) -> ReleasedModel:
    """The entry of the table; UserError with the nearest names for one that it does not have. ``self_forcing`` and
    ``krea_realtime``, as recipes are called, will do."""
    name = name.replace("_", "-")
    name = next((known for known in RELEASED if known in (name, f"{name}-14b")), name)
    if name not in RELEASED:
        raise UserError(f"model {name!r} is unknown{nearest(name, RELEASED)}; there are: shapes, {', '.join(RELEASED)}")
    return RELEASED[name]


def table(names: Sequence[str] = tuple(RELEASED)) -> list[dict[str, str]]:
    """What ``astrolabe models`` shows: one row a model."""
    rows = []
    for model in (released(name) for name in names):
        cache = model.cache_bytes(model.stream.seconds(21))
        rows.append(
            {
                "name": model.name,
                "files": f"{model.repository}: {model.file}" + (f" + {model.lora}" if model.lora else ""),
                **streaming(model.stream),
                "memory": f"{model.weight_bytes / 1e9:.1f} GB + {cache / 1e9:.1f} GB cache (5 s)",
                "licence": model.licence,
                "note": model.note,
            }
        )
    return rows


def streaming(stream: StreamConfig) -> dict[str, str]:
    """How a model streams, in the words of ``table``."""
    steps = "/".join(str(step) for step in stream.denoising_steps)
    if stream.first_chunk_steps:
        steps += f" (first chunk {'/'.join(str(step) for step in stream.first_chunk_steps)})"
    return {
        "chunk": str(stream.chunk_frames),
        "window": "all" if stream.window_frames is None else str(stream.window_frames),
        "sink": str(stream.sink_frames),
        "steps": steps,
    }
