"""Videos and images are read as players show them."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from astrolabe.runtime import viewing
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.video import frame_rate, read_frames, read_last_frames, write_mp4

COUNTED = torch.arange(48)[:, None, None, None].mul(5).byte().expand(48, 3, 32, 48)  # frame n is of brightness 5 n


def numbers(video: torch.Tensor) -> list[int]:
    """Which frames of ``COUNTED`` these are."""
    return [round(frame.mean().item() * 255 / 5) for frame in video]


def scene() -> torch.Tensor:
    """Three frames [3, 3, 32, 48] in which no corner and no direction is like another."""
    video = torch.zeros(3, 3, 32, 48, dtype=torch.uint8)
    video[:, 0, :16, :16], video[:, 1, :16, 32:], video[:, 2, 16:, :16] = 255, 255, 255
    return video


Turn = Callable[[np.ndarray], np.ndarray]
QUARTERS: dict[tuple[int, int, int, int], Turn] = {  # where right (x, y) and down (x, y) go
    (1, 0, 0, 1): lambda pixels: pixels,
    (0, 1, -1, 0): lambda pixels: np.rot90(pixels, -1),
    (-1, 0, 0, -1): lambda pixels: np.rot90(pixels, 2),
    (0, -1, 1, 0): lambda pixels: np.rot90(pixels, 1),
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda pixels: pixels.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
}


def rows(video: torch.Tensor) -> np.ndarray:
    """The first frame [y, x, 3]."""
    return video[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("matrix", list(QUARTERS))
def test_a_video_is_turned_as_its_display_matrix_says(matrix: tuple[int, int, int, int], tmp_path: Path) -> None:
    write_mp4(tmp_path / "as_is.mp4", scene(), 16)
    content = bytearray((tmp_path / "as_is.mp4").read_bytes())
    place = content.index(b"tkhd") + 44  # of the matrix in the track's header
    a, b, c, d = (number * 65536 for number in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 2**30)
    (tmp_path / "turned.mp4").write_bytes(content)
    turned = read_frames(tmp_path / "turned.mp4")
    np.testing.assert_array_equal(rows(turned), QUARTERS[matrix](rows(read_frames(tmp_path / "as_is.mp4"))))
    assert read_last_frames(tmp_path / "turned.mp4", 9, 16, 16).shape == (3, 3, 16, 16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_says(orientation: int, tmp_path: Path) -> None:
    pixels = scene()[0].permute(1, 2, 0).numpy()
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=exif)
    turns: list[Turn] = [
        lambda p: p, np.fliplr, lambda p: np.rot90(p, 2), np.flipud, lambda p: p.transpose(1, 0, 2),
        lambda p: np.rot90(p, -1), lambda p: np.rot90(p, 2).transpose(1, 0, 2), lambda p: np.rot90(p, 1),
    ]  # fmt: skip
    expected = turns[orientation - 1](pixels)
    np.testing.assert_array_equal(rows(read_frames(tmp_path / "phone.png") * 255), expected)


def test_what_is_transparent_is_white_whatever_colour_hides_there(tmp_path: Path) -> None:
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[..., 1] = 255
    clear[:, 4:] = (200, 0, 0, 255)
    clear[0, 0] = (0, 0, 0, 128)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    found = rows(read_frames(tmp_path / "clear.png") * 255)
    assert (found[1:, :4] == 255).all() and (found[:, 4:] == (200, 0, 0)).all() and (found[0, 0] == 127).all()
    Image.fromarray(clear).save(tmp_path / "clear.webp", lossless=True, exact=True)
    np.testing.assert_array_equal(rows(read_frames(tmp_path / "clear.webp") * 255), found)
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 255, 0, 9, 9, 9])
    palette.save(tmp_path / "clear.gif", transparency=0)
    assert (read_frames(tmp_path / "clear.gif") == 1).all()


@pytest.mark.parametrize(
    ("name", "codec", "kind"), [("clear.webm", "libvpx-vp9", "yuva420p"), ("clear.mov", "qtrle", "argb")]
)
def test_transparent_videos_are_on_white_too(name: str, codec: str, kind: str, tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[..., 1] = 255
    pixels[:, 16:, 3] = 255
    with av.open(str(tmp_path / name), "w") as container:
        stream: Any = container.add_stream(codec, rate=16)
        stream.width, stream.height, stream.pix_fmt = 32, 32, kind
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format=kind)))
        container.mux(stream.encode())
    found = read_frames(tmp_path / name)
    assert len(found) == 3 and found[..., :12].min() > 0.95 and found[:, 0, :, 20:].max() < 0.1


@pytest.mark.parametrize(
    ("mode", "value", "shown"),
    [("L", 100, 100), ("I;16", 100 * 257, 100), ("LA", (100, 255), 100), ("1", 1, 255), ("CMYK", (0, 0, 0, 0), 255)],
)
def test_every_depth_has_its_brightness(mode: str, value: Any, shown: int, tmp_path: Path) -> None:
    suffix = "tiff" if mode == "CMYK" else "png"
    Image.new(mode, (7, 5), value).save(tmp_path / f"grey.{suffix}")
    found = read_frames(tmp_path / f"grey.{suffix}") * 255
    assert found.shape == (1, 3, 5, 7) and (found.round() == shown).all()


def test_colours_of_another_profile_are_brought_to_srgb(tmp_path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))
    Image.new("RGB", (4, 4), (90, 120, 30)).save(tmp_path / "odd.png", icc_profile=lab.tobytes())
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    Image.new("RGB", (4, 4), (90, 120, 30)).save(tmp_path / "own.png", icc_profile=own.tobytes())
    Image.new("RGB", (4, 4), (90, 120, 30)).save(tmp_path / "broken.png", icc_profile=b"no profile")
    own_colours, broken = (read_frames(tmp_path / f"{name}.png") * 255 for name in ("own", "broken"))
    assert (own_colours - broken).abs().max() <= 1 and (rows(broken)[0, 0] == (90, 120, 30)).all()
    assert read_frames(tmp_path / "odd.png").shape == (1, 3, 4, 4)


def test_pixels_that_are_wider_than_high_make_a_wider_picture(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "wide.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        frame = np.ascontiguousarray(scene()[0].permute(1, 2, 0).numpy())
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert read_frames(tmp_path / "wide.mp4").shape == (1, 3, 32, 96)
    assert read_last_frames(tmp_path / "wide.mp4", 1, 32, 32)[0, 0, :16].mean() < 0.2  # red lies outside the middle


@pytest.mark.parametrize(("rate", "each"), [(16, 1), (32, 2), (48, 3), (8, 0.5)])
def test_a_video_of_another_rate_is_seen_in_its_own_time(rate: int, each: float, tmp_path: Path) -> None:
    write_mp4(tmp_path / "counted.mp4", COUNTED, rate)
    found = numbers(read_frames(tmp_path / "counted.mp4", 16))
    assert found == [int(number * each) for number in range(int(48 / each))]
    assert numbers(read_frames(tmp_path / "counted.mp4")) == list(range(48))
    assert numbers(read_last_frames(tmp_path / "counted.mp4", 5, 32, 48, 16)) == found[-5:]
    assert frame_rate(tmp_path / "counted.mp4") == rate


def test_a_scene_at_sixty_frames_a_second_is_as_long_and_as_lively_as_at_sixteen(tmp_path: Path) -> None:
    def at(rate: int) -> torch.Tensor:
        video = torch.zeros(3 * rate, 3, 32, 96)
        for number, frame in enumerate(video):
            place = round(24 * number / rate)
            frame[:, 8:24, place : place + 16] = 1
        return video

    for rate in (16, 60):
        write_mp4(tmp_path / f"{rate}.mp4", at(rate), rate)
    slow, fast = (read_frames(tmp_path / f"{rate}.mp4", 16) for rate in (16, 60))
    assert slow.shape == fast.shape
    assert fast.diff(dim=0).abs().mean().item() == pytest.approx(slow.diff(dim=0).abs().mean().item(), rel=0.1)


def test_frames_of_uneven_times_are_each_seen_while_they_are_shown(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "uneven.mkv"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number, time in enumerate((0, 10, 20, 500, 520, 1000)):
            pixels = np.ascontiguousarray(COUNTED[number * 8].permute(1, 2, 0).numpy())
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = numbers(read_frames(tmp_path / "uneven.mkv", 10))
    assert found[:11] == [0, 16, 16, 16, 16, 24, 32, 32, 32, 32, 40]


@given(st.lists(st.floats(0, 2), min_size=1, max_size=20), st.sampled_from([8.0, 16.0, 24.0]))
def test_what_is_seen_at_a_time_is_the_last_frame_shown_by_then(times: list[float], rate: float) -> None:
    times = sorted({round(time, 2) for time in times})
    shown = [viewing.Shown(Path(), time, 0.1, lambda: np.zeros((1, 1, 3), np.uint8)) for time in times]
    patch = pytest.MonkeyPatch()
    patch.setattr(viewing, "frames_shown", lambda path: iter(shown))
    found = [frame.time for frame in viewing.at_rate(Path(), rate)]
    patch.undo()
    moments = [number / rate + times[0] for number in range(len(found))]
    assert found == [max(time for time in times if time - viewing.ROUNDED <= moment) for moment in moments]
    assert moments[-1] < times[-1] + 0.1 <= moments[-1] + 1 / rate + 2 * viewing.ROUNDED


def test_an_animation_plays_in_its_own_time_and_pages_are_no_animation(tmp_path: Path) -> None:
    pictures = [Image.new("L", (16, 16), 40 * number) for number in range(4)]
    for name in ("a.gif", "a.png", "a.webp"):
        more: dict[str, Any] = {"lossless": True} if name == "a.webp" else {}
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=250, **more)
        found = read_frames(tmp_path / name, 8)
        assert [round(frame.mean().item() * 255) for frame in found] == [0, 0, 40, 40, 80, 80, 120, 120], name
        assert frame_rate(tmp_path / name) == 4
    pictures[1].save(tmp_path / "a.tiff", save_all=True, append_images=pictures[:1])
    assert len(read_frames(tmp_path / "a.tiff", 8)) == 1 and frame_rate(tmp_path / "a.tiff") == 0


def test_a_timestamp_that_jumps_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [viewing.Shown(Path(), time, 0.1, lambda: np.zeros((1, 1, 3), np.uint8)) for time in (0.0, 1e9)]
    monkeypatch.setattr(viewing, "frames_shown", lambda path: iter(shown))
    with pytest.raises(UserError, match="followed by one at 1000000000 s"):
        list(viewing.at_rate(Path("x.mp4"), 16))


def test_what_is_neither_or_is_cut_is_one_line(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole, "PNG")
    files = {"cut.png": whole.getvalue()[:900], "words.gif": b"no video", "head.gif": b"GIF89a"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in files:
        for read in (read_frames, frame_rate):
            with pytest.raises(UserError, match=rf"{name}: neither an image nor a video that can be read") as refused:
                read(tmp_path / name)
            assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"cannot be read \(No such file or directory\)"),
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "a git-lfs pointer"),
        (b"<!doctype html><title>Log in</title>", r"a web page \('Log in'\), not the file itself"),
        (b"\x1f\x8b" + bytes(30), "packed with gzip"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "neither an image nor a video .*of a kind that is not read"),
    ],
)
def test_what_came_instead_of_a_video_is_called_what_it_is(content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.mp4").write_bytes(content)
    for read in (read_frames, frame_rate):
        with pytest.raises(UserError, match=said):
            read(tmp_path / "x.mp4")


@pytest.mark.parametrize(
    "playlist", ["ffconcat version 1.0\nfile whole.mp4\n", "#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\nwhole.mp4\n"]
)
def test_a_playlist_that_names_other_files_is_not_followed(playlist: str, tmp_path: Path) -> None:
    write_mp4(tmp_path / "whole.mp4", scene(), 16)
    (tmp_path / "list.mp4").write_text(playlist, encoding="utf-8")
    assert len(read_frames(tmp_path / "whole.mp4"))
    with pytest.raises(UserError, match=r"list\.mp4: neither an image nor a video"):
        read_frames(tmp_path / "list.mp4")
