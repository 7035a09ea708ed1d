"""What a vision model is shown, pixel for pixel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from astrolabe.rewards.frames import (
    FACTOR,
    IMAGE_PIXELS,
    VIDEO_PIXELS,
    at_rate,
    evenly,
    grey,
    normalised,
    pillow_bicubic,
    smart_size,
    to_patches,
    to_pictures,
)
from astrolabe.runtime.errors import UserError

SIDES = st.integers(1, 90)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 99))
def test_pictures_are_resized_as_pillow_does_to_the_last_bit(
    h: int, w: int, height: int, width: int, seed: int
) -> None:
    pixels = torch.randint(256, (1, 3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    if seed % 2:  # edges overshoot
        pixels = (pixels > 127).to(torch.uint8) * 255
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    # Lines first, as every Pillow did before 13; since then it begins with columns where that is faster.
    for size in ((width, h), (width, height)):
        image = image.resize(size, Image.Resampling.BICUBIC)
    wanted = torch.tensor(list(image.tobytes()), dtype=torch.uint8)
    found = pillow_bicubic(pixels, (height, width))[0].permute(1, 2, 0)
    assert torch.equal(found.flatten(), wanted)


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([(IMAGE_PIXELS, IMAGE_PIXELS), VIDEO_PIXELS]))
def test_sizes_are_whole_tokens_of_about_the_same_shape(height: int, width: int, bounds: tuple[int, int]) -> None:
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(UserError, match="longer than 200 times"):
            smart_size(height, width, *bounds)
        return
    new = smart_size(height, width, *bounds)
    assert new[0] % FACTOR == 0 and new[1] % FACTOR == 0 and min(new) >= FACTOR
    assert (new[0] + FACTOR) * (new[1] + FACTOR) >= bounds[0] and (new[0] - FACTOR) * (new[1] - FACTOR) <= bounds[1]


def test_videoalign_looks_twice_a_second_at_four_frames_at_least() -> None:
    assert at_rate(81, 16.0).tolist() == [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]
    assert at_rate(33, 16.0).tolist() == [0, 11, 21, 32]
    assert at_rate(5, 16.0).tolist() == [0, 1, 3, 4]
    assert at_rate(2, 16.0).tolist() == [0, 1]
    assert [len(at_rate(count, 16.0)) for count in (40, 41, 56, 57)] == [4, 6, 8, 8]  # even, halves to the even pair
    assert evenly(9, 1).tolist() == [0]


def test_grey_is_cut_down_and_not_rounded() -> None:
    pixel = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    assert pytest.approx(18.149) == 0.2989 * 10 + 0.587 * 20 + 0.114 * 30
    assert grey(pixel).flatten().tolist() == [18, 18, 18]
    assert grey(pixel + 5).flatten().tolist() == [23, 23, 23]  # 23.1485
    assert grey(torch.tensor([255, 254, 255], dtype=torch.uint8).view(1, 3, 1, 1)).unique().tolist() == [254]


def test_a_patch_holds_two_frames_and_tokens_stand_together() -> None:
    frames = torch.randint(256, (4, 3, 56, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows, grid = to_patches(frames)
    assert grid == (2, 4, 6) and rows.shape == (48, 1176)
    pixels = normalised(frames)
    # Token (time 1, row 1, column 2); its patch below on the left: rows 42 to 56, columns 56 to 70.
    row = rows[1 * 24 + (1 * 3 + 2) * 4 + 2].view(3, 2, 14, 14)
    assert torch.equal(row, pixels[2:4, :, 42:56, 56:70].transpose(0, 1))


def test_one_picture_is_shown_twice() -> None:
    frame = torch.randint(256, (1, 3, 28, 28), dtype=torch.uint8)
    alone, pair = to_patches(frame), to_patches(frame.repeat(2, 1, 1, 1))
    assert torch.equal(alone[0], pair[0]) and alone[1] == pair[1] == (1, 2, 2)


def test_bytes_survive_the_way_to_numbers_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 16, 16).expand(1, 1, 3, 16, 16)
    assert torch.equal(to_pictures(every.float() / 255), every)
