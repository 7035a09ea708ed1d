"""Contact sheets: videos side by side as still frames, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from astrolabe.runtime.errors import UserError

_SCALE = 2
_GAP = 4  # pixels between frames
_TITLE_SIZE = 15
_PAPER, _INK = (250, 250, 250), (30, 30, 30)


def contact_sheet(videos: Tensor, titles: Sequence[str], columns: int = 8) -> Image.Image:
    """A picture with a row for each video: its title, then ``columns`` frames evenly spaced from first to last.

    ``videos`` is ``[N, T, 3, H, W]`` in [0, 1]; frames are enlarged twice. Raises a :class:`UserError` unless there is
    one title a video and at least one video and column.
    """
    if len(videos) == 0 or len(titles) != len(videos) or columns < 1:
        raise UserError(
            f"a contact sheet needs videos, one title each, and a column or more; "
            f"got {len(videos)} videos, {len(titles)} titles, {columns} columns"
        )
    frames, height, width = videos.shape[1], videos.shape[3] * _SCALE, videos.shape[4] * _SCALE
    picks = torch.linspace(0, frames - 1, min(columns, frames)).round().long()
    pictures = _pictures(videos[:, picks.to(videos.device)])
    font = ImageFont.load_default(_TITLE_SIZE)
    margin = _GAP * 3 + int(max(font.getlength(line) for title in titles for line in title.split("\n")))
    sheet = Image.new("RGB", (margin + len(picks) * (width + _GAP), len(videos) * (height + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, title in enumerate(titles):
        top = _GAP + row * (height + _GAP)
        draw.multiline_text((_GAP, top + height // 2), title, fill=_INK, font=font, anchor="lm")
        for column in range(len(picks)):
            sheet.paste(pictures[row][column], (margin + column * (width + _GAP), top))
    return sheet


def _pictures(videos: Tensor) -> list[list[Image.Image]]:
    """Enlarged pictures of all frames of ``[N, T, 3, H, W]``."""
    pixels = (videos.detach().float().clamp(0, 1) * 255).round().byte()
    pixels = pixels.permute(0, 1, 3, 4, 2).repeat_interleave(_SCALE, 2).repeat_interleave(_SCALE, 3)
    return [[Image.fromarray(frame) for frame in video] for video in pixels.cpu().numpy()]
