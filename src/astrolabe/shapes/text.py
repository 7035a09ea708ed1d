"""The text encoder of the shapes world: one embedding a word, one a position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from astrolabe.runtime.errors import UserError
from astrolabe.shapes.captions import VOCABULARY, check_words

PADDING = 0
_IDS = {word: index for index, word in enumerate(VOCABULARY, start=1)}


class TextEncoder(nn.Module):
    """Words to ``[B, text_len, text_dim]``; the rows after the last word are zero."""

    def __init__(self, text_dim: int = 64, text_len: int = 16) -> None:
        super().__init__()
        self.text_dim = text_dim
        self.text_len = text_len
        self.words = nn.Embedding(len(VOCABULARY) + 1, text_dim, padding_idx=PADDING)
        self.positions = nn.Parameter(torch.randn(text_len, text_dim) * 0.1)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Word ids ``[B, text_len]``, int64, padded with 0; case and punctuation are ignored.

        Raises a :class:`UserError` for a prompt that is empty, too long, or has a word outside the vocabulary.
        """
        ids = torch.full((len(texts), self.text_len), PADDING, dtype=torch.long, device=self.positions.device)
        for row, text in enumerate(texts):
            words = check_words(text)
            if not words:
                raise UserError(f"prompt {row} is empty ({text!r}); describe a colour, a shape and a motion")
            if len(words) > self.text_len:
                raise UserError(f"the prompt {text!r} has {len(words)} words, at most {self.text_len} fit; shorten it")
            ids[row, : len(words)] = ids.new_tensor([_IDS[word] for word in words])
        return ids

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings ``[B, text_len, text_dim]`` of the word ids ``[B, text_len]``."""
        return (self.words(ids) + self.positions) * (ids != PADDING)[..., None]

    def check(self, texts: Sequence[str]) -> None:
        """Errors as in :meth:`tokenize`."""
        self.tokenize(texts)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings ``[B, text_len, text_dim]`` of prompts; errors as in :meth:`tokenize`."""
        return self(self.tokenize(texts))
