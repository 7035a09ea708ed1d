"""Video files: written as H.264 in mp4, read as players show them."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import write_whole
from astrolabe.runtime.viewing import Pixels, at_rate, covering, rate_of, squared

FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}  # playable as far as it has been written


class Mp4Writer:
    """Writes a video as its frames come: to ``NAME.part.mp4``, playable at any time, until ``finish`` names it."""

    def __init__(self, path: Path, fps: int, scale: int = 1):
        self.path, self.partial = path, path.with_suffix(".part.mp4")
        self.fps, self.scale, self.frames = fps, scale, 0
        self._container: Any = av.open(str(self.partial), "w", format="mp4", options=FRAGMENTS)
        self._stream: Any = None

    def write(self, video: Tensor) -> None:
        """Append frames [t, 3, y, x] (uint8, or float in [0, 1])."""
        if self._stream is None:
            self._stream = add_stream(self._container, video, self.fps, self.scale, gop=self.fps)
        put(self._container, self._stream, video, self.scale)
        self.frames += len(video)

    def finish(self) -> None:
        """The video is whole: give it its name."""
        self.close()
        self.partial.replace(self.path)

    def close(self) -> None:
        """Stop where it is; what was written stays, under the partial name."""
        if self._container is not None:
            if self._stream is not None:
                self._container.mux(self._stream.encode())
            self._container.close()
            self._container = None


def add_stream(container: Any, video: Tensor, fps: int, scale: int, gop: int | None = None) -> Any:
    """A stream of H.264 of the size of ``video`` [t, 3, y, x]; ``gop``: frames from one key frame to the next."""
    options = {"crf": "16", "preset": "veryfast"} | ({"g": str(gop)} if gop else {})
    stream = container.add_stream("libx264", rate=fps, options=options)
    stream.height, stream.width, stream.pix_fmt = video.shape[2] * scale, video.shape[3] * scale, "yuv420p"
    return stream


def put(container: Any, stream: Any, video: Tensor, scale: int) -> None:
    """Encode frames."""
    pixels = video if video.dtype == torch.uint8 else (video * 255).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    for frame in pixels.permute(0, 2, 3, 1).cpu().numpy():
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))


def encode_mp4(file: IO[bytes], video: Tensor, fps: int, scale: int = 1) -> None:
    """Write ``video`` [t, 3, y, x] (uint8, or float in [0, 1]) to ``file``, every pixel ``scale`` x ``scale`` large."""
    with av.open(file, "w", format="mp4") as container:
        stream = add_stream(container, video, fps, scale)
        put(container, stream, video, scale)
        container.mux(stream.encode())


def mp4_bytes(video: Tensor, fps: int, scale: int = 1) -> bytes:
    """An mp4 file in memory; see ``encode_mp4``."""
    buffer = io.BytesIO()
    encode_mp4(buffer, video, fps, scale)
    return buffer.getvalue()


def write_mp4(path: Path, video: Tensor, fps: int, scale: int = 1) -> None:
    """An mp4 file on disk, whole or not at all; see ``encode_mp4``."""
    write_whole(path, mp4_bytes(video, fps, scale))


def side_by_side(videos: Tensor, columns: int = 6) -> Tensor:
    """Videos [n, t, 3, y, x] as one [t, 3, rows of y, columns of x], row by row; places that are left are black."""
    count, frames, channels, height, width = videos.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = videos.new_zeros(rows * columns, frames, channels, height, width)
    grid[:count] = videos
    grid = grid.view(rows, columns, frames, channels, height, width).permute(2, 3, 0, 4, 1, 5)
    return grid.reshape(frames, channels, rows * height, columns * width)


def gif_bytes(video: Tensor, fps: int) -> bytes:
    """``video`` [t, 3, y, x] (uint8) as a GIF that repeats, in memory. A GIF counts hundredths of a second."""
    pictures = [Image.fromarray(frame) for frame in video.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], duration=10 * round(100 / fps), loop=0, optimize=False
    )
    return buffer.getvalue()


def read_last_frames(path: Path, most: int, height: int, width: int, rate: float | None = None) -> Tensor:
    """The last frames (at most ``most``) of a video, or an image as one frame: [t, 3, height, width] in [0, 1].

    Seen at ``rate`` frames a second (None: all there are), scaled to cover the size and cut in the middle; see
    ``runtime.viewing``. UserError for a file that cannot be read as either.
    """
    last = deque(at_rate(path, rate), maxlen=most)
    pixels = {id(frame): covering(frame, height, width) for frame in last}  # a frame may stand for several
    return stacked(path, [pixels[id(frame)] for frame in last]).float() / 255


def read_frames(path: Path, rate: float | None = None) -> Tensor:
    """Every frame of a video (or an image, as one) at its own size: [t, 3, y, x] in [0, 1]. UserError for a file that
    cannot be read as either."""
    return stacked(path, list(frames_at(path, rate))).float() / 255


def frames_at(path: Path, rate: float | None = None) -> Iterator[Pixels]:
    """Frames [y, x, 3] of a video (or an image, as one) as they come, seen at ``rate`` frames a second. UserError for a
    file that cannot be read as either."""
    before, pixels = None, None
    for frame in at_rate(path, rate):
        pixels = squared(frame) if frame is not before or pixels is None else pixels
        before = frame
        yield pixels


def frame_rate(path: Path) -> float:
    """Frames a second, as a video says itself; 0 for an image. UserError for a file that cannot be read as either."""
    return rate_of(path)


def stacked(path: Path, frames: Sequence[Pixels]) -> Tensor:
    """Frames as one tensor [t, 3, y, x] of bytes; UserError when there is none, or they are of several sizes."""
    if not frames:
        raise UserError(f"{path}: has no frames")
    if len(sizes := {frame.shape[:2] for frame in frames}) > 1:
        named = " and ".join(f"{width} x {height}" for height, width in sorted(sizes))
        raise UserError(f"{path}: its frames are of {named} pixels; write it anew at one size")
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
