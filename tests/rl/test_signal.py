"""How sure a step is of its advantages, and what a run is warned of."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astrolabe.rl.signal import SURE, LearningWarnings, advantage_signal
from astrolabe.types import Scores


def signal(groups: torch.Tensor, doubt: float = 0.0, weights: tuple[float, ...] = (1.0,)) -> dict[str, float]:
    """Of one reward: scores [prompts, candidates]."""
    values = groups.reshape(-1, 1).expand(-1, len(weights)).contiguous().float()
    scores = Scores(tuple(map(str, range(len(weights)))), values, torch.full_like(values, doubt))
    return advantage_signal(scores, weights, "weighted_sum", groups.shape[1])


def groups(*spreads: float) -> torch.Tensor:
    """Two candidates of every prompt, so far apart."""
    return torch.tensor([[-spread / 2, spread / 2] for spread in spreads])


def test_the_signal_is_the_mean_variance_between_candidates_over_its_standard_error() -> None:
    found = signal(groups(1.0, 2.0, 3.0))
    variances = torch.tensor([0.5, 2.0, 4.5])
    assert found["advantage_snr"] == pytest.approx(
        (variances.mean() / (variances.std() / math.sqrt(3))).item(), rel=1e-5
    )


@given(st.lists(st.floats(0.1, 3.0), min_size=2, max_size=6, unique=True), st.integers(2, 40))
def test_as_many_prompts_as_are_wanted_are_just_enough(spreads: list[float], times: int) -> None:
    variances = torch.tensor(spreads, dtype=torch.float64).square() / 2
    wanted = int(signal(groups(*spreads))["prompts_wanted"])
    snr = [(variances.mean() / variances.std() * math.sqrt(count)).item() for count in (wanted, wanted - 1)]
    assert snr[0] >= SURE - 1e-4 and (wanted == 2 or snr[1] < SURE + 1e-4)


def test_what_rewards_are_uncertain_by_is_no_difference_between_candidates() -> None:
    certain, doubtful, blind = (signal(groups(1.0, 2.0, 3.0), doubt) for doubt in (0.0, 0.8, 2.0))
    assert certain["advantage_snr"] > doubtful["advantage_snr"] > blind["advantage_snr"] == 0.0
    assert certain["prompts_wanted"] < doubtful["prompts_wanted"] and "prompts_wanted" not in blind


def test_the_scale_of_a_reward_changes_nothing_where_rewards_are_standardised() -> None:
    made = groups(1.0, 2.0, 3.0).reshape(-1, 1)
    found = [
        advantage_signal(
            Scores(("a",), scale * made, torch.full_like(made, scale * 0.3)), (1.0,), "normalize_then_sum", 2
        )
        for scale in (1.0, 50.0)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_samples_without_a_score_are_left_out_and_too_few_prompts_say_nothing() -> None:
    made = torch.tensor([[0.0, 1.0, torch.nan], [0.0, 2.0, torch.nan], [torch.nan, torch.nan, 5.0]])
    assert signal(made)["advantage_snr"] == pytest.approx(signal(made[:2, :2])["advantage_snr"])
    assert signal(made[1:]) == {} and signal(groups(1.0)) == {}
    assert signal(groups(0.0, 0.0)) == {"advantage_snr": 0.0}


def heard(keep: float, lines: list[dict[str, float]]) -> tuple[list[tuple[int, str]], list[str]]:
    """What is said of some steps, each with its number, and at the end."""
    made = LearningWarnings(lambda step: keep)
    said = [(step, text) for step, line in enumerate(lines) for text in made.see(step, line)]
    return said, made.last()


def line(useful: float = 1.0, **more: Any) -> dict[str, float]:
    return {"useful_samples": useful, **more}


def test_a_run_whose_rewards_tell_nothing_apart_is_warned_once_and_at_the_end() -> None:
    said, last = heard(0.5, [line(0.0)] * 5)
    assert [step for step, _ in said] == [2] and "told the candidates of any prompt apart for 3 steps" in said[0][1]
    assert len(last) == 1 and "for 5 steps" in last[0]
    assert heard(0.5, [line(0.0), line(0.0), line(old_gap=0.1)] * 2) == ([], [])
    assert "for 2 steps" in heard(0.5, [line(0.0)] * 2)[1][0]  # of a run that was that short
    assert heard(0.5, []) == ([], [])


def test_policies_that_should_differ_and_do_not_are_told_after_the_first_step() -> None:
    said, last = heard(0.5, [line(old_gap=0.0)] * 5)
    assert [step for step, _ in said] == [3] and "(old_gap 0)" in said[0][1] and len(last) == 1
    assert heard(0.5, [line(old_gap=0.0)] + [line(old_gap=1e-9)] * 5) == ([], [])


def test_an_on_policy_run_begins_every_step_with_equal_policies() -> None:
    assert heard(0.0, [line(old_gap=0.0)] * 5) == ([], [])


def test_steps_that_learn_nothing_say_nothing_of_the_policies() -> None:
    lines = [line(old_gap=0.1), line(old_gap=0.0), line(0.0), line(old_gap=0.0), line(old_gap=0.0)]
    assert [step for step, _ in heard(0.5, lines)[0]] == [4]
