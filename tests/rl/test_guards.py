"""Guards: what they measure, when a rule applies, and what the judges call best."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astrolabe.rewards.pixels import boundary_jump, diversity, flicker, motion_energy, saturation, sharpness
from astrolabe.rl.guards import Meter, Watch, compared, moments
from astrolabe.rl.settings import GuardSettings, WatchSettings
from astrolabe.runtime.errors import UserError
from astrolabe.types import Footage, Rollout, to_frames, to_video
from astrolabe.words import Span

SHARES: dict[Span, float] = {"mixed": 1.0, "clip": 1.0, "video": 1.0}


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
    parts = [video(9, 1), video(27, 2), video(2, 3)]
    meter = Meter(3)
    for part in parts:
        meter.see(Footage(torch.arange(2), to_frames(part), ("a",) * 2, SHARES))
    found = meter.means()["saturation"]
    assert found == pytest.approx(saturation(torch.cat(parts[:2], 1)).mean().item(), abs=1e-3)


def test_the_clip_alone_is_measured_every_piece_by_its_length() -> None:
    meter, parts, grey = Meter(1), (video(9, 1), video(5, 2)), torch.full((2, 45, 3, 8, 8), 0.5)
    for frames, clip in ((parts[0], True), (parts[1], True), (grey, False), (grey[:, :2], True)):
        meter.see(Footage(torch.arange(2), to_frames(frames), ("a",) * 2, SHARES, clip))
    shown = [to_video(to_frames(one)) for one in parts]
    for name, measure in (("motion_energy", motion_energy), ("boundary_jump", lambda one: boundary_jump(one, 1))):
        expected = sum(one.shape[1] * measure(one).mean().item() for one in shown) / 14
        assert meter.means()[name] == pytest.approx(expected, rel=1e-5)


def test_the_runs_own_measures_come_first_and_the_bases_second() -> None:
    lively, still = Meter(3), Meter(3)
    for meter, frames in ((lively, video(9)), (still, torch.full((2, 9, 3, 8, 8), 0.5))):
        meter.see(Footage(torch.arange(2), to_frames(frames), ("a",) * 2, SHARES))
    same = replace(rollout(), latents=rollout().latents[::2].repeat_interleave(2, 0))
    own, usual = compared((lively, same), (still, rollout()))
    assert own["motion_energy"] > 0.1 and usual["motion_energy"] == 0
    assert own["diversity"] < 1e-4 and usual["diversity"] == pytest.approx(1.0, abs=0.05)


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


def test_a_bound_is_a_share_of_what_the_base_does() -> None:
    low = GuardSettings(watch="flicker", below=0.6, steps=1)
    high = GuardSettings(watch="flicker", above=1.5, steps=1)
    assert heard(watch(low), "flicker", [0.02, 0.011], base=0.02) == [1]
    assert heard(watch(high), "flicker", [0.02, 0.031], base=0.02) == [1]
    assert heard(watch(low), "flicker", [0.0], base=0.0) == []  # the base has nothing of it either


def test_the_base_is_averaged_too_and_only_slow_slows() -> None:
    made = watch(GuardSettings(watch="flicker", above=1.5, steps=1), memory=0.5)
    assert [bool(made.see({"flicker": 1.4}, {"flicker": base})[0]) for base in (1.0, 0.9)] == [False, False]
    for action in ("warn", "refresh"):
        made = watch(GuardSettings(watch="flicker", above=1.5, steps=1, action=action))
        assert heard(made, "flicker", [2.0]) == [0] and made.rate == 1.0


def judged(made: Watch, *values: float) -> list[bool]:
    """Whether each is the best so far; the base's own number goes up and down with the prompts."""
    bases = [0.7 * (number % 3) for number in range(len(values))]
    return [made.judge({"reward": 9 - v, "eye": b + v}, {"reward": 0.0, "eye": b})
            for v, b in zip(values, bases, strict=True)]  # fmt: skip


def test_the_best_is_what_judges_like_not_what_is_rewarded_and_not_the_first_lucky_step() -> None:
    assert judged(watch(eye=1.0), 0.5, 0.4, 0.6, 0.6) == [True, False, True, False]
    assert judged(watch(memory=0.5, eye=1.0), 0.9, 0.1, 0.9, 0.9) == [False, True, True, True]
    assert judged(watch(), 0.5, 0.6) == [False, False]


def test_judges_weigh_and_count_from_the_fifth_step() -> None:
    made = watch(eye=1.0, ear=3.0)
    assert made.judge({"eye": 0.9, "ear": 0.1}, {"eye": 0.5, "ear": 0.0}) and made.best == pytest.approx(0.7)
    assert not made.judge({"eye": math.nan, "ear": 9.0}, {"eye": 0.5, "ear": 0.0})
    assert judged(watch(memory=0.8, eye=1.0), *(0.1 * n for n in range(6))) == [False] * 4 + [True] * 2


def test_a_restart_knows_rate_end_and_both_averages() -> None:
    rules = [GuardSettings(watch="flicker", above=1.5, steps=1, action=a) for a in ("slow", "stop")]
    one, two = (watch(*rules, memory=0.5, eye=1.0) for _ in range(2))
    for base in (1.0, 0.5):
        one.see({"flicker": 3.0}, {"flicker": base})
    judged(one, 0.5, 0.9, 0.1)
    two.restore(one.tensors())
    assert (two.rate, two.stopped, two.base) == (0.25, True, {"flicker": 0.75})
    assert (two.judgement, two.best) == (one.judgement, one.best) and one.judgement < one.best


def test_what_could_not_be_measured_changes_no_average_and_no_judgement() -> None:
    made = watch(GuardSettings(watch="flicker", above=1.5, steps=1), memory=0.5, eye=1.0)
    assert heard(made, "flicker", [float("nan"), 2.0, float("nan"), 2.0]) == [1, 3]
    rule = GuardSettings(watch="flicker", above=1.5, steps=2)
    assert heard(watch(rule), "flicker", [2.0, float("nan"), 1.0, 2.0, float("nan"), 2.0]) == [5]
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
