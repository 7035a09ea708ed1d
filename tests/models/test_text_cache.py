"""Embeddings on disk."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from astrolabe.models.text_cache import TextCache
from astrolabe.runtime.errors import UserError

asked: list[str] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    asked.clear()


def encode(prompts: Sequence[str]) -> Tensor:
    """As many rows as a prompt has letters, the rest padding."""
    asked.extend(prompts)
    rows = torch.zeros(len(prompts), 12, 4, dtype=torch.bfloat16)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = torch.randn(len(prompt), 4, generator=torch.Generator().manual_seed(len(prompt)))
    return rows


def test_what_is_stored_comes_back_padding_included(tmp_path: Path) -> None:
    cache = TextCache(tmp_path, "umt5", 4)
    prompts = ["a cat", "a big dog", "a cat", "ünïcode"]
    assert cache.fill(prompts, encode, batch=2) == 3 and asked == ["a cat", "a big dog", "ünïcode"]
    assert torch.equal(cache.encode(prompts), encode(prompts))
    assert cache.fill(prompts, encode) == 0


def test_another_encoder_shares_nothing(tmp_path: Path) -> None:
    TextCache(tmp_path, "one", 4).fill(["a cat"], encode)
    assert TextCache(tmp_path, "two", 4).missing(["a cat"]) == ["a cat"]


def test_a_prompt_that_was_not_embedded_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no embedding of 'a cat' and 1 more.*astrolabe embed"):
        TextCache(tmp_path, "umt5", 4).encode(["a cat", "a dog"])


def test_many_writers_and_readers_agree(tmp_path: Path) -> None:
    cache = TextCache(tmp_path, "umt5", 4)
    prompts = [f"p{i}" for i in range(12)]

    def work(_: int) -> Tensor:
        cache.fill(prompts, encode, batch=3)
        return cache.encode(prompts)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(16)))
    assert all(torch.equal(result, results[0]) for result in results)
    assert not list(tmp_path.rglob("*.tmp"))
