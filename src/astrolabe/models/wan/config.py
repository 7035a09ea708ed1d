"""The numbers that make one causal Wan: its architecture, and how it streams. No size has a default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from astrolabe.runtime.errors import UserError
from astrolabe.words import Positions

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WanConfig:
    """Sizes of the transformer. Wan 2.1 1.3B: dim 1536, ffn 8960, 12 heads, 30 layers; text 512 x 4096."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    freq_dim: int
    text_dim: int
    in_dim: int = 16
    out_dim: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        """Features of one attention head."""
        return self.dim // self.num_heads

    def cache_bytes(self, batch: int, frames: int, frame_tokens: int, itemsize: int) -> int:
        """Bytes of keys and values of ``frames`` latent frames, of numbers of ``itemsize`` bytes: 287.5 MB a frame and
        video for Wan 1.3B in bfloat16."""
        return 2 * self.num_layers * batch * frames * frame_tokens * self.dim * itemsize


@dataclass(frozen=True)
class StreamConfig:
    """How a model makes video as a stream: what it makes at once, what it remembers, at which levels it denoises.

    ``window_frames`` latent frames are visible in all, the current chunk included (None: every frame so far); the
    first ``sink_frames`` of the video stay visible for ever. Relative positions hold the sink right before the window,
    so that no distance ever exceeds those seen in training. ``first_chunk_steps`` are the first chunk's own steps, for
    models that take fewer later on. With ``rebuild_frames`` the cache is made anew before every chunk, from the last
    so many clean frames alone.

    The decoder makes ``latent_stride`` video frames of a latent frame, but of the first of a video one; ``fps`` of them
    are shown in a second.
    """

    chunk_frames: int
    window_frames: int | None
    sink_frames: int
    positions: Positions
    shift: float
    denoising_steps: tuple[int, ...]
    first_chunk_steps: tuple[int, ...] | None = None
    rebuild_frames: int | None = None
    fps: int = 16
    latent_stride: int = 4

    def __post_init__(self) -> None:
        if self.rebuild_frames is not None and (self.rebuild_frames < 1 or self.rebuild_frames % self.chunk_frames):
            raise UserError(
                f"rebuild_frames={self.rebuild_frames}: expected whole chunks of {self.chunk_frames} latent frames"
            )
        if self.rebuild_frames is not None and self.sink_frames:
            raise UserError(
                f"rebuild_frames forgets all but the last frames, sink_frames={self.sink_frames} too: use 0"
            )
        if self.window_frames is not None and self.window_frames < self.sink_frames + self.chunk_frames:
            raise UserError(
                f"window_frames={self.window_frames} cannot hold sink_frames={self.sink_frames} and a chunk of "
                f"{self.chunk_frames}; it must be at least {self.sink_frames + self.chunk_frames}"
            )

    def video_frames(self, frames: int) -> int:
        """Video frames of a video of so many latent ones."""
        return self.latent_stride * (frames - 1) + 1

    def latent_frames(self, frames: int) -> int:
        """Latent frames that so many video frames begin."""
        return -(-frames // self.latent_stride)

    def seconds(self, frames: int) -> float:
        """Length of a video of so many latent frames."""
        return self.video_frames(frames) / self.fps

    @property
    def levels(self) -> torch.Tensor:
        """Warped sampler levels [k], descending, float64."""
        return self._warped(self.denoising_steps)

    def levels_of(self, chunk: int) -> torch.Tensor:
        """The levels of chunk number ``chunk``: the first may have its own."""
        return self._warped(self.steps_of(chunk))

    def _warped(self, steps: tuple[int, ...]) -> torch.Tensor:
        from astrolabe.flow import sampler_levels  # needs torch, which a configuration does without

        return sampler_levels(steps, self.shift)

    def steps_of(self, chunk: int) -> tuple[int, ...]:
        """The denoising steps of chunk number ``chunk``, before warping."""
        return self.first_chunk_steps if chunk == 0 and self.first_chunk_steps else self.denoising_steps

    def chunks(self, frames: int) -> list[tuple[int, int]]:
        """(first, end) frame of every chunk of a video; UserError when ``frames`` is no multiple of the chunk."""
        size = self.chunk_frames
        if frames < size or frames % size:
            low = max(frames // size, 1) * size
            high = max(low, (frames // size + 1) * size)
            near = f"the nearest is {low}" if low == high else f"the nearest are {low} and {high}"
            raise UserError(f"frames={frames} is not a multiple of chunk_frames={size}; {near} latent frames")
        return [(first, first + size) for first in range(0, frames, size)]
