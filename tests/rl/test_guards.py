"""Guards: what they measure, when a rule speaks, and what the judges call best."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astrolabe.rewards.pixels import boundary_jump, diversity, flicker, motion_energy, saturation, sharpness
from astrolabe.rl.guards import GuardSettings, Meter, Watch, WatchSettings, compared, moments
from astrolabe.runtime.errors import UserError
from astrolabe.types import Footage, Rollout, Scores, Span, to_frames


def video(frames: int = 45, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, frames, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_a_still_grey_blank_video_has_nothing_of_anything() -> None:
    blank = torch.full((1, 45, 3, 8, 8), 0.5)
    for measure in (motion_energy, flicker, saturation, sharpness):
        assert measure(blank).tolist() == [0.0]
    assert boundary_jump(blank, 3).tolist() == [1.0]


@given(st.integers(1, 4), st.booleans())
def test_a_jump_between_chunks_is_found_where_chunks_meet(chunk: int, whole: bool) -> None:
    first = 4 * chunk - 3 if whole else 4 * chunk
    frames = first + 3 * 4 * chunk
    steady = torch.arange(frames) * 0.01
    jumps = sum((torch.arange(frames) >= first + 4 * chunk * number).float() for number in range(3))
    for extra, expected in ((0.0, 1.0), (0.03, 4.0)):
        shown = (steady + extra * jumps).view(1, frames, 1, 1, 1).expand(1, frames, 3, 4, 4)
        torch.testing.assert_close(boundary_jump(shown, chunk), torch.tensor([expected]), rtol=2e-3, atol=0)


@given(st.integers(2, 6), st.integers(0, 20))
def test_diversity_does_not_depend_on_the_size_of_the_group(group: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    spread = diversity(torch.randn(group * 40, 3, 4, 8, 8, generator=rng), group).square().mean().sqrt()
    assert spread.item() == pytest.approx(1.0, abs=0.03)
    same = torch.randn(4, 3, 4, 8, 8, generator=rng).repeat_interleave(group, 0)
    assert diversity(same, group).max() < 1e-4


def rollout(shift: float = 0.0, scale: float = 1.0) -> Rollout:
    latents = shift + scale * torch.randn(4, 12, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    return Rollout(("a", "b"), 2, latents, (), ())


def test_latents_that_move_away_from_the_base_are_seen_beyond_what_two_draws_of_it_differ() -> None:
    own, usual = compared((Meter(3), rollout(shift=0.5, scale=2.0)), (Meter(3), rollout()))
    assert own["latent_shift"] == pytest.approx(1.5, abs=0.05) and own["latent_spread"] == pytest.approx(2.0, abs=0.05)
    assert 1.0 < usual["latent_shift"] < 1.1 and usual["latent_spread"] == pytest.approx(1.0, abs=0.05)
    assert moments(rollout().latents, rollout().latents)["latent_shift"] == pytest.approx(1.0)


def test_pieces_of_a_clip_count_by_their_length_and_too_short_ones_not_at_all() -> None:
    shares: dict[Span, float] = {"mixed": 1.0, "clip": 1.0, "video": 1.0}
    parts = [video(9, 1), video(27, 2), video(2, 3)]
    meter = Meter(3)
    for part in parts:
        meter.see(Footage(torch.arange(2), to_frames(part), ("a",) * 2, shares))
    found = meter.means()["saturation"]
    assert found == pytest.approx(saturation(torch.cat(parts[:2], 1)).mean().item(), abs=1e-3)


def watch(*rules: GuardSettings, memory: float = 0.0, **judges: float) -> Watch:
    return Watch(WatchSettings(guards=rules, memory=memory), ("reward", *judges), judges)


def heard(made: Watch, name: str, values: list[float], base: float = 1.0) -> list[int]:
    """The steps at which a rule spoke."""
    return [step for step, value in enumerate(values) if made.see({name: value}, {name: base})[0]]


def test_a_rule_speaks_after_enough_steps_in_a_row_and_again_only_after_as_many() -> None:
    low = GuardSettings(watch="motion_energy", below=0.6, steps=2)
    assert heard(watch(low), "motion_energy", [0.5, 0.7, 0.5, 0.5, 0.5, 0.5, 0.5]) == [3, 5]
    high = GuardSettings(watch="saturation", above=1.5, steps=1)
    assert heard(watch(high), "saturation", [1.4, 1.6, 1.5]) == [1]
    drop = GuardSettings(watch="reward", drop=0.2, steps=1)
    assert heard(watch(drop), "reward", [0.85, 0.75], base=1.0) == [1]


def test_running_averages_forgive_a_single_bad_step() -> None:
    rule = GuardSettings(watch="flicker", above=1.5, steps=1)
    values = [1.0, 2.0, 1.0, 1.0]
    assert heard(watch(rule), "flicker", values) == [1]
    assert heard(watch(rule, memory=0.8), "flicker", values) == []


def test_slow_halves_the_rate_for_good_and_stop_ends_the_run() -> None:
    made = watch(GuardSettings(watch="flicker", above=1.5, steps=1, action="slow"))
    heard(made, "flicker", [2.0, 1.0, 2.0])
    assert made.rate == 0.25 and not made.stopped
    made = watch(GuardSettings(watch="flicker", above=1.5, steps=2, action="stop"), eye=1.0)
    heard(made, "flicker", [2.0])
    assert not made.stopped
    heard(made, "flicker", [2.0])
    assert made.stopped


def judged(made: Watch, *values: float) -> list[bool]:
    scores = [Scores(("reward", "eye"), torch.tensor([[9.0 - value, value]])) for value in values]
    return [made.judge(one) for one in scores]


def test_the_best_is_what_judges_like_not_what_is_rewarded_and_not_the_first_lucky_step() -> None:
    assert judged(watch(eye=1.0), 0.5, 0.4, 0.6, 0.6) == [True, False, True, False]
    assert judged(watch(memory=0.5, eye=1.0), 0.9, 0.1, 0.9, 0.9) == [False, True, True, True]
    assert judged(watch(), 0.5, 0.6) == [False, False]


def test_what_could_not_be_measured_changes_no_average_and_no_judgement() -> None:
    made = watch(GuardSettings(watch="flicker", above=1.5, steps=1), memory=0.5, eye=1.0)
    assert heard(made, "flicker", [float("nan"), 2.0, float("nan"), 2.0]) == [1, 2, 3]
    made = watch(eye=1.0)
    assert judged(made, 0.9, float("nan"), 0.1) == [True, False, False] and made.best == pytest.approx(0.9)


def test_what_it_has_seen_goes_on_after_a_restart() -> None:
    rules = (GuardSettings(watch="flicker", above=1.5, steps=3, action="slow"),)
    one = watch(*rules, memory=0.5, eye=1.0)
    heard(one, "flicker", [3.0, 3.0])
    judged(one, 0.5, 0.7)
    two = watch(*rules, memory=0.5, eye=1.0)
    two.restore({name: value.clone() for name, value in one.tensors().items()})
    for made in (one, two):
        assert heard(made, "flicker", [3.0]) == [0] and made.rate == 0.5
        assert judged(made, 0.1, 0.9) == [False, True]
    assert one.own == two.own and one.best == two.best


def test_a_rule_about_something_unknown_and_one_without_a_bound_are_refused() -> None:
    with pytest.raises(UserError, match="neither a measure nor a reward here"):
        watch(GuardSettings(watch="beauty", below=0.5))
    with pytest.raises(UserError, match="bound it by drop"):
        watch(GuardSettings(watch="reward", below=0.5))
    with pytest.raises(UserError, match="no judge says which that is"):
        watch(GuardSettings(watch="flicker", below=0.5, action="stop"))
    for bounds in ({}, {"below": 0.5, "drop": 0.1}):
        with pytest.raises(ValueError, match="give one of below, above and drop"):
            GuardSettings(watch="flicker", **bounds)  # type: ignore[arg-type]
