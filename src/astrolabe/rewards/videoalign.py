"""VideoAlign's VideoReward: visual quality, motion quality and text alignment of a video, in one forward.

Source: VideoAlign (arXiv 2501.13918); checkpoint KwaiVGI/VideoReward on Qwen2-VL-2B, low-rank adapters beside the
weights. Motion quality is judged on grey frames, as the method does, and needs a forward of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args
from weakref import ref

import torch
from jaxtyping import Float
from torch import Tensor, nn

from astrolabe.rewards.base import check_batch
from astrolabe.rewards.chat import Chat, Tokenizer
from astrolabe.rewards.frames import MERGE, VIDEO_PIXELS, at_rate, grey, smart_size, to_patches, to_pictures
from astrolabe.rewards.frames import torch_bicubic as bicubic
from astrolabe.rewards.qwen import (
    QwenScorer,
    QwenSizes,
    assemble,
    batches,
    check_words,
    flat,
    padded,
    plain,
    read_config,
    same_tensor,
)
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.tensorfile import Container, TensorFile, open_tensors
from astrolabe.types import PerSample, Video

Dimension = Literal["VQ", "MQ", "TA"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
MEAN, STD = (3.6757, 1.1646, 2.8105), (2.2476, 1.3811, 2.5121)  # of the dimensions, over the authors' data
SCALE = 2.0  # of the adapters: alpha 128 over rank 64


def normalised(logits: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3"]:
    """Scores of the three dimensions, in standard deviations of the authors' data."""
    return (logits - torch.tensor(MEAN, device=logits.device)) / torch.tensor(STD, device=logits.device)


class VideoAlign:
    """Judges videos once for all the rewards that ask about the same ones, one after another."""

    def __init__(self, scorer: QwenScorer, chat: Chat, fps: float, token_budget: int = 16384):
        self.scorer, self.chat, self.fps, self.token_budget = scorer, chat, fps, token_budget
        self._video: ref[Video] | None = None
        self._asked: tuple[int, tuple[str, ...]] | None = None
        self._known: dict[bool, Float[Tensor, "b 3"]] = {}

    def scores(self, name: str, video: Video, prompts: Sequence[str], in_grey: bool) -> Float[Tensor, "b 3"]:
        """VQ, MQ and TA of every video, of its colours or in grey."""
        asked = (video._version, tuple(prompts))
        if self._video is None or self._video() is not video or self._asked != asked:
            check_batch(name, video, prompts, frames=2)
            self._video, self._asked, self._known = ref(video), asked, {}
        if in_grey not in self._known:
            self._known[in_grey] = self._judge(video, prompts, in_grey)
        return self._known[in_grey]

    @torch.no_grad()
    def _judge(self, video: Video, prompts: Sequence[str], in_grey: bool) -> Float[Tensor, "b 3"]:
        seen = to_pictures(video[:, at_rate(video.shape[1], self.fps)].to(self.scorer.device))
        shown = []
        for frames in seen:
            own = grey(frames) if in_grey else frames
            shown.append(to_patches(bicubic(own, smart_size(own.shape[-2], own.shape[-1], *VIDEO_PIXELS))))
        grid = shown[0][1]
        rows = [self.chat.row(prompt, grid[0] * grid[1] * grid[2] // MERGE**2) for prompt in prompts]
        found = []
        for some in batches([len(row) for row in rows], self.token_budget):
            ids, mask = padded([rows[i] for i in some], self.chat.padding)
            patches, grids = torch.cat([shown[i][0] for i in some]), torch.tensor([grid] * len(some))
            found.append(of_three(self.scorer.logits(self.chat.marks, ids, mask, patches, grids)))
        return normalised(torch.cat(found)).cpu()


class VideoAlignReward:
    """One dimension."""

    def __init__(self, dimension: Dimension, judge: VideoAlign):
        self.name, self.dimension, self.judge_of_all = f"videoalign_{dimension.lower()}", dimension, judge

    @property
    def networks(self) -> Sequence[nn.Module]:
        """See ``rewards.visiting``."""
        return (self.judge_of_all.scorer,)

    def __call__(self, video: Video, prompts: Sequence[str]) -> PerSample:
        """See ``rewards.base.Reward``."""
        found = self.judge_of_all.scores(self.name, video, prompts, self.dimension == "MQ")
        return found[:, DIMENSIONS.index(self.dimension)]


def of_three(logits: Float[Tensor, "b 3 outputs"]) -> Float[Tensor, "b 3"]:
    """One raw score a mark. A head with three rows gives the k-th score with its k-th row."""
    return logits[:, :, 0] if logits.shape[2] == 1 else logits.diagonal(dim1=1, dim2=2)


def assemble_videoalign(
    file: TensorFile, entries: Container, tokens: dict[str, int], sizes: QwenSizes, scale: float = SCALE,
    device: torch.device | str = "cpu", dtype: torch.dtype | None = None,
) -> QwenScorer:  # fmt: skip
    """The network with tensors of ``file``, adapters merged; UserError for anything that does not fit."""
    weights = plain(entries, file.path)
    config = read_config(weights, sizes, tokens, file.path)
    if "rm_head.weight" not in weights:
        raise UserError(f"{file.path}: not VideoAlign's checkpoint: rm_head.weight is missing")
    rows, width = weights["rm_head.weight"].shape
    if rows not in (1, len(DIMENSIONS)):
        raise UserError(f"{file.path}: rm_head gives {rows} scores a token; VideoAlign's gives 1 or {len(DIMENSIONS)}")
    scorer = assemble(file, weights, config, nn.Linear(width, rows, bias=False), scale, device, dtype)
    # The base ties them, and the authors' loader writes one after the other into the same place.
    tied = weights["lm_head.weight"], weights["model.embed_tokens.weight"]
    if torch.device(device).type != "meta" and not same_tensor(file, *tied):
        raise UserError(f"{file.path}: lm_head differs from embed_tokens, which the base model ties; another model?")
    return scorer


def load_videoalign(
    path: Path | str, tokenizer: Tokenizer, fps: float, device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None, token_budget: int = 16384,
) -> VideoAlign:  # fmt: skip
    """The judge of the official checkpoint ``model.pth``, for videos of ``fps`` frames a second.

    Raises UserError for anything missing, unknown or of another shape, and for another tokenizer.
    """
    file = open_tensors(path)
    chat = Chat("videoalign", tokenizer, "video", [f"<|{name}_reward|>" for name in DIMENSIONS])
    scorer = assemble_videoalign(file, flat(file), chat.tokens, QwenSizes(), SCALE, device, dtype)
    check_words("videoalign", scorer, tokenizer)
    return VideoAlign(scorer, chat, fps, token_budget)
