"""A released model, as a configuration names it: where its files are, and how it streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from astrolabe.models.released import TEXT_FILE, VAE_FILE, released
from astrolabe.models.wan.config import StreamConfig
from astrolabe.runtime.config import config, setting
from astrolabe.runtime.device import Dtype, usual_device
from astrolabe.runtime.errors import UserError

if TYPE_CHECKING:
    from astrolabe.models.wan.generator import WanGenerator

PIXELS = 16  # rows and columns of a token: the VAE makes 8 one, the patch 2
ReleasedName = Literal[
    "self-forcing", "causal-forcing", "causal-forcing-framewise", "causal-forcing-2step", "causal-forcing-1step",
    "longlive", "krea-realtime-14b",
]  # fmt: skip  # fmt: skip


@config
class ReleasedSettings:
    """A released model: where its files are, and how it streams."""

    clip_frames: ClassVar[int] = 21  # latent frames of the clips that the released models were distilled on
    oracles: ClassVar[bool] = False  # whether the oracles of the shapes world can judge its videos
    lists: ClassVar[tuple[str, ...]] = ()  # of prompts that it brings along
    light: ClassVar[bool] = False  # small enough to be held by several processes at once

    name: ReleasedName = setting("model; `astrolabe models` shows them all")
    weights: str = setting(
        "its checkpoint: a file, a folder or a hub id; empty: its authors' on the hub", default="", path=True
    )
    container: Literal["own", "generator", "generator_ema", "ema", "state_dict", "model", "module", "flat"] = setting(
        "which weights of a checkpoint that has several; `own`: those that its authors use, `flat`: those at its top",
        default="own",
    )
    adapter: str = setting(
        "adapter that belongs to the model and stays frozen (PEFT folder or LoRA file); empty: its authors', if it has "
        "one; `none`: none", default="", path=True)  # fmt: skip
    wan: str = setting(
        f"folder or hub id with {VAE_FILE} and {TEXT_FILE}; empty: Wan's on the hub", default="", path=True
    )
    text_cache: str = setting(
        "folder of embedded prompts, which `astrolabe embed` fills", default="text_cache", path=True
    )
    height: int = setting("height of the video, a multiple of 16", unit="pixels", default=480, ge=PIXELS)
    width: int = setting("width of the video, a multiple of 16", unit="pixels", default=832, ge=PIXELS)
    window_frames: int | None = setting(
        "latent frames that a chunk sees, itself included; 0: all there are; none: as many as the model was made for",
        default=None, ge=0,
    )  # fmt: skip
    sink_frames: int | None = setting(
        "first latent frames that stay visible for ever; none: as many as the model was made for", default=None, ge=0
    )
    positions: Literal["own", "absolute", "relative"] = setting(
        "positions of cached frames: absolute in the video, or relative to the current chunk (for videos longer than "
        "those of training); own: as the model was made", default="own",
    )  # fmt: skip
    rebuild_frames: int | None = setting(
        "clean latent frames from which the cache is made anew before every chunk; none: the cache is kept",
        default=None,
        ge=1,
    )
    vae_tile: int | None = setting(
        "decode in tiles of so many latent rows and columns; none: whole frames", default=None, ge=8
    )
    dtype: Dtype = setting(
        "what the frozen base is kept and computes in; `auto` is bfloat16 where the machine multiplies it natively",
        default="auto",
    )
    device: str = setting(
        "where it runs: cpu, cuda, cuda:1; `auto` is the GPU where there is one", default="auto", affects="rounding"
    )

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            if getattr(self, name) % PIXELS:
                raise UserError(f"{name}={getattr(self, name)} is not a multiple of {PIXELS} pixels")

    @property
    def place(self) -> str:
        """The device, with nothing left open."""
        return usual_device() if self.device == "auto" else self.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of one latent frame."""
        return 16, self.height // 8, self.width // 8

    @property
    def stream(self) -> StreamConfig:
        """How it streams: the model's own settings, and what was set instead. UserError when they contradict."""
        stream = released(self.name).stream
        window, sink = stream.window_frames, stream.sink_frames
        return replace(
            stream,
            window_frames=window if self.window_frames is None else self.window_frames or None,
            sink_frames=sink if self.sink_frames is None else self.sink_frames,
            positions=stream.positions if self.positions == "own" else self.positions,
            rebuild_frames=self.rebuild_frames,
        )

    def open(self, live: bool = False) -> WanGenerator:
        """The generator, on its device; prompts come from its text cache, or with ``live`` from wherever: those that
        are new are embedded. UserError for what is missing."""
        from astrolabe.models.opening import open_model

        return open_model(self, live)

    def check_trainable(self) -> None:
        """UserError when training would make another policy than the one that streams."""
        if self.rebuild_frames is not None:
            raise UserError(
                "model.rebuild_frames: training does not rebuild the cache and would train another policy; leave it out"
            )

    def own_prompts(self, name: str) -> list[str] | None:
        """It brings no prompts along: they come from a file."""
        return None

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Any text can be asked for."""
