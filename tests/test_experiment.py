"""The lists of prompts that a recipe can name hold training scenes only."""

from __future__ import annotations

from dataclasses import replace

import pytest

from astrolabe.experiment import make_prompts
from astrolabe.recipes.shapes import shapes
from astrolabe.runtime.errors import UserError
from astrolabe.shapes.captions import WORDINGS, parse, split


@pytest.mark.parametrize(("name", "hard"), [("train", 1), ("practice", 5)])
def test_the_embedded_lists_show_every_training_scene_in_every_wording(name: str, hard: int) -> None:
    prompts = make_prompts(replace(shapes(), prompts=name)).prompts
    scenes = [parse(prompt) for prompt in prompts]
    assert set(scenes) == set(split("train"))
    for scene in split("train"):
        times = hard if scene.motion in ("bounce", "pulse") else 1
        assert scenes.count(scene) == times * WORDINGS
    assert len(set(prompts)) == len(split("train")) * WORDINGS


def test_more_mini_batches_than_groups_are_refused() -> None:
    cfg = shapes()
    with pytest.raises(UserError, match="choose at most"):
        replace(cfg, optimizer=replace(cfg.optimizer, minibatches=cfg.rollout.prompts + 1))
