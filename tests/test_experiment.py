"""The lists of prompts that a recipe can name hold training scenes only."""

from __future__ import annotations

from dataclasses import replace

import pytest

from astrolabe.experiment import make_prompts
from astrolabe.recipes.shapes import shapes
from astrolabe.runtime.errors import UserError
from astrolabe.shapes.captions import WORDINGS, parse, split
from astrolabe.shapes.world import MOTIONS


@pytest.mark.parametrize(("name", "words"), [("train", {*MOTIONS}), ("practice", {"bounce", "pulse", "cross"})])
def test_the_embedded_lists_show_their_training_scenes_in_every_wording_once(name: str, words: set[str]) -> None:
    prompts = make_prompts(replace(shapes(), prompts=name)).prompts
    wanted = {scene for scene in split("train") if words & {scene.motion, scene.shape}}
    assert {parse(prompt) for prompt in prompts} == wanted
    assert len(prompts) == len(set(prompts)) == len(wanted) * WORDINGS


def test_more_mini_batches_than_groups_are_refused() -> None:
    cfg = shapes()
    with pytest.raises(UserError, match="choose at most"):
        replace(cfg, optimizer=replace(cfg.optimizer, minibatches=cfg.rollout.prompts + 1))
