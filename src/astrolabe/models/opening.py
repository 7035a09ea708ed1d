"""A released model, opened: from what a user has (a file, a folder, a hub id) to a generator that runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from astrolabe.models.adapters import read_adapter
from astrolabe.models.hub import beside, find_file
from astrolabe.models.lora import freeze_onto
from astrolabe.models.released import (
    BESIDE_TOKENIZER,
    TEXT_FILE,
    TOKENIZER_FILE,
    VAE_FILE,
    WAN_REPOSITORY,
    ReleasedModel,
    released,
)  # fmt: skip
from astrolabe.models.settings import ReleasedSettings
from astrolabe.models.text_cache import OWNER, TextCache
from astrolabe.models.wan.config import WanConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.models.wan.text import WanTextEncoder, load_umt5
from astrolabe.models.wan.vae import load_vae
from astrolabe.models.wan.weights import load_transformer
from astrolabe.runtime.device import check_device, empty_cache, torch_dtype
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import exists, locked, place
from astrolabe.runtime.tensorfile import FLAT
from astrolabe.runtime.wrapped import USUAL
from astrolabe.types import TextEmbeddings


@dataclass(frozen=True)
class Files:
    """Where the files of a model are looked for; ``download`` False looks on this machine alone.

    Every method raises UserError when its file is not to be had.
    """

    settings: ReleasedSettings
    download: bool = True

    @property
    def model(self) -> ReleasedModel:
        """The table's entry."""
        return released(self.settings.name)

    def transformer(self) -> Path:
        """The checkpoint."""
        return find_file(self.settings.weights, self.model.repository, self.model.file, self.download, shards=True)

    def adapter(self) -> Path | None:
        """The adapter that belongs to the model, if one does."""
        named = self.settings.adapter
        if named == "none" or not (named or self.model.lora):
            return None
        if named:
            if not exists(place(named)):
                raise UserError(f"model.adapter={named}: no such file or folder; `none` leaves the adapter out")
            return place(named)
        assert self.model.lora is not None
        return find_file(beside(self.settings.weights), self.model.repository, self.model.lora, self.download)

    def vae(self) -> Path:
        """Wan's VAE."""
        return find_file(self.settings.wan, WAN_REPOSITORY, VAE_FILE, self.download)

    def text_encoder(self) -> Path:
        """Wan's UMT5."""
        return find_file(self.settings.wan, WAN_REPOSITORY, TEXT_FILE, self.download)

    def tokenizer(self) -> Path:
        """The folder of the tokenizer's files."""
        folder = find_file(self.settings.wan, WAN_REPOSITORY, TOKENIZER_FILE, self.download).parent
        for name in BESIDE_TOKENIZER:  # a folder has them or not; from the hub they are fetched one by one
            with suppress(UserError):
                find_file(self.settings.wan, WAN_REPOSITORY, f"{Path(TOKENIZER_FILE).parent}/{name}", self.download)
        return folder

    @property
    def containers(self) -> tuple[str, ...]:
        """Which parts of the checkpoint may be used, in order."""
        if self.settings.container == "own":
            return tuple(dict.fromkeys((*self.model.containers, *USUAL)))  # files that others converted or trained on
        return (FLAT if self.settings.container == "flat" else self.settings.container,)


def open_model(settings: ReleasedSettings, live: bool = False) -> WanGenerator:
    """The generator; prompts come from its text cache, or with ``live`` from wherever: those that are new are embedded.
    UserError for whatever is missing or does not fit."""
    check_device(settings.place)
    files, dtype = Files(settings), torch_dtype(settings.dtype, settings.place)
    text = LiveTextEncoder(settings) if live else TextCache.open(settings.text_cache)
    stream, adapter = settings.stream, files.adapter()
    lora = read_adapter(adapter) if adapter else None
    vae = load_vae(files.vae(), settings.place, dtype, settings.vae_tile)
    transformer = load_transformer(files.transformer(), files.containers, settings.place, dtype)
    if isinstance(text, TextCache):
        check_text(text, transformer.config)
    if lora:
        freeze_onto(transformer, lora, str(adapter))
    return WanGenerator(transformer, stream, settings.latent_shape, text, vae, dtype)


def check_text(cache: TextCache, config: WanConfig) -> None:
    """UserError when the embeddings in ``cache`` are not of the size that a transformer takes."""
    if config.text_dim != cache.dim:
        raise UserError(
            f"{cache.folder} holds embeddings of {cache.dim} numbers a token, the model takes {config.text_dim}; embed "
            "the prompts with its own text encoder, into another folder (--model.text_cache)"
        )


class LiveTextEncoder:
    """New prompts: from the text cache when they are there, else embedded, and kept there.

    For programs that take prompts while a video runs. The text encoder is loaded at the first prompt that is new, and
    stays.
    """

    def __init__(self, settings: ReleasedSettings):
        self.settings = settings
        self._loaded: tuple[WanTextEncoder, str] | None = None

    def check(self, texts: Sequence[str]) -> None:
        """Any text can be encoded."""

    def encode(self, prompts: Sequence[str]) -> TextEmbeddings:
        """Embeddings [b, n, d]."""
        folder = place(self.settings.text_cache)
        if not exists(folder / OWNER) or TextCache.open(folder).missing(prompts):
            self._loaded = self._loaded or open_text_encoder(self.settings)
            encoder, identity = self._loaded
            TextCache.create(folder, identity, encoder.dim).fill(prompts, encoder.encode)
        return TextCache.open(folder).encode(prompts)


def open_text_encoder(settings: ReleasedSettings) -> tuple[WanTextEncoder, str]:
    """The text encoder on the model's device, and its identity for ``TextCache``."""
    from transformers import AutoTokenizer

    check_device(settings.place)
    files, dtype = Files(settings), torch_dtype(settings.dtype, settings.place)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(files.tokenizer()), trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{files.tokenizer()}: no tokenizer ({reason}); it should be Wan's google/umt5-xxl") from None
    encoder = WanTextEncoder(load_umt5(files.text_encoder(), settings.place, dtype), tokenizer)
    return encoder, encoder.identity()


def embed(settings: ReleasedSettings, prompts: Sequence[str], batch: int = 8) -> int:
    """Put the embeddings of ``prompts`` into the model's text cache; gives how many were missing.

    The text encoder is loaded only when one is, and let go afterwards.
    """
    folder = place(settings.text_cache)

    def complete() -> bool:
        return exists(folder / OWNER) and not TextCache.open(folder).missing(prompts)

    if complete():
        return 0
    with locked(folder):  # of several processes one embeds, and the others find it done
        if complete():
            return 0
        encoder, identity = open_text_encoder(settings)
        cache = TextCache.create(folder, identity, encoder.dim)
        count = cache.fill(prompts, encoder.encode, batch)
    del encoder
    empty_cache(settings.place)  # the transformer comes next, and wants the room
    return count
