"""Comparisons are paired: base and aligned see the same prompts and the same noise."""

from __future__ import annotations

import torch

from astrolabe.evaluation.paired import both
from astrolabe.evaluation.suites import MEASURES, Suite, equal_parts, run_suite
from astrolabe.rl.policies import Policies
from astrolabe.rl.settings import LoraSettings
from astrolabe.shapes.captions import parse
from astrolabe.shapes.model import load_shapes_model
from astrolabe.shapes.world import Scene

SUITE = Suite("validation", (3, 4), 3)
FEW = (Scene("red", "circle", "left"), Scene("blue", "square", "up"), Scene("white", "cross", "still"))


class ThreeScenes(Suite):
    """A suite small enough to run here."""

    @property
    def scenes(self) -> tuple[Scene, ...]:
        return FEW


def test_a_learner_that_equals_the_base_scores_the_same_on_every_video() -> None:
    generator = load_shapes_model()
    policies = Policies(generator.transformer, LoraSettings(rank=2, alpha=2.0), torch.Generator().manual_seed(0))
    base, aligned = both(generator, policies, ThreeScenes("test", (3, 4), 3), batch=2)
    for measure in MEASURES:
        assert base.scores[measure].shape == (3, 2)
        torch.testing.assert_close(base.scores[measure], aligned.scores[measure])
    places = [(row, noise) for row in range(3) for noise in range(2)]
    torch.testing.assert_close(base.videos(places), aligned.videos(places))


def test_scores_do_not_depend_on_how_videos_are_batched() -> None:
    generator = load_shapes_model()
    one, three = (run_suite(generator, ThreeScenes("test", (3,), 3), (0, 2), batch) for batch in (1, 3))
    assert set(one.held) == {(0, 0), (2, 0)}
    torch.testing.assert_close(one.videos([(2, 0), (0, 0)]), three.videos([(2, 0), (0, 0)]), rtol=0, atol=1)
    torch.testing.assert_close(one.scores["motion_energy"], three.scores["motion_energy"], rtol=1e-2, atol=1e-4)


def test_every_prompt_says_its_scene_in_whatever_wording() -> None:
    for seed in range(9):
        assert tuple(parse(prompt) for prompt in SUITE.prompts(seed)) == SUITE.scenes


def test_windows_leave_out_the_first_frame_and_cover_the_rest() -> None:
    video = torch.arange(9.0).view(1, 9, 1, 1, 1).expand(1, 9, 3, 1, 1)
    parts = equal_parts(video, 4)
    assert [part[0, :, 0, 0, 0].tolist() for part in parts] == [[1, 2], [3, 4], [5, 6], [7, 8]]
