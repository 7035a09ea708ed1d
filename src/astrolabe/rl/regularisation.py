"""What holds the learner near a reference: on which samples, how strongly, and when the reference moves (method,
section 5; paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from astrolabe.rl.anchor import AdaptiveShare, anchored, disagreement, mean_positive, ranks
from astrolabe.rl.policies import Policies
from astrolabe.rl.settings import RegularisationSettings, Space
from astrolabe.types import Latents, Metrics, PerSample, Scores, Sigmas


def drift(learner: Latents, reference: Latents, sigma: Sigmas, space: Space) -> PerSample:
    """Mean square distance of two clean predictions, or of the velocities they came from: x0 = x - sigma v."""
    difference = learner - reference
    if space == "velocity":
        difference = difference / sigma[:, :, None, None, None]
    return difference.square().mean((1, 2, 3, 4))


class Regulariser:
    """Marks samples, and moves the reference. ``primary`` and ``auxiliary`` are columns of the scores."""

    def __init__(self, settings: RegularisationSettings, primary: int | None = None, auxiliary: tuple[int, ...] = ()):
        self.settings, self.primary, self.auxiliary = settings, primary, auxiliary
        self.share = AdaptiveShare(settings.share, *settings.share_bounds)
        self.age = 0

    @classmethod
    def off(cls) -> Regulariser:
        """One that anchors no sample."""
        return cls(RegularisationSettings())

    def mark(self, scores: Scores, group_size: int, rng: torch.Generator) -> tuple[Bool[Tensor, "b"], Metrics]:
        """The samples to anchor, and what there is to log. Those that have no score are never anchored."""
        settings, valid = self.settings, scores.valid
        if settings.samples in ("none", "uniform"):
            return valid if settings.samples == "uniform" else torch.zeros_like(valid), {}
        assert self.primary is not None
        values = torch.where(valid[:, None], scores.values, torch.nan)
        difference = disagreement(values, self.primary, self.auxiliary, group_size, settings.ranks, settings.order)
        if settings.uncertainty and scores.uncertainty is not None:
            doubt = torch.where(valid, scores.uncertainty[:, self.primary], torch.nan)
            if settings.ranks == "group":
                doubt = doubt.view(-1, group_size)
            ranked = ranks(doubt)
            difference = difference + settings.uncertainty * (ranked - ranked.nanmean(-1, keepdim=True)).flatten()
        level = mean_positive(difference)
        marked = anchored(difference, self.share.see(level))
        if settings.samples == "random":
            rows = valid.nonzero()[:, 0]
            marked = torch.zeros_like(marked).index_fill(
                0, rows[torch.randperm(len(rows), generator=rng)[: int(marked.sum())]], True
            )
        return marked, {"disagreement": level, "anchored": marked.float().mean().item(), "rho": self.share.share}

    def after_step(self, policies: Policies, drift_reference: float | None) -> Metrics:
        """reference <- learner, once the drift is too large or the reference too old."""
        if self.settings.samples == "none":
            return {}
        self.age += 1
        far = drift_reference is not None and self.settings.max_drift is not None
        far = far and drift_reference > self.settings.max_drift  # type: ignore[operator]
        if self.settings.moves and (far or self.age > self.settings.max_age):
            self.refresh(policies)
        return {"reference_age": float(self.age)}

    def refresh(self, policies: Policies) -> None:
        """reference <- learner now."""
        policies.blend("learner", into="reference", keep=0.0)
        self.age = 0

    def tensors(self) -> dict[str, Tensor]:
        """All that decides how it goes on."""
        return {
            "share": torch.tensor(self.share.share, dtype=torch.float64),
            "recent": torch.tensor(list(self.share.recent), dtype=torch.float64),
            "age": torch.tensor(self.age),
        }

    def restore(self, parts: Mapping[str, Tensor]) -> None:
        """The inverse of ``tensors``."""
        self.share.share, self.age = float(parts["share"]), int(parts["age"])
        self.share.recent.clear()
        self.share.recent.extend(parts["recent"].tolist())
