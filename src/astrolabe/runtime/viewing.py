"""Videos and images as every player shows them: upright, with square pixels, on white where they are transparent, and
each frame at its time."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from astrolabe.runtime import foreign
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import refusal

Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # [y, x, 3]
PICTURES = ("PNG", "JPEG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "TGA", "PPM", "JPEG2000")
ANIMATED = ("PNG", "GIF", "WEBP", "AVIF")  # several frames of other formats are pages, or previews
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # the usual ones read no transparency
ROUNDED = 0.002  # seconds by which containers round the times of frames
# What is opened as a video holds its own frames: a playlist could name any file here, or any address.
CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,asf,flv,ogg,gif,apng,nut,mxf,ivf,h264,"
              "hevc,av1,obu,yuv4mpegpipe,dv,swf,rm,webp_pipe,png_pipe,jpeg_pipe,tiff_pipe,bmp_pipe,exr_pipe,hdr_pipe,"
              "jpegxl_pipe,dpx_pipe,qoi_pipe,j2k_pipe")  # fmt: skip
LONGEST_STILL = 600.0  # seconds that one frame may stand: more is a damaged timestamp
WIDEST_PIXEL = 8  # times its height
BROKEN = (av.FFmpegError, OSError, SyntaxError, ValueError, IndexError, EOFError, struct.error,
          Image.DecompressionBombError)  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """A frame: pixels are ``computed`` when asked for, ``aspect`` is the width of one in its heights. Seconds count
    from the file's beginning; a still image lasts 0."""

    path: Path
    time: float
    lasts: float
    computed: Callable[[], Pixels]
    aspect: float = 1.0

    def pixels(self) -> Pixels:
        """What is seen, but for the aspect of a pixel. UserError for a frame that cannot be read."""
        with readable(self.path):
            return self.computed()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What libraries say of a file that is neither video nor image is a UserError."""
    try:
        yield
    except BROKEN as error:
        raise UserError(f"{path}: {why_not(path, error)}") from None


def why_not(path: Path, error: Exception) -> str:
    """What a file is that could not be read as an image or a video. UserError for one that cannot be opened at all."""
    try:
        with path.open("rb") as file:
            start, size = file.read(foreign.HEAD), file.seek(0, 2)
    except OSError as closed:
        raise refusal(path, closed) from None
    if isinstance(error, av.ArgumentError):
        error = ValueError("of a kind that is not read here")
    said = " ".join((getattr(error, "strerror", None) or str(error)).split())
    return foreign.mistaken(start, size) or f"neither an image nor a video that can be read ({said})"


@contextmanager
def opened_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """A video file and its stream of pictures; nothing but this file is read. ValueError when it has none."""
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    with av.open(f"file:{path}", options=options) as container:
        streams = [stream for stream in container.streams.video if stream.codec_context is not None]
        if not streams:
            raise ValueError("it has no pictures that can be decoded")
        yield container, streams[0]


def opened_image(path: Path) -> Image.Image | None:
    """An image or an animation; None for what is another kind of file, or not there."""
    Image.init()  # else it does not know all of the formats
    try:
        return Image.open(path, formats=PICTURES)
    except (UnidentifiedImageError, FileNotFoundError):
        return None


def frames_shown(path: Path) -> Iterator[Shown]:
    """Every frame of a video or an animation, or an image as one. UserError for what cannot be read as either."""
    with readable(path):
        image = opened_image(path)
        if image is None:
            yield from of_video(path)
            return
        with image:
            yield from of_image(path, image)


def at_rate(path: Path, rate: float | None) -> Iterator[Shown]:
    """The frames that are seen at 0, 1/rate, 2/rate, ... seconds: the last that was shown by then. None: all there are.

    UserError, besides, for a file whose timestamps jump.
    """
    if rate is None:
        yield from frames_shown(path)
        return
    seen, number, place, begin = None, 0, 0.0, 0.0
    for frame in frames_shown(path):
        if seen is None:
            begin = frame.time
        else:
            now = max(frame.time - begin, place)
            if now - place > LONGEST_STILL:
                raise UserError(f"{path}: a frame at {place:.0f} s is followed by one at {now:.0f} s; write it anew")
            while number / rate < now - ROUNDED:
                yield seen
                number += 1
            place = now
        seen = frame
    if seen is not None:
        end = place + min(max(seen.lasts, 2 * ROUNDED), LONGEST_STILL)  # however short, it is seen at its own time
        while number / rate < end - ROUNDED:
            yield seen
            number += 1


def rate_of(path: Path) -> float:
    """Frames a second on average; 0 for a still image. UserError for a file that cannot be read."""
    with readable(path):
        image = opened_image(path)
        if image is not None:
            with image:
                lengths = [lasts for _, lasts in times_of(image)]
            return len(lengths) / sum(lengths) if len(lengths) > 1 else 0.0
        with opened_video(path) as (_, stream):
            return float(stream.average_rate or 0)


def of_image(path: Path, image: Image.Image) -> Iterator[Shown]:
    """The frames of what Pillow reads."""
    place = 0.0
    for number, lasts in times_of(image):
        image.seek(number)
        picture = image.copy()  # the file goes on, and a frame may be asked for later
        picture.format = image.format
        yield Shown(path, place, lasts, partial(upright, picture))
        place += lasts


def times_of(image: Image.Image) -> Iterator[tuple[int, float]]:
    """Number and seconds of every frame; of a still image, one and 0. Where the file says next to nothing, browsers
    show a frame for a tenth of a second."""
    count = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
    for number in range(count):
        image.seek(number)
        image.load()
        lasts = float(image.info.get("duration", 0)) / 1000
        yield number, (lasts if lasts > 0.01 else 0.1) if count > 1 else 0.0


def upright(image: Image.Image) -> Pixels:
    """An image's pixels in sRGB, turned as its EXIF says, on white."""
    profile = image.info.get("icc_profile")
    clear = image.has_transparency_data
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # grey of more than 8 bits
        most = 1.0 if image.mode == "F" else 65535.0
        grey = np.clip(np.asarray(image, np.float64) / most, 0, 1) * 255
        return np.repeat(grey.round().astype(np.uint8)[..., None], 3, 2)
    image = image.convert("RGBA") if clear else image if image.mode == "CMYK" else image.convert("RGB")
    alpha = image.getchannel("A") if clear else None
    colours = in_srgb(image.convert("RGB") if clear else image, profile)
    if alpha is not None:
        white = Image.new("RGB", colours.size, "white")
        colours = Image.composite(colours, white, alpha)
    return np.array(colours)


def in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours by the image's own profile; a profile that is damaged or for other channels counts as none."""
    if profile:
        try:
            own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            found = ImageCms.profileToProfile(image, own, srgb, outputMode="RGB")
            assert found is not None
            return found
        except (ImageCms.PyCMSError, OSError):
            pass
    return image.convert("RGB")


def of_video(path: Path) -> Iterator[Shown]:
    """The frames of what FFmpeg reads."""
    with opened_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        interval = 1 / float(stream.average_rate or stream.guessed_rate or 25)
        wide = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
        if not 1 / WIDEST_PIXEL <= wide <= WIDEST_PIXEL:
            raise UserError(f"{path}: its pixels are {wide:g} times as wide as high; write it anew")
        for number, frame in enumerate(decoded(container, stream)):
            time = number * interval if frame.time is None else float(frame.time)
            lasts = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else interval
            matrix = matrix_of(frame)
            turned = abs(matrix[0]) + abs(matrix[3]) < abs(matrix[1]) + abs(matrix[2])
            aspect = 1 / wide if turned else wide
            yield Shown(path, time, lasts, partial(displayed, frame, matrix), aspect)


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames of a stream, with their transparency if they have any."""
    name = ALPHA_DECODERS.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1":
        yield from container.decode(stream)
        return
    decoder = av.CodecContext.create(name, "r")
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


def matrix_of(frame: Any) -> tuple[float, ...]:
    """Where right (x, y) and down (x, y) go when the frame is shown, from its display matrix."""
    try:
        found = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # side data of a kind that the library cannot name yet
        turn = round(frame.rotation / 90) % 4  # counterclockwise
        return ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))[turn]
    if found is None:
        return (1, 0, 0, 1)
    numbers = np.frombuffer(bytes(found), "=i4")
    return tuple(float(numbers[place]) for place in (0, 1, 3, 4))


def displayed(frame: Any, matrix: tuple[float, ...]) -> Pixels:
    """A decoded frame's pixels, turned by quarters and mirrored as ``matrix`` says, on white."""
    clear = any(part.is_alpha for part in frame.format.components)
    pixels: Pixels = frame.to_ndarray(format="rgba" if clear else "rgb24")
    if clear:
        share = pixels[..., 3:] / np.float32(255)
        pixels = (pixels[..., :3] * share + 255 * (1 - share)).round().astype(np.uint8)
    right_x, right_y, down_x, down_y = matrix
    if abs(right_x) + abs(down_y) < abs(right_y) + abs(down_x):
        pixels = pixels.transpose(1, 0, 2)
        right_x, down_y = down_x, right_y
    return pixels[:: -1 if down_y < 0 else 1, :: -1 if right_x < 0 else 1]


def squared(frame: Shown) -> Pixels:
    """The frame with square pixels, at its own size."""
    pixels = frame.pixels()
    if frame.aspect == 1:
        return np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    return resized(pixels, height, max(round(width * frame.aspect), 1))


def covering(frame: Shown, height: int, width: int) -> Pixels:
    """The frame scaled to cover a size, and cut in its middle."""
    pixels = frame.pixels()
    tall, wide = pixels.shape[0], pixels.shape[1] * frame.aspect
    scale = max(height / tall, width / wide)
    rows, columns = max(round(tall * scale), height), max(round(wide * scale), width)
    top, left = (rows - height) // 2, (columns - width) // 2
    return resized(pixels, rows, columns)[top : top + height, left : left + width]


def resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """At another size, bicubic."""
    if pixels.shape[:2] == (height, width):
        return np.ascontiguousarray(pixels)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))
