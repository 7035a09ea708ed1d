"""The policies: the learner that is trained, the behavior policy that makes the videos, the reference that anchors."""

from __future__ import annotations

import torch
from torch import nn

from astrolabe.models.lora import LoraSlots
from astrolabe.rl.settings import LoraSettings

SLOTS = ("learner", "behavior", "reference")


class Policies(LoraSlots):
    """The three slots, equal at first; ``with policies.using("behavior"): ...``, never a bare switch (section 5).

    ``alike`` says that learner and behavior are the same to the bit, so that one forward answers for both.
    """

    def __init__(self, base: nn.Module, settings: LoraSettings, generator: torch.Generator):
        super().__init__(base, SLOTS, settings.rank, settings.alpha, generator)
        self.alike = False

    def compare(self) -> None:
        """See whether learner and behavior are alike now; code that changes one of them sets ``alike``."""
        pairs = zip(self.tensors("learner").values(), self.tensors("behavior").values(), strict=True)
        self.alike = all(torch.equal(learner, behavior) for learner, behavior in pairs)

    def trainable(self) -> dict[str, torch.Tensor]:
        """The learner's parameters by name."""
        return self.tensors("learner")
