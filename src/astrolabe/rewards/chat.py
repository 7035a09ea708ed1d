"""Prompts in the words that a Qwen2-VL reward model was trained with, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Literal, Protocol, runtime_checkable

from astrolabe.runtime.errors import UserError

BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
AFTER = "<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
PLACES = ("image", "video")


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a transformers tokenizer."""

    def add_tokens(self, new_tokens: list[Any], special_tokens: bool = False) -> int: ...
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...
    def __len__(self) -> int: ...


def template(name: str) -> str:
    """The text around a prompt, which is part of a checkpoint: its authors' own words."""
    return (files("astrolabe.rewards") / "templates" / f"{name}.txt").read_text(encoding="utf-8")


class Chat:
    """One turn of a conversation that shows a picture or a video and asks for ratings.

    ``marks`` are the tokens whose hidden states are read; the tokenizer learns them, in this order.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, kind: Literal["image", "video"], marks: Sequence[str]):
        self.name, self.tokenizer, self.text = name, tokenizer, template(name)
        tokenizer.add_tokens(list(marks), special_tokens=True)
        self.marks = [self._number(mark) for mark in marks]
        self.tokens = {place: self._number(f"<|{place}_pad|>") for place in PLACES}
        self.tokens |= {f"vision_{side}": self._number(f"<|vision_{side}|>") for side in ("start", "end")}
        self.padding, self.place = self._number("<|endoftext|>"), self.tokens[kind]
        self._before = tokenizer.encode(BEFORE, add_special_tokens=False)

    def _number(self, token: str) -> int:
        found = self.tokenizer.encode(token, add_special_tokens=False)
        if len(found) != 1:
            raise UserError(f"{self.name}: the tokenizer does not know {token}; it should be Qwen2-VL's")
        return found[0]

    def ask(self, prompt: str) -> str:
        """What is asked about the pixels."""
        return self.text.replace("{text_prompt}", prompt)

    def row(self, prompt: str, count: int) -> list[int]:
        """Token ids of a turn with ``count`` tokens of pixels. UserError for a prompt that has special tokens of its
        own: the model would read its scores off the wrong places."""
        after = self.tokenizer.encode(AFTER.replace("{text}", self.ask(prompt)), add_special_tokens=False)
        mine = {*self.marks, *self.tokens.values()}
        if [token for token in after if token in mine] != [self.tokens["vision_end"], *self.marks]:
            raise UserError(f"{self.name}: the prompt {prompt[:60]!r} contains special tokens of the reward model")
        return [*self._before, *[self.place] * count, *after]
