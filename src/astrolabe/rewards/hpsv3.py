"""HPSv3: how much people would prefer a picture, with a standard deviation; of a video, its best frames count.

Source: HPSv3 (arXiv 2508.03789); checkpoint MizzenAI/HPSv3 on Qwen2-VL-7B. The mean over the best share of the frames
is the method's (method, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from astrolabe.rewards.base import check_batch
from astrolabe.rewards.chat import Chat, Tokenizer
from astrolabe.rewards.frames import IMAGE_PIXELS, MERGE, pillow_bicubic, smart_size, to_patches, to_pictures
from astrolabe.rewards.qwen import QwenScorer, QwenSizes, assemble, batches, check_words, flat, padded, read_config
from astrolabe.runtime.tensorfile import Container, TensorFile, open_tensors
from astrolabe.types import PerSample, Video

MARK = "<|Reward|>"
HIDDEN = (1024, 16)


def head(width: int) -> nn.Sequential:
    """Hidden state to (mean, log standard deviation)."""
    first, second = HIDDEN
    return nn.Sequential(
        nn.Linear(width, first), nn.ReLU(), nn.Dropout(0.05), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 2)
    )


def best_frames(scores: Float[Tensor, "b f"], share: float) -> Int[Tensor, "b n"]:
    """The numbers of the best ``share`` of the frames, of one at least."""
    return scores.topk(max(1, int(scores.shape[1] * share)), 1).indices


class HPSv3:
    """See the module. ``every``: of how many frames one is judged; ``best_share`` of those make the score; no more than
    ``token_budget`` tokens are in one forward."""

    name = "hpsv3"

    def __init__(
        self, scorer: QwenScorer, chat: Chat, every: int = 1, best_share: float = 0.3, token_budget: int = 16384
    ):
        self.scorer, self.chat = scorer, chat
        self.every, self.best_share, self.token_budget = every, best_share, token_budget

    @property
    def networks(self) -> Sequence[nn.Module]:
        """See ``rewards.visiting``."""
        return (self.scorer,)

    def __call__(self, video: Video, prompts: Sequence[str]) -> PerSample:
        """See ``rewards.base.Reward``."""
        return self.judge(video, prompts)[0]

    @torch.no_grad()
    def judge(self, video: Video, prompts: Sequence[str]) -> tuple[PerSample, PerSample]:
        """Mean over the best frames, and the mean of their standard deviations."""
        check_batch(self.name, video, prompts)
        frames = to_pictures(video[:, :: self.every].to(self.scorer.device))
        small = pillow_bicubic(
            frames.flatten(0, 1), smart_size(frames.shape[-2], frames.shape[-1], IMAGE_PIXELS, IMAGE_PIXELS)
        )
        _, grid = to_patches(small[:1])
        rows = [self.chat.row(prompt, grid[1] * grid[2] // MERGE**2) for prompt in prompts]
        count = frames.shape[1]
        found = []
        for some in batches([len(rows[i // count]) for i in range(len(small))], self.token_budget):
            patches = torch.cat([to_patches(small[i : i + 1])[0] for i in some])
            ids, mask = padded([rows[i // count] for i in some], self.chat.padding)
            grids = torch.tensor([grid] * len(some))
            found.append(self.scorer.logits(self.chat.marks, ids, mask, patches, grids))
        mean, log_std = torch.cat(found).view(len(video), count, 2).cpu().unbind(2)
        chosen = best_frames(mean, self.best_share)
        return mean.gather(1, chosen).mean(1), log_std.exp().gather(1, chosen).mean(1)


def assemble_hpsv3(
    file: TensorFile, entries: Container, tokens: dict[str, int], sizes: QwenSizes,
    device: torch.device | str = "cpu", dtype: torch.dtype | None = None,
) -> QwenScorer:  # fmt: skip
    """The network with tensors of ``file`` under the official names; UserError for anything that does not fit."""
    config = read_config(entries, sizes, tokens, file.path)
    return assemble(file, dict(entries), config, head(config.text_config.hidden_size), 0.0, device, dtype)


def load_hpsv3(
    path: Path | str, tokenizer: Tokenizer, device: torch.device | str = "cpu", dtype: torch.dtype | None = None,
    every: int = 1, best_share: float = 0.3, token_budget: int = 16384,
) -> HPSv3:  # fmt: skip
    """The reward of the official checkpoint ``HPSv3.safetensors``; the last three are those of ``HPSv3``.

    Raises UserError for anything missing, unknown or of another shape, and for another tokenizer.
    """
    file = open_tensors(path)
    chat = Chat("hpsv3", tokenizer, "image", [MARK])
    scorer = assemble_hpsv3(file, flat(file), chat.tokens, QwenSizes(), device, dtype)
    check_words("hpsv3", scorer, tokenizer)
    return HPSv3(scorer, chat, every, best_share, token_budget)
