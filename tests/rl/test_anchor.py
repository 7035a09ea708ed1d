"""Disagreement, the mask it makes, and how rho adapts: on constructed ranks, and on rules that hold for any."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astrolabe.rl.anchor import AdaptiveShare, anchored, disagreement, mean_positive, ranks
from astrolabe.rl.policies import Policies
from astrolabe.rl.regularisation import Regulariser, drift
from astrolabe.rl.settings import RegularisationSettings
from astrolabe.types import Scores

ROWS = st.integers(2, 30)


def columns(rows: int, seed: int, count: int = 3, levels: int = 5) -> torch.Tensor:
    """Scores with many ties."""
    return torch.randint(levels, (rows, count), generator=torch.Generator().manual_seed(seed)).double()


def test_the_highest_score_has_the_highest_rank_and_ties_share_theirs() -> None:
    assert ranks(torch.tensor([3.0, 1.0, 2.0, 2.0])).tolist() == [3.0, 0.0, 1.5, 1.5]
    with_a_gap = ranks(torch.tensor([3.0, torch.nan, 2.0, 2.0]))
    assert with_a_gap[1].isnan() and with_a_gap[[0, 2, 3]].tolist() == [2.0, 0.5, 0.5]


@given(ROWS, st.integers(0, 99))
def test_ranks_always_add_up_to_the_same_and_follow_the_order(rows: int, seed: int) -> None:
    values = columns(rows, seed)[:, 0]
    ranked = ranks(values)
    assert ranked.sum().item() == rows * (rows - 1) / 2
    for i in range(rows):
        for j in range(rows):
            assert (values[i] < values[j]) == (ranked[i] < ranked[j])


def test_a_planted_hack_is_anchored_and_its_mirror_image_is_not() -> None:
    rest = torch.linspace(0, 1, 20)
    swapped = rest.view(10, 2).flip(1).flatten()  # neighbours of which one is liked a little more, one a little less
    primary, others = torch.cat([rest, torch.tensor([2.0, -1.0])]), torch.cat([swapped, torch.tensor([-1.0, 2.0])])
    values = torch.stack([primary, others, others.square().copysign(others)], 1)
    difference = disagreement(values, 0, (1, 2), 22)
    marked = anchored(difference, 0.5)
    assert difference[20] == 21 and difference[21] == -21
    assert marked.nonzero()[:, 0].tolist() == [20]
    descending = disagreement(values, 0, (1, 2), 22, order="descending")
    assert anchored(descending, 0.5)[21] and not anchored(descending, 0.5)[20]


def test_disagreement_is_the_primary_rank_minus_the_mean_of_the_others() -> None:
    values = torch.tensor([[1.0, 5.0, 0.0], [2.0, 4.0, 9.0], [3.0, 3.0, 5.0]])
    assert disagreement(values, 0, (1, 2), 3).tolist() == [0 - 1.0, 1 - 1.5, 2 - 0.5]


def test_ranks_are_of_the_step_or_of_the_group() -> None:
    values = torch.tensor([[0.0, 0.0], [1.0, 3.0], [2.0, 1.0], [3.0, 2.0]])
    assert disagreement(values, 0, (1,), 2, "step").tolist() == [0.0, -2.0, 1.0, 1.0]
    assert disagreement(values, 0, (1,), 2, "group").tolist() == [0.0] * 4


def test_within_groups_only_ones_own_group_counts() -> None:
    values = torch.tensor([[0.0, 1.0], [1.0, 0.0], [10.0, 10.0], [11.0, 11.0]])
    assert disagreement(values, 0, (1,), 2, "group").tolist() == [-1.0, 1.0, 0.0, 0.0]


@given(ROWS, st.integers(0, 99), st.floats(0.02, 0.9))
def test_anchored_are_disagreeing_and_no_more_than_their_share(rows: int, seed: int, share: float) -> None:
    difference = disagreement(columns(rows, seed), 0, (1, 2), rows)
    marked = anchored(difference, share)
    positive = difference > 0
    assert not bool((marked & ~positive).any())
    assert marked.sum() <= math.ceil(share * int(positive.sum()))
    if bool(marked.any()):
        assert difference[marked].min() > difference[positive & ~marked].max().nan_to_num(neginf=0.0)


def test_a_tail_of_the_positive_disagreements_lies_above_the_percentile() -> None:
    difference = torch.tensor([-5.0, 0.0, *range(1, 11)])
    assert difference[anchored(difference, 0.2)].tolist() == [9.0, 10.0]  # above the 80th percentile, 8.2
    assert not anchored(-torch.ones(4), 0.5).any() and mean_positive(-torch.ones(4)) == 0.0


def test_rho_rises_above_every_recent_step_falls_below_and_stays_in_bounds() -> None:
    rho = AdaptiveShare(0.1, 0.02, 0.2)
    assert rho.see(5.0) == 0.1  # nothing to compare with yet
    assert rho.see(6.0) == pytest.approx(0.11)
    assert rho.see(5.5) == pytest.approx(0.11)
    assert rho.see(4.0) == pytest.approx(0.099)
    for level in range(7, 40):
        rho.see(float(level))
    assert rho.share == 0.2 and len(rho.recent) == 20
    for level in range(7, -60, -1):
        rho.see(float(level))
    assert rho.share == 0.02


def test_only_the_last_twenty_steps_are_remembered() -> None:
    rho = AdaptiveShare(0.1, 0.02, 0.2)
    rho.see(100.0)
    for _ in range(20):
        rho.see(1.0)
    before = rho.share
    assert rho.see(2.0) == pytest.approx(1.1 * before)


def scores(values: torch.Tensor, doubt: torch.Tensor | None = None) -> Scores:
    return Scores(tuple("abc"[: values.shape[1]]), values, doubt)


def regulariser(**fields: object) -> Regulariser:
    settings = {"samples": "selective", "share": 0.2} | fields
    return Regulariser(RegularisationSettings(**settings), 0, (1, 2))  # type: ignore[arg-type]


def test_the_random_control_anchors_as_many_but_others() -> None:
    values = columns(48, 1)
    picked = []
    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        chosen, _ = regulariser().mark(scores(values), 12, rng)
        control, _ = regulariser(samples="random").mark(scores(values), 12, rng)
        assert control.sum() == chosen.sum() > 0 and not torch.equal(control, chosen)
        picked.append(control)
    assert not torch.equal(picked[0], picked[1])


def test_a_sample_without_a_score_is_never_anchored_and_moves_nobodys_rank() -> None:
    values = columns(24, 2)
    values[7, 1] = torch.nan
    for samples in ("selective", "uniform", "random"):
        for seed in range(20):
            rng = torch.Generator().manual_seed(seed)
            marked, _ = regulariser(samples=samples).mark(scores(values), 24, rng)
            assert not marked[7]
    rest = [row for row in range(24) if row != 7]
    marked, seen = regulariser().mark(scores(values), 24, torch.Generator())
    alone, told = regulariser().mark(scores(values[rest]), 23, torch.Generator())
    assert torch.equal(marked[rest], alone) and seen["disagreement"] == told["disagreement"]


def test_a_rewards_own_uncertainty_adds_to_the_disagreement() -> None:
    values = torch.tensor([[2.0, 1.0, 1.0], [1.0, 2.0, 2.0], [4.0, 3.0, 3.0], [3.0, 4.0, 4.0]])
    doubt = torch.zeros(4, 3)
    doubt[2, 0] = 9.0
    plain, _ = regulariser(share=0.5, share_bounds=(0.1, 0.9)).mark(scores(values, doubt), 4,
                                                                   torch.Generator())  # fmt: skip
    asked, _ = regulariser(share=0.5, share_bounds=(0.1, 0.9), uncertainty=1.0).mark(
        scores(values, doubt), 4, torch.Generator()
    )
    assert not plain.any()  # two that disagree equally: nobody stands out
    assert asked.nonzero()[:, 0].tolist() == [2]
    even = [regulariser(uncertainty=weight).mark(scores(values, torch.ones(4, 3)), 4, torch.Generator())[1]
            for weight in (0.0, 1.0)]  # fmt: skip
    assert even[0] == even[1]  # where all are doubted alike, nothing changes


class Slots(Policies):
    """Notes what is blended, and holds nothing."""

    def __init__(self) -> None:
        self.moves: list[tuple[str, str, float]] = []

    def blend(self, source: str, into: str, keep: float) -> None:
        self.moves.append((source, into, keep))


def moved(steps: int, drifts: list[float | None], **fields: object) -> list[int]:
    """At which of so many steps the reference moved."""
    held, found = regulariser(**fields), []
    for step in range(steps):
        slots = Slots()
        held.after_step(slots, drifts[step % len(drifts)])
        found += [step] if slots.moves else []
        assert slots.moves in ([], [("learner", "reference", 0.0)])
    return found


def test_the_reference_moves_when_it_is_too_old_or_too_far_and_never_when_fixed() -> None:
    assert moved(12, [0.1], max_age=3) == [3, 7, 11]
    assert moved(5, [0.1, 0.3, 0.2], max_age=9, max_drift=0.25) == [1, 4]
    assert moved(3, [None], max_drift=0.25) == []
    assert moved(40, [9.0], max_drift=0.1, max_age=1, reference="fixed") == []
    assert moved(40, [9.0], max_age=1, samples="none") == []


def test_what_it_remembers_goes_on_after_a_restart() -> None:
    one = regulariser(max_age=4)
    for step in range(6):
        one.mark(scores(columns(24, step)), 24, torch.Generator())
        one.after_step(Slots(), None)
    two = regulariser(max_age=4)
    two.restore({name: value.clone() for name, value in one.tensors().items()})
    for step in range(6, 12):
        marks = [r.mark(scores(columns(24, step)), 24, torch.Generator()) for r in (one, two)]
        assert torch.equal(marks[0][0], marks[1][0]) and marks[0][1] == marks[1][1]
        assert one.after_step(Slots(), None) == two.after_step(Slots(), None)


def test_drift_in_velocities_is_that_of_the_velocities() -> None:
    noisy, one, two = torch.randn(3, 2, 6, 4, 2, 2, dtype=torch.float64)
    sigma = torch.tensor([[1.0] * 3 + [0.625] * 3, [0.9375] * 6], dtype=torch.float64)
    level = sigma[:, :, None, None, None]
    clean = [noisy - level * velocity for velocity in (one, two)]
    torch.testing.assert_close(drift(clean[0], clean[1], sigma, "velocity"), (one - two).square().mean((1, 2, 3, 4)))
    torch.testing.assert_close(
        drift(clean[0], clean[1], sigma, "x0"), (clean[0] - clean[1]).square().mean((1, 2, 3, 4))
    )
