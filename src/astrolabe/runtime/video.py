"""Video files: H.264 in mp4, by PyAV."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
import torch
from torch import Tensor

from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import write_whole

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


def read_last_frames(path: Path, most: int, height: int, width: int) -> Tensor:
    """The last frames (at most ``most``) of a video, or an image as one frame: [t, 3, height, width] in [0, 1].

    Scaled to cover the size and cut in its middle. UserError for a file that cannot be read as either.
    """
    frames: deque[np.ndarray] = deque(maxlen=most)
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                scale = max(height / frame.height, width / frame.width)
                rows, columns = round(frame.height * scale), round(frame.width * scale)
                whole = frame.reformat(columns, rows, "rgb24", interpolation="BICUBIC").to_ndarray()
                top, left = (rows - height) // 2, (columns - width) // 2
                frames.append(whole[top : top + height, left : left + width])
    except (av.FFmpegError, IndexError) as error:
        raise unreadable(path, error) from None
    return stacked(path, frames)


def read_frames(path: Path) -> Tensor:
    """Every frame of a video (or an image, as one) at its own size: [t, 3, y, x] in [0, 1]. UserError for a file that
    cannot be read as either."""
    try:
        with av.open(str(path)) as container:
            return stacked(path, [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise unreadable(path, error) from None


def frame_rate(path: Path) -> float:
    """Frames a second, as a video says itself; 0 for an image. UserError for a file that cannot be read as either."""
    try:
        with av.open(str(path)) as container:
            return float(container.streams.video[0].average_rate or 0)
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> UserError:
    """What to say of a file that is no video."""
    return UserError(f"{path}: neither an image nor a video that can be read ({error})")


def stacked(path: Path, frames: Collection[np.ndarray]) -> Tensor:
    """Frames as one tensor; UserError when there is none."""
    if not frames:
        raise UserError(f"{path}: has no frames")
    return torch.from_numpy(np.stack(list(frames))).permute(0, 3, 1, 2).float() / 255
