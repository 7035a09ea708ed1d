"""The lists of prompts that a recipe can name hold training scenes only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from astrolabe.assembly import make_algorithm, make_prompts, make_rewards, make_scorers, make_watch
from astrolabe.recipes.shapes import shapes, shapes_selective
from astrolabe.rewards.custom import write_template
from astrolabe.rewards.settings import RewardSettings
from astrolabe.rl.settings import GuardSettings, RegularisationSettings, WatchSettings
from astrolabe.runtime.errors import UserError
from astrolabe.shapes.captions import WORDINGS, parse, split


def test_the_embedded_list_shows_every_training_scene_in_every_wording_once() -> None:
    prompts = make_prompts(replace(shapes(), prompts="train")).prompts
    assert {parse(prompt) for prompt in prompts} == set(split("train"))
    assert len(prompts) == len(set(prompts)) == len(split("train")) * WORDINGS


def test_more_mini_batches_than_groups_are_refused() -> None:
    cfg = shapes()
    with pytest.raises(UserError, match="choose at most"):
        replace(cfg, optimizer=replace(cfg.optimizer, minibatches=cfg.rollout.prompts + 1))


def suite(*rewards: dict[str, Any]) -> tuple[RewardSettings, ...]:
    return tuple(RewardSettings(**reward) for reward in rewards)


JOINT, SHAPE = {"name": "joint"}, {"name": "shape_fit"}
SELECTIVE = RegularisationSettings(samples="selective")


@pytest.mark.parametrize(
    ("rewards", "regularisation", "said"),
    [
        ((JOINT | {"role": "primary"}, SHAPE | {"role": "primary"}), SELECTIVE, "joint and shape_fit are both primary"),
        ((JOINT, SHAPE), SELECTIVE, "give one reward role=primary"),
        ((JOINT | {"role": "primary"},), SELECTIVE, "at least one more reward"),
        ((JOINT | {"role": "primary"}, SHAPE | {"role": "judge"}), SELECTIVE, "at least one more reward"),
        ((JOINT | {"weight": 0.0}, SHAPE | {"weight": 0.0}), None, "has weight 0"),
        ((JOINT | {"role": "judge"},), None, "has weight 0"),
        ((JOINT, JOINT | {"role": "judge"}), None, "joint is both a judge and trained on"),
        ((JOINT, JOINT), None, "joint is named twice"),
        ((JOINT | {"role": "primary", "weight": 0.0}, SHAPE), SELECTIVE, "the primary reward joint has weight 0"),
        (({"name": "motion", "frames": 5},), None, "motion looks at motion and must see every frame"),
        (({"name": "shape", "frames": 5},), None, "the oracles need at least 9"),
    ],
)
def test_rewards_that_make_no_sense_together_are_refused(
    rewards: tuple[dict[str, Any], ...], regularisation: RegularisationSettings | None, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        replace(shapes(), rewards=suite(*rewards), regularisation=regularisation or RegularisationSettings())


def test_judges_stand_last_and_weigh_nothing_in_training() -> None:
    rewards = suite({"name": "motion", "role": "judge", "weight": 2.0}, SHAPE | {"weight": 0.5},
                    JOINT | {"role": "primary"})  # fmt: skip
    cfg = replace(shapes(), rewards=rewards, regularisation=SELECTIVE)
    assert [member.reward.name for member in make_rewards(cfg)] == ["shape_fit", "joint", "motion"]
    algorithm = make_algorithm(cfg)
    assert algorithm.weights == (0.5, 1.0)
    assert (algorithm.regulariser.primary, algorithm.regulariser.auxiliary) == (1, (0,))
    assert make_watch(cfg).judges == {"motion": 2.0}


def test_the_selective_recipe_is_the_plain_one_with_a_primary_and_a_pull() -> None:
    plain, selective = shapes(), shapes_selective()
    assert replace(selective, rewards=plain.rewards, regularisation=plain.regularisation) == plain


def test_a_guard_that_moves_a_reference_needs_one_that_moves() -> None:
    rewards, guard = (
        suite(JOINT | {"role": "primary"}, SHAPE),
        GuardSettings(watch="flicker", above=2.0, action="refresh"),
    )
    base = replace(shapes(), rewards=rewards, watch=WatchSettings(guards=(guard,)))
    for held in (RegularisationSettings(), replace(SELECTIVE, reference="fixed")):
        with pytest.raises(UserError, match="action=refresh moves the reference"):
            make_watch(replace(base, regularisation=held))
    assert make_watch(replace(base, regularisation=SELECTIVE)).wanted


def test_uncertainty_is_asked_only_of_a_reward_that_knows_its_own() -> None:
    rewards = suite(JOINT | {"role": "primary"}, SHAPE)
    with pytest.raises(UserError, match="joint does not say how uncertain it is"):
        replace(shapes(), rewards=rewards, regularisation=replace(SELECTIVE, uncertainty=0.5))


def test_two_rewards_of_one_name_are_refused_once_they_are_open(tmp_path: Path) -> None:
    specs = [write_template("Mine", tmp_path / f"{letter}.py") for letter in "ab"]
    cfg = replace(shapes(), rewards=tuple(RewardSettings(name=spec) for spec in specs))
    with pytest.raises(UserError, match="two of them call themselves 'mine'"), make_scorers(cfg):
        pass


def test_a_reward_of_ones_own_is_asked_for_its_uncertainty_once_it_is_open(tmp_path: Path) -> None:
    spec = write_template("Mine", tmp_path / "mine.py")
    rewards = (RewardSettings(name=spec, role="primary"), RewardSettings(name="shape"))
    cfg = replace(shapes(), rewards=rewards, regularisation=replace(SELECTIVE, uncertainty=0.5))
    with pytest.raises(UserError, match="mine does not say how uncertain it is"), make_scorers(cfg):
        pass
