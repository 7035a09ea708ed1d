"""Video files: H.264 in mp4, by PyAV."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO

import av
import numpy as np
import torch
from torch import Tensor

from astrolabe.runtime.files import write_whole


def encode_mp4(file: IO[bytes], video: Tensor, fps: int, scale: int = 1) -> None:
    """Write ``video`` [t, 3, y, x] (uint8, or float in [0, 1]) to ``file``, every pixel ``scale`` x ``scale`` large."""
    pixels = video if video.dtype == torch.uint8 else (video * 255).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "16", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = pixels.shape[2], pixels.shape[3], "yuv420p"
        for frame in pixels.permute(0, 2, 3, 1).cpu().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def mp4_bytes(video: Tensor, fps: int, scale: int = 1) -> bytes:
    """An mp4 file in memory; see ``encode_mp4``."""
    buffer = io.BytesIO()
    encode_mp4(buffer, video, fps, scale)
    return buffer.getvalue()


def write_mp4(path: Path, video: Tensor, fps: int, scale: int = 1) -> None:
    """An mp4 file on disk, whole or not at all; see ``encode_mp4``."""
    write_whole(path, mp4_bytes(video, fps, scale))
