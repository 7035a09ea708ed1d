"""The stages that make the embedded models, in miniature."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from astrolabe.pretrain import card, training
from astrolabe.pretrain.data import LatentData, make_latents
from astrolabe.pretrain.flow_matching import STUDENTS, TEACHER, FlowPlan, draw_sigma, fit, new_networks
from astrolabe.pretrain.sampling import sample_many_steps
from astrolabe.pretrain.stages import plans, stage
from astrolabe.pretrain.training import Rates
from astrolabe.rollout.videos import generate, video_noise
from astrolabe.runtime.processes import one_thread, processes
from astrolabe.runtime.world import ALONE, World
from astrolabe.shapes.captions import parse, split
from astrolabe.shapes.codec import Codec
from astrolabe.shapes.model import load_shapes_model
from astrolabe.shapes.settings import LATENT_SHAPE, LONGEST, STREAMS, WAN

SMALL = replace(WAN, dim=48, ffn_dim=96, num_heads=2, num_layers=1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents() -> torch.Tensor:
    return torch.randn(len(split("train")), 6, *LATENT_SHAPE, generator=seeded()).half()


def quick(plan: FlowPlan, steps: int = 4) -> FlowPlan:
    return replace(plan, rates=replace(plan.rates, steps=steps), beginning_batch=4, videos=((6, 2),))


def trained(world: World = ALONE, folder: Path | None = None, plan: FlowPlan = TEACHER) -> dict[str, torch.Tensor]:
    """A tiny teacher after four steps, kept every second one; as one of several processes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("astrolabe.pretrain.flow_matching.WAN", SMALL)
        patch.setattr(training, "SAVE", 2)
        networks = fit("teacher", new_networks(1), latents(), quick(plan), 3, folder, world)
    return dict(networks.state_dict())


def follow(world: World) -> None:
    trained(world)


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], two[key]) for key in one)


def test_held_out_scenes_never_occur_in_the_training_of_a_model() -> None:
    data = LatentData(latents())
    held_out = {*split("test"), *split("validation")}
    batch = data.draw(2000, 6, seeded())
    assert batch.clean.shape == (2000, 6, *LATENT_SHAPE)
    assert not held_out & {parse(text) for text in batch.captions}


@torch.no_grad()
def test_latents_are_those_of_the_scene_of_their_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astrolabe.pretrain.data.LONGEST", 2)
    made = make_latents(Codec().eval(), 2, seeded())
    assert made.shape == (2 * len(split("train")), 2, *LATENT_SHAPE) and made.dtype == torch.float16
    assert not torch.equal(made[0], made[len(split("train"))])  # the same scene, with other looks


def test_emphasis_draws_the_scenes_of_a_shape_or_a_motion_more_often() -> None:
    def share(emphasis: dict[str, float]) -> float:
        scenes = [parse(text) for text in LatentData(latents(), emphasis).draw(4000, 3, seeded()).captions]
        return sum(scene.motion == "pulse" and scene.shape == "cross" for scene in scenes) / len(scenes)

    def expected(emphasis: dict[str, float]) -> float:
        weights = {s: emphasis.get(s.motion, 1.0) * emphasis.get(s.shape, 1.0) for s in split("train")}
        wanted = sum(w for s, w in weights.items() if s.motion == "pulse" and s.shape == "cross")
        return wanted / sum(weights.values())

    for emphasis in ({}, {"pulse": 3.0}, {"pulse": 3.0, "cross": 3.0}):
        assert share(emphasis) == pytest.approx(expected(emphasis), abs=0.03)
    assert expected({}) < 0.06 < expected({"pulse": 3.0, "cross": 3.0})


def test_a_students_chunks_are_at_the_levels_of_their_own_sampler() -> None:
    for name, stream in STREAMS.items():
        sigma = draw_sigma(500, stream, 4, STUDENTS[name].at_sampler_levels, seeded())
        for chunk in range(4):
            assert set(sigma[:, chunk].tolist()) == set(stream.levels_of(chunk).float().tolist()), name
    mixed = draw_sigma(4000, STREAMS["shapes"], 1, 0.4, seeded())
    own = torch.isin(mixed, STREAMS["shapes"].levels.float())
    assert own.float().mean().item() == pytest.approx(0.4, abs=0.03)


def test_the_weights_are_the_same_with_one_process_and_with_two() -> None:
    with one_thread():
        alone = trained()
        with processes(2, follow) as world:
            assert same(alone, trained(world))


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    drawn = 0

    def interrupted(*place: int) -> torch.Generator:
        nonlocal drawn
        drawn += 1
        if drawn > 10:  # two generators a piece, two pieces a step: in the middle of the third
            raise KeyboardInterrupt
        return as_ever(*place)

    as_ever = training.seeded
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "seeded", interrupted)
        trained(folder=tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000002"]
    assert same(trained(), trained(folder=tmp_path))


def test_a_student_trains_repeatably_in_its_own_way_of_streaming() -> None:
    one, two = (trained(plan=STUDENTS["shapes-2step"]) for _ in range(2))
    assert same(one, two) and not same(one, trained())


def test_the_rate_rises_and_falls() -> None:
    rates = Rates(steps=100, learning_rate=1.0, warmup=10, ema=0.9)
    seen = [rates.at(step) for step in range(100)]
    assert seen[0] == pytest.approx(0.1) and max(seen) == pytest.approx(0.91) and seen[-1] == pytest.approx(0.01)


def test_a_stage_is_done_once_a_plan(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, torch.Tensor]:
        made.append(1)
        return {"x": torch.ones(2)}

    for plan in ({"steps": 1}, {"steps": 1}, {"steps": 2}, {"steps": 2}):
        stage(tmp_path, "a", plan, make)
        assert torch.equal(card.load_tensors(tmp_path / "a.safetensors")[0]["x"], torch.ones(2))
    assert len(made) == 2 and not (tmp_path / "a.part").exists()


def test_what_an_unfinished_stage_left_is_used_for_the_same_plan_alone(tmp_path: Path) -> None:
    def stopped() -> dict[str, torch.Tensor]:
        (tmp_path / "a.part" / "reached").write_text("")
        raise KeyboardInterrupt

    for plan, kept in (({"steps": 1}, True), ({"steps": 2}, False)):
        with pytest.raises(KeyboardInterrupt):
            stage(tmp_path, "a", {"steps": 1}, stopped)

        def make(kept: bool = kept) -> dict[str, torch.Tensor]:
            assert (tmp_path / "a.part" / "reached").exists() == kept
            return {"x": torch.ones(2)}

        stage(tmp_path, "a", plan, make)
        (tmp_path / "a.safetensors").unlink()


def test_a_plan_names_all_that_decides_a_result() -> None:
    made = plans(7)
    assert made["shapes"]["teacher"] == made["teacher"] and made["teacher"]["data"] == made["data"]
    assert made["data"]["codec"] == made["codec"] and made["data"]["looks"]["vivid"] == (0.4, 1.0)


def test_gates_tell_what_differs_within_prompts_from_what_differs_between_them() -> None:
    within = (torch.rand(400, 16, generator=seeded()) < 0.4).float()
    between = (torch.arange(400) < 160).float()[:, None].expand(-1, 16)
    assert card.gates(within)["within_prompts"] == pytest.approx(1, abs=0.03)
    assert card.gates(within)["mixed_scenes"] > 0.99 and card.gates(within)["joint"] == pytest.approx(0.4, abs=0.02)
    assert card.gates(between) == {"joint": pytest.approx(0.4), "within_prompts": 0, "mixed_scenes": 0}


def test_a_card_says_which_gates_it_fails() -> None:
    fine = {"joint": 0.4, "within_prompts": 0.8, "mixed_scenes": 0.8, "over_undistilled": 0.1}
    truth = {"rendered": 1.0, "through_codec": 0.98}
    made: dict[str, Any] = {"ground_truth": truth, "gates": card.GATES, "models": {"shapes": {"gates": fine}}}
    assert card.failed(made) == []
    made["models"]["shapes"]["gates"] = fine | {"joint": 0.2, "mixed_scenes": float("nan")}
    made["ground_truth"] = {"rendered": 0.99, "through_codec": 0.9}
    assert len(card.failed(made)) == 4


@torch.no_grad()
def test_the_samplers_list_as_single_steps_is_the_few_step_sampler_up_to_renoising() -> None:
    """One step of either from pure noise is the same prediction."""
    model = load_shapes_model()
    text = model.encode_text(["a red circle moving left"])
    one = sample_many_steps(model, text, 3, video_noise(0, [0]), steps=1, guidance=1.0)
    model.stream = replace(model.stream, denoising_steps=(1000,))
    torch.testing.assert_close(one, generate(model, text, 3, video_noise(0, [0]))[0], rtol=0, atol=1e-5)


def test_the_longest_videos_are_whole_chunks_of_every_stream() -> None:
    assert all(LONGEST % stream.chunk_frames == 0 for stream in STREAMS.values())
