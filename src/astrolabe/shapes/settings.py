"""The embedded world and its model in numbers, and the model as a configuration names it. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from astrolabe.models.wan.config import StreamConfig, WanConfig
from astrolabe.runtime.config import config, setting
from astrolabe.runtime.device import Dtype

if TYPE_CHECKING:
    from astrolabe.models.wan.generator import WanGenerator

CANVAS = 64  # pixels, each way
FPS = 16
GROUP = 4  # video frames in a latent frame
PATCH = 8  # pixels, each way, in a latent pixel
LATENT_CHANNELS = 16
SHORTEST = 9  # frames that the oracles need: half a period of a bounce or a pulse
WAN = WanConfig(dim=192, ffn_dim=768, num_heads=6, num_layers=5, freq_dim=128, text_dim=64)
LATENT_SHAPE = (LATENT_CHANNELS, CANVAS // PATCH, CANVAS // PATCH)
CLIP_FRAMES = 12  # latent frames of a short clip: 45 video frames, 2.8 seconds
LONGEST = 48  # latent frames of the videos that the models were trained on: 189 video frames, 11.8 seconds
ShapesName = Literal["shapes", "shapes-framewise", "shapes-2step"]
_FRAMEWISE = StreamConfig(
    chunk_frames=1,
    window_frames=LONGEST,
    sink_frames=0,
    positions="absolute",
    shift=5.0,
    denoising_steps=(1000, 750, 500, 250),
)
STREAMS: dict[ShapesName, StreamConfig] = {
    # as LongLive: chunks of three frames that see the first ones for ever, and the recent ones
    "shapes": StreamConfig(
        chunk_frames=3,
        window_frames=12,
        sink_frames=3,
        positions="relative",
        shift=5.0,
        denoising_steps=(1000, 750, 500, 250),
    ),
    # as Causal-Forcing frame by frame: all is remembered, as far as it was trained
    "shapes-framewise": _FRAMEWISE,
    # as Causal-Forcing++: the first frame in four steps, the others in two
    "shapes-2step": replace(_FRAMEWISE, denoising_steps=(1000, 500), first_chunk_steps=(1000, 750, 500, 250)),
}
STREAM = STREAMS["shapes"]


@config
class ShapesSettings:
    """One of the embedded models."""

    clip_frames: ClassVar[int] = CLIP_FRAMES  # latent frames of the clips that it was made for
    oracles: ClassVar[bool] = True  # whether the oracles of the shapes world can judge its videos
    lists: ClassVar[tuple[str, ...]] = ("train",)  # of prompts that it brings along
    light: ClassVar[bool] = True  # small enough to be held by several processes at once

    name: ShapesName = setting("model; those named shapes are embedded in the package", default="shapes")
    dtype: Dtype = setting(
        "what the frozen base computes in; `auto` is bfloat16 where the machine multiplies it natively", default="auto"
    )
    device: str = setting("where it runs: cpu, cuda, cuda:1", default="cpu", affects="rounding")

    @property
    def place(self) -> str:
        """The device."""
        return self.device

    @property
    def stream(self) -> StreamConfig:
        """How it streams."""
        return STREAMS[self.name]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of one latent frame."""
        return LATENT_SHAPE

    def open(self, live: bool = False) -> WanGenerator:
        """The generator, on its device; it reads any prompt of its world, ``live`` or not."""
        from astrolabe.shapes.model import open_shapes_model

        return open_shapes_model(self)

    def check_trainable(self) -> None:
        """It streams as it is trained."""

    def own_prompts(self, name: str) -> list[str] | None:
        """The captions of its training scenes (`train`)."""
        if name not in self.lists:
            return None
        from astrolabe.shapes.captions import WORDINGS, caption, split

        return [caption(scene, index % WORDINGS) for index, scene in enumerate(split("train") * WORDINGS)]

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """UserError for a prompt that its oracles could not judge."""
        from astrolabe.shapes.captions import parse

        for text in prompts:
            parse(text)
