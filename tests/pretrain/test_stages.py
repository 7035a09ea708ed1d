"""The stages that make the embedded model, in miniature."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from astrolabe.pretrain.__main__ import stage
from astrolabe.pretrain.data import LatentData, draw_captions
from astrolabe.pretrain.distill import Student, StudentPlan, distill
from astrolabe.pretrain.flow_matching import TeacherPlan, train_teacher
from astrolabe.pretrain.sampling import sample_many_steps
from astrolabe.rollout.videos import generate, video_noise
from astrolabe.shapes.captions import parse, split
from astrolabe.shapes.codec import Codec
from astrolabe.shapes.model import load_shapes_model
from astrolabe.shapes.settings import STREAM, WAN


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(WAN, dim=48, ffn_dim=96, num_heads=2, num_layers=1)
    monkeypatch.setattr("astrolabe.pretrain.flow_matching.WAN", small)


def test_held_out_scenes_never_occur_in_the_training_of_the_model() -> None:
    rng = torch.Generator().manual_seed(0)
    held_out = {*split("test"), *split("validation")}
    assert not held_out & {parse(text) for text in draw_captions(2000, rng)}
    data = LatentData(Codec().eval(), 1, rng)
    assert not held_out & set(data.scenes)
    batch = data.draw(64, 12, 3, rng)
    assert batch.clean.shape == (64, 12, 16, 8, 8)
    from_the_start = batch.counted[:, 0] == 1
    assert 10 < from_the_start.sum() < 54
    assert (batch.counted[:, 3:] == 1).all() and (batch.counted[~from_the_start, :3] == 0).all()


def test_emphasis_draws_the_scenes_of_a_shape_or_a_motion_more_often() -> None:
    rng = torch.Generator().manual_seed(0)
    codec = Codec().eval()

    def share(emphasis: dict[str, float] | None) -> float:
        data = LatentData(codec, 1, rng, emphasis)
        scenes = [parse(text) for text in data.draw(4000, 3, 3, rng).captions]
        return sum(scene.motion == "pulse" and scene.shape == "cross" for scene in scenes) / len(scenes)

    def expected(emphasis: dict[str, float]) -> float:
        weights = {s: emphasis.get(s.motion, 1.0) * emphasis.get(s.shape, 1.0) for s in split("train")}
        wanted = sum(w for s, w in weights.items() if s.motion == "pulse" and s.shape == "cross")
        return wanted / sum(weights.values())

    for emphasis in ({}, {"pulse": 3.0}, {"pulse": 3.0, "cross": 3.0}):
        assert share(emphasis or None) == pytest.approx(expected(emphasis), abs=0.03)
    assert expected({}) < 0.06 < expected({"pulse": 3.0, "cross": 3.0})


def test_a_stage_is_done_once_a_plan(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, torch.Tensor]:
        made.append(1)
        return {"x": torch.ones(2)}

    for plan in ({"steps": 1}, {"steps": 1}, {"steps": 2}, {"steps": 2}):
        assert torch.equal(stage(tmp_path / "a.safetensors", plan, make)["x"], torch.ones(2))
    assert len(made) == 2


def test_teacher_and_student_train_repeatably_from_a_seed() -> None:
    data = LatentData(Codec().eval(), 1, torch.Generator().manual_seed(0))
    plan = TeacherPlan(steps=3, clip_batch=2, first_chunk_batch=4)
    first, second = (train_teacher(data, plan, seed=1).transformer.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    teacher = train_teacher(data, plan, seed=1)
    short = StudentPlan(
        rounds=3, clip_batch=2, first_chunk_batch=4, critic_updates=1, critic_head_start=1, match_every=1
    )
    one, two = (distill(teacher, data, short, seed=1).transformer.state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], first[key]) for key in one)


@torch.no_grad()
def test_a_visit_is_what_the_student_itself_saw_while_streaming() -> None:
    """At the last level the recorded input leads to the finished chunk, in the context of the finished ones before."""
    model = load_shapes_model()
    trio = Student(model, StudentPlan())
    text = model.encode_text(["a red circle moving left", "a pulsing blue square"])
    visit = trio.rollout(text, 6, torch.Generator().manual_seed(0))
    predicted = trio.predict(visit)
    last = visit.sigma == STREAM.levels[-1].float()
    assert last.any()
    assert set(visit.sigma.flatten().tolist()) <= set(STREAM.levels.float().tolist())
    torch.testing.assert_close(predicted[last], visit.clean[last], rtol=0, atol=2e-3)


@torch.no_grad()
def test_the_samplers_list_as_single_steps_is_the_few_step_sampler_up_to_renoising() -> None:
    """One step of either from pure noise is the same prediction."""
    model = load_shapes_model()
    text = model.encode_text(["a red circle moving left"])
    one = sample_many_steps(model, text, 3, video_noise(0, [0]), steps=1, guidance=1.0)
    model.stream = replace(model.stream, denoising_steps=(1000,))
    torch.testing.assert_close(one, generate(model, text, 3, video_noise(0, [0]))[0], rtol=0, atol=1e-5)
