"""The training forward: what learner and behavior predict of noisy chunks, in the world that the sampler saw.

Each noisy chunk sees the frozen past of its stretch, the *clean* chunks of its own candidate before it, and itself,
with the sink, window, evictions and positions of that point of the stream. The context is the behavior policy's, whose
own it was when the clip was streamed; it is computed once a micro-batch, without gradient, and both policies see the
same one: they differ only in what they predict (method, section 4).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as trees

from astrolabe import flow
from astrolabe.models.base import Generator
from astrolabe.rl.policies import Policies
from astrolabe.types import Latents, Sigmas, Stretch, TextEmbeddings


class PromptText:
    """Text keys and values of one prompt under learner and behavior: computed once, whatever is forwarded with them.

    The learner's are held as leaves that gather gradients; ``backward`` passes these on to the adapter, once.
    """

    def __init__(self, generator: Generator, policies: Policies, text: TextEmbeddings):
        self.made: Any = generator.condition(text)
        self.learner: Any = trees.tree_map(lambda x: x.detach().requires_grad_(x.requires_grad), self.made)
        self.behavior: Any = trees.tree_map(torch.detach, self.made)  # what the learner's are, if both are equal
        if not policies.alike:
            with torch.no_grad(), policies.using("behavior"):
                self.behavior = generator.condition(text)

    def backward(self) -> None:
        """Pass on what the leaves have gathered; afterwards the learner's text is used up."""
        pairs = zip(trees.tree_leaves(self.made), trees.tree_leaves(self.learner), strict=True)
        used = [(made, leaf.grad) for made, leaf in pairs if leaf.grad is not None]
        if used:
            torch.autograd.backward([made for made, _ in used], [gradient for _, gradient in used])


class Forward:
    """Predictions for candidates ``clean`` [g f c h w] of one stretch: the clips' frames up to the stretch's end.

    ``clean`` begins with the clips' first frame; the stretch's own frames are those predicted.
    """

    def __init__(
        self, generator: Generator, policies: Policies, stretch: Stretch, text: PromptText, clean: Latents
    ):  # fmt: skip
        self.generator, self.policies, self.stretch, self.text = generator, policies, stretch, text
        with torch.no_grad(), policies.using("behavior"):
            past = stretch.past(clean)
            own = clean[:, stretch.first : stretch.end]
            self.context = generator.context(own, text.behavior, past)

    def predict(self, noisy: Latents, sigma: Sigmas, chunks: slice) -> tuple[Latents, Tensor]:
        """Clean predictions of the chunks number ``chunks`` of the stretch: the learner's, and without gradient the
        behavior policy's. While the two are equal by construction, the second is the first."""
        velocity = self.generator.velocity_in_context(noisy, sigma, self.text.learner, self.context, chunks)
        learner = flow.to_clean(noisy, velocity, sigma)
        if self.policies.alike:
            return learner, learner.detach()
        with torch.no_grad(), self.policies.using("behavior"):
            velocity = self.generator.velocity_in_context(noisy, sigma, self.text.behavior, self.context, chunks)
        return learner, flow.to_clean(noisy, velocity, sigma)
