"""The text encoder: words in, embeddings out, mistakes named."""

from __future__ import annotations

import pytest
import torch

from astrolabe.runtime.errors import UserError
from astrolabe.shapes.captions import WORDINGS, caption
from astrolabe.shapes.text import PADDING, TextEncoder
from astrolabe.shapes.world import ALL_SCENES


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder()


def test_every_caption_fits(encoder: TextEncoder) -> None:
    texts = [caption(scene, index) for scene in ALL_SCENES for index in range(WORDINGS)]
    ids = encoder.tokenize(texts)
    assert ids.shape == (len(texts), 16) and ids.dtype == torch.long


def test_encoding_has_the_promised_shape_and_zero_rows_at_padding(encoder: TextEncoder) -> None:
    ids = encoder.tokenize(["a red circle moving left", "red circle, left"])
    rows = encoder(ids)
    assert rows.shape == (2, 16, 64)
    assert torch.equal(rows.abs().sum(-1) == 0, ids == PADDING)
    assert (ids != PADDING).sum(1).tolist() == [5, 3]


def test_case_and_punctuation_are_ignored(encoder: TextEncoder) -> None:
    assert torch.equal(encoder.encode(["A RED circle, moving left."]), encoder.encode(["a red circle moving left"]))


def test_a_and_an_are_one_word(encoder: TextEncoder) -> None:
    assert torch.equal(encoder.encode(["an orange circle"]), encoder.encode(["a orange circle"]))


def test_the_order_of_words_matters(encoder: TextEncoder) -> None:
    assert not torch.equal(encoder.encode(["red circle left"]), encoder.encode(["left red circle"]))


def test_gradients_reach_words_and_positions_but_not_padding(encoder: TextEncoder) -> None:
    encoder.encode(["red circle left"]).square().sum().backward()
    assert encoder.words.weight.grad is not None and encoder.positions.grad is not None
    assert encoder.words.weight.grad[PADDING].abs().sum() == 0
    assert encoder.positions.grad[3:].abs().sum() == 0 < encoder.positions.grad[:3].abs().sum()


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("a purpel circle", "unknown word 'purpel' in the prompt 'a purpel circle'"),
        ("a red cirle", "'cirle'.*did you mean circle"),
        ("", "prompt 0 is empty"),
        (" ,. ", "prompt 0 is empty"),
        ("red " * 17, "has 17 words, at most 16"),
    ],
)
def test_prompts_that_cannot_be_encoded_are_refused_with_the_reason(
    encoder: TextEncoder, text: str, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        encoder.tokenize([text])
