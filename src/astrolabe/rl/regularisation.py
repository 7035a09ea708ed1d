"""What holds the learner near a reference: on which samples, how strongly, and when the reference moves (method,
section 5; paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from astrolabe.rl.anchor import AdaptiveShare, RankOrder, RankScope, anchored, disagreement, mean_positive, ranks
from astrolabe.rl.policies import Policies
from astrolabe.runtime.config import config, setting
from astrolabe.types import Latents, Metrics, PerSample, Scores, Sigmas

Space = Literal["x0", "velocity"]


@config
class RegularisationSettings:
    """A pull of the learner towards the reference policy, on some of the samples.

    By default there is none: docs/evidence.md has a reward that is hacked without one (``b none``), and rewards that
    are not (``c all``). Selective, ascending and moving are the paper's words; no other cell ``b`` does better
    beyond chance, and ``b selective fixed`` and ``b uniform fixed`` hold a reward back most.
    """

    samples: Literal["none", "selective", "uniform", "random"] = setting(
        "whom it pulls: nobody; those that the primary reward likes and the auxiliary ones do not; everybody; or as "
        "many as selective would, drawn at random (a control)",
        default="none",
    )
    strength: float = setting("weight lambda of the pull beside the loss", default=1e-4, gt=0)
    space: Space = setting("where the drift is measured: in clean predictions or in velocities", default="x0")
    share: float = setting("share rho of the disagreeing samples that are anchored, at first", default=0.1, gt=0, lt=1)
    share_bounds: tuple[float, float] = setting("between which rho adapts", default=(0.02, 0.2))
    ranks: RankScope = setting("among whom samples are ranked: all of a step, or each group", default="step")
    order: RankOrder = setting(
        "which rank is best: ascending is the highest; descending anchors the opposite samples, to compare with",
        default="ascending",
    )
    uncertainty: float = setting(
        "how much the primary reward's own uncertainty adds to the disagreement, both in ranks", default=0.0, ge=0
    )
    reference: Literal["moving", "fixed"] = setting(
        "whether the learner becomes the new reference now and then, or the base stays it", default="moving"
    )
    max_drift: float | None = setting(
        "the reference moves when the mean drift of the anchored samples exceeds this; the default is never",
        default=None,
        gt=0,
    )
    max_age: int = setting("the reference moves when it is older than this", unit="steps", default=15, ge=1)

    @property
    def moves(self) -> bool:
        """Whether there is a reference that moves."""
        return self.samples != "none" and self.reference == "moving"

    def __post_init__(self) -> None:
        low, high = self.share_bounds
        if not 0 < low <= self.share <= high < 1:
            raise ValueError(f"share={self.share} must lie within share_bounds={low},{high}, and these between 0 and 1")


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
        """One that anchors nobody."""
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
