"""Embeddings of prompts on disk, so that training and generation never need the text encoder.

One safetensors file a prompt, under a name made of the encoder's identity and the prompt: written whole or not at all,
read by any number of processes at once, and equal whoever wrote it. Rows of padding are zero and are not stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from astrolabe.runtime.checkpoint import load_tensors, save_tensors
from astrolabe.runtime.errors import UserError
from astrolabe.types import TextEmbeddings

Encode = Callable[[Sequence[str]], TextEmbeddings]


@dataclass(frozen=True)
class TextCache:
    """``encoder`` names the encoder's weights (a hash, or anything that changes with them)."""

    folder: Path
    encoder: str

    def path(self, prompt: str) -> Path:
        """Where the embedding of ``prompt`` lies, or would."""
        digest = hashlib.sha256(json.dumps([self.encoder, prompt]).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """The prompts without an embedding, each once, in order."""
        return [prompt for prompt in dict.fromkeys(prompts) if not self.path(prompt).exists()]

    def fill(
        self, prompts: Sequence[str], encode: Encode, batch: int = 8, report: Callable[[int], None] = lambda done: None
    ) -> int:
        """Embed what is missing, ``batch`` prompts at once; ``report`` hears how many more are done. Gives how many."""
        wanted = self.missing(prompts)
        for first in range(0, len(wanted), batch):
            part = wanted[first : first + batch]
            for prompt, rows in zip(part, encode(part), strict=True):
                self.store(prompt, rows)
            report(len(part))
        return len(wanted)

    def store(self, prompt: str, rows: Tensor) -> None:
        """Keep the embedding [n, d] of one prompt."""
        used = int((rows != 0).any(-1).nonzero().amax()) + 1 if rows.any() else 0
        path = self.path(prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"prompt": prompt, "length": str(len(rows)), "encoder": self.encoder}
        save_tensors(path, {"rows": rows[:used].cpu()}, metadata)

    def encode(self, prompts: Sequence[str]) -> TextEmbeddings:
        """Embeddings [b, n, d] of prompts that all are in the cache; UserError names the first that is not."""
        if absent := self.missing(prompts):
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise UserError(
                f"no embedding of {absent[0]!r}{more} in {self.folder}; run `astrolabe embed` on these prompts first"
            )
        return torch.stack([self._load(prompt) for prompt in prompts])

    def _load(self, prompt: str) -> Tensor:
        tensors, metadata = load_tensors(self.path(prompt))
        rows = tensors["rows"]
        return torch.cat([rows, rows.new_zeros(int(metadata["length"]) - len(rows), rows.shape[1])])
