"""Prompt lists, and the batch of a step as a function of the step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from astrolabe.data.scripts import parse_script, prompts_of
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.random import rng_for

LONGEST = 4096  # characters of one prompt: beyond that a file is hardly a prompt list


def read_prompts(path: Path | str) -> list[str]:
    """One prompt or one-line script a line, without blank lines and ``#`` comments.

    Raises UserError for a file that is no prompt list.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8 text, one prompt a line") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); expected a text file, one prompt a line") from None
    prompts = [line.strip() for line in text.lstrip("\ufeff").splitlines()]
    prompts = [line for line in prompts if line and not line.startswith("#")]
    if not prompts:
        raise UserError(f"{path} has no prompts; expected one prompt a line")
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) > LONGEST:
            raise UserError(f"{path}: prompt {number} has {len(prompt)} characters; at most {LONGEST} are accepted")
    return prompts


class PromptList:
    """Prompts in an order that is shuffled anew every pass, but depends on nothing but the seed and the batch's number.

    A line may be a script of several prompts (``data.scripts``); ``texts`` are all prompts that occur.
    """

    def __init__(self, prompts: Sequence[str], count: int, seed: int):
        self.prompts, self.count, self.seed = tuple(prompts), count, seed
        self.texts = prompts_of([parse_script(line) for line in dict.fromkeys(self.prompts)])

    def batch(self, number: int) -> tuple[str, ...]:
        """The ``count`` prompts of a batch: resuming needs no state."""
        return tuple(self._at(number * self.count + i) for i in range(self.count))

    def _at(self, position: int) -> str:
        lap, place = divmod(position, len(self.prompts))
        order = torch.randperm(len(self.prompts), generator=rng_for(self.seed, lap, "prompts"))
        return self.prompts[int(order[place])]
