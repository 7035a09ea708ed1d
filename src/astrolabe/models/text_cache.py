"""Embeddings of prompts on disk, so that training and generation never need the text encoder.

One safetensors file a prompt, under a name made of the encoder's identity and the prompt: written whole or not at all,
read by any number of processes at once, and the same whichever wrote it. Rows of padding are zero and are not stored.
``encoder.json`` says whose embeddings a folder holds: they are found again without the encoder.
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
from astrolabe.runtime.files import exists, place, refusal, write_whole
from astrolabe.runtime.progress import progress
from astrolabe.types import TextEmbeddings

OWNER = "encoder.json"
Encode = Callable[[Sequence[str]], TextEmbeddings]


@dataclass(frozen=True)
class TextCache:
    """``encoder`` names the encoder's weights (a hash, say); a token's row has ``dim`` numbers."""

    folder: Path
    encoder: str
    dim: int

    @classmethod
    def open(cls, folder: Path | str) -> TextCache:
        """The cache in ``folder``; UserError when there is none."""
        folder = place(folder)
        file = folder / OWNER
        try:
            owner = json.loads(file.read_text(encoding="utf-8"))
            return cls(folder, str(owner["encoder"]), int(owner["dim"]))
        except PermissionError as error:
            raise refusal(file, error) from None
        except OSError:
            raise UserError(
                f"{folder}: no embedded prompts there; run `astrolabe embed PROMPTS`, or name the folder that has them "
                "with --model.text_cache"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file}: damaged; remove it and run `astrolabe embed` again") from None

    @classmethod
    def create(cls, folder: Path | str, encoder: str, dim: int) -> TextCache:
        """The cache of ``encoder`` in ``folder``, new or known; UserError when it is another encoder's."""
        folder = place(folder)
        if exists(folder / OWNER):
            known = cls.open(folder)
            if (known.encoder, known.dim) != (encoder, dim):
                raise UserError(
                    f"{folder} holds the embeddings of another text encoder ({known.encoder[:12]}; this one is "
                    f"{encoder[:12]}); name another folder with --model.text_cache"
                )
            return known
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / OWNER, json.dumps({"encoder": encoder, "dim": dim}) + "\n")
        return cls(folder, encoder, dim)

    def path(self, prompt: str) -> Path:
        """Where the embedding of ``prompt`` lies, or would."""
        digest = hashlib.sha256(json.dumps([self.encoder, prompt]).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """The prompts without an embedding, each once, in order."""
        return [prompt for prompt in dict.fromkeys(prompts) if not exists(self.path(prompt))]

    def fill(self, prompts: Sequence[str], encode: Encode, batch: int = 8) -> int:
        """Embed what is missing, ``batch`` prompts at once. Gives how many."""
        wanted = self.missing(prompts)
        with progress("embedding", len(wanted), "prompts") as task:
            for first in range(0, len(wanted), batch):
                part = wanted[first : first + batch]
                for prompt, rows in zip(part, encode(part), strict=True):
                    self.store(prompt, rows)
                task.advance(len(part))
        return len(wanted)

    def store(self, prompt: str, rows: Tensor) -> None:
        """Keep the embedding [n, d] of one prompt."""
        used = int((rows != 0).any(-1).nonzero().amax()) + 1 if rows.any() else 0
        path = self.path(prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"prompt": prompt, "length": str(len(rows)), "encoder": self.encoder}
        save_tensors(path, {"rows": rows[:used].cpu()}, metadata)

    def check(self, prompts: Sequence[str]) -> None:
        """UserError, naming the first that is not, unless all prompts are in the cache."""
        if absent := self.missing(prompts):
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise UserError(
                f"no embedding of {absent[0]!r}{more} in {self.folder}; run `astrolabe embed` on these prompts first"
            )

    def encode(self, prompts: Sequence[str]) -> TextEmbeddings:
        """Embeddings [b, n, d] of prompts; see ``check``."""
        self.check(prompts)
        return torch.stack([self._load(prompt) for prompt in prompts])

    def _load(self, prompt: str) -> Tensor:
        tensors, metadata = load_tensors(self.path(prompt))
        rows = tensors["rows"]
        return torch.cat([rows, rows.new_zeros(int(metadata["length"]) - len(rows), rows.shape[1])])
