"""The training forward: what learner and behavior predict of noisy chunks, in the context that the sampler saw.

Each noisy chunk sees the frozen past of its stretch, the *clean* chunks of its own candidate before it, and itself,
with the sink, window, evictions and positions of that point of the stream. The context is the behavior policy's, whose
own it was when the clip was streamed; it is computed once a micro-batch, without gradient, and both policies see the
same one: they differ only in what they predict (method, section 4). So does the reference, for anchored samples.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as trees

from astrolabe import flow
from astrolabe.models.base import Generator
from astrolabe.rl.policies import Policies
from astrolabe.types import Latents, Sigmas, Stretch, TextEmbeddings


class PromptText:
    """Text keys and values of one prompt under each policy: computed once, whatever is forwarded with them.

    The learner's are held as leaves that gather gradients; ``backward`` passes these on to the adapter.
    """

    def __init__(self, generator: Generator, policies: Policies, text: TextEmbeddings):
        self.generator, self.policies, self.text = generator, policies, text
        self.made: Any = generator.condition(text)
        self.learner: Any = trees.tree_map(lambda x: x.detach().requires_grad_(x.requires_grad), self.made)
        self.behavior: Any = trees.tree_map(torch.detach, self.made)  # what the learner's are, if both are equal
        if not policies.alike:
            with torch.no_grad(), policies.using("behavior"):
                self.behavior = generator.condition(text)

    @cached_property
    def reference(self) -> Any:
        """Under the reference, which only anchored samples ask for."""
        with torch.no_grad(), self.policies.using("reference"):
            return self.generator.condition(self.text)

    def backward(self) -> None:
        """Pass on what the leaves have gathered since the last time."""
        pairs = zip(trees.tree_leaves(self.made), trees.tree_leaves(self.learner), strict=True)
        used = [(made, leaf, leaf.grad) for made, leaf in pairs if leaf.grad is not None]
        for _, leaf, _ in used:
            leaf.grad = None
        if used:
            torch.autograd.backward([made for made, _, _ in used], [more for _, _, more in used], retain_graph=True)


class Forward:
    """Predictions for candidates ``clean`` [g f c h w] of one stretch: the clips' frames up to the stretch's end.

    ``clean`` begins with the clips' first frame; the stretch's own frames are those predicted.
    """

    def __init__(
        self, generator: Generator, policies: Policies, stretch: Stretch, text: PromptText, clean: Latents
    ):  # fmt: skip
        self.generator, self.policies, self.stretch, self.text = generator, policies, stretch, text
        with torch.no_grad(), policies.using("behavior"):
            self.past = stretch.past(clean)
            own = clean[:, stretch.first : stretch.end]
            self.context = generator.context(own, text.behavior, self.past)

    def facing_noise(self, noisy: Latents, sigma: Sigmas) -> Forward:
        """The same forward where every chunk sees the chunks of the stretch before it as noisy as they are here."""
        other = copy.copy(self)
        with torch.no_grad(), self.policies.using("behavior"):
            other.context = self.generator.context(noisy, self.text.behavior, self.past, sigma)
        return other

    def predict(self, noisy: Latents, sigma: Sigmas, chunks: slice) -> tuple[Latents, Tensor]:
        """Clean predictions of the chunks number ``chunks`` of the stretch: the learner's, and without gradient the
        behavior policy's. While the two are equal by construction, the second is the first."""
        learner = self.learner(noisy, sigma, chunks)
        if self.policies.alike:
            return learner, learner.detach()
        with torch.no_grad(), self.policies.using("behavior"):
            return learner, self._clean(noisy, sigma, self.text.behavior, chunks)

    def learner(self, noisy: Latents, sigma: Sigmas, chunks: slice) -> Latents:
        """The learner's clean prediction alone, with gradient."""
        return self._clean(noisy, sigma, self.text.learner, chunks)

    def reference(self, noisy: Latents, sigma: Sigmas, chunks: slice) -> Latents:
        """The reference's clean prediction, without gradient."""
        with torch.no_grad(), self.policies.using("reference"):
            return self._clean(noisy, sigma, self.text.reference, chunks)

    def _clean(self, noisy: Latents, sigma: Sigmas, text: Any, chunks: slice) -> Latents:
        return flow.to_clean(noisy, self.generator.velocity_in_context(noisy, sigma, text, self.context, chunks), sigma)
