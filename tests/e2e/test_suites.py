"""Several rewards, regularisation, guards and rivals, as a user meets them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from astrolabe.cli import main
from astrolabe.experiment import TrainConfig
from astrolabe.models.adapters import read_adapter
from astrolabe.recipes import RECIPES
from astrolabe.recipes.shapes import shapes_tiny
from astrolabe.rewards.settings import RewardSettings
from astrolabe.rl.policies import Policies
from astrolabe.rl.settings import GuardSettings, RegularisationSettings, WatchSettings
from astrolabe.rollout.window import Windows
from astrolabe.runtime.config import save_yaml
from astrolabe.runtime.interrupts import Interrupted
from astrolabe.runtime.tracking import read_metrics
from astrolabe.trainer import Trainer
from tests.e2e.test_commands import fails
from tests.e2e.test_processes import Impatient

REWARDS = (
    RewardSettings(name="pixel_saturation", role="primary", weight=1.0),
    RewardSettings(name="shape_fit", span="video"),
    RewardSettings(name="motion_fit", weight=0.0),
    RewardSettings(name="joint", role="judge"),
    RewardSettings(name="cleanliness", role="judge", frames=9),
)


def config(steps: int = 4, *guards: GuardSettings) -> TrainConfig:
    """A tiny run with everything: roles, spans, a pull on half of those that disagree, judges, a moving reference."""
    base = shapes_tiny()
    return replace(
        base,
        steps=steps,
        model=replace(base.model, dtype="float32"),
        rewards=REWARDS,
        rollout=replace(base.rollout, group_size=4),
        regularisation=RegularisationSettings(
            samples="selective", strength=0.1, share=0.5, share_bounds=(0.1, 0.9), max_age=1
        ),
        watch=WatchSettings(guards=guards or (GuardSettings(watch="motion_energy", below=0.1),), memory=0.5),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of it."""
    folder = tmp_path_factory.mktemp("runs")
    save_yaml(config(), folder / "config.yaml")
    main(["train", str(folder / "config.yaml"), "--out", str(folder / "run")])
    return folder / "run"


def test_what_the_weights_do_whom_they_anchor_and_what_guards_saw_is_logged(run: Path) -> None:
    lines = read_metrics(run / "metrics.jsonl")
    for line in lines:
        shares = [line[f"contribution/{name}"] for name in ("pixel_saturation", "shape_fit", "motion_fit")]
        assert sum(shares) == pytest.approx(1.0) and shares[2] == pytest.approx(0.0, abs=1e-6)
        assert {"disagreement", "anchored", "rho", "dropped", "watch/motion_energy", "watch/base_motion_energy",
                "reward/joint", "reward/cleanliness"} <= line.keys()  # fmt: skip
    assert lines[0]["watch/motion_energy"] == pytest.approx(lines[0]["watch/base_motion_energy"], rel=0.5)
    assert [line["reference_age"] for line in lines] == [1.0, 0.0, 1.0, 0.0]
    assert any(line.get("drift_reference", 0) > 0 for line in lines)
    assert (run / "best.safetensors").exists()
    main(["report", str(run)])


def test_a_run_interrupted_after_any_step_ends_with_the_same_bytes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "again"
    save_yaml(config(), tmp_path / "config.yaml")
    words = ["train", str(tmp_path / "config.yaml"), "--out", str(folder)]

    with monkeypatch.context() as patch:
        Impatient.at(patch, Trainer, "perform")
        for _ in range(3):
            with pytest.raises((Interrupted, SystemExit)):
                main(words)
    main(words)
    for name in ("adapter", "best"):
        assert (folder / f"{name}.safetensors").read_bytes() == (run / f"{name}.safetensors").read_bytes()


def test_a_guard_that_stops_a_run_leaves_the_best_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    never_enough = GuardSettings(watch="motion_energy", below=99.0, steps=3, action="stop")
    slower = GuardSettings(watch="saturation", below=99.0, steps=1, action="slow")
    save_yaml(config(9, never_enough, slower), tmp_path / "config.yaml")
    folder = tmp_path / "run"
    main(["train", str(tmp_path / "config.yaml"), "--out", str(folder)])
    said = capsys.readouterr().out
    assert "step 3: stop: motion_energy under 99 times the base's for 3 steps" in said and "step 1: slow" in said
    lines = read_metrics(folder / "metrics.jsonl")
    assert len(lines) == 3 and lines[2]["lr"] == pytest.approx(lines[0]["lr"] / 4, rel=0.5)
    best, last = (load_file(folder / f"{name}.safetensors") for name in ("best", "adapter"))
    assert all(torch.equal(tensor, last[key]) for key, tensor in best.items())
    assert lines[2]["alarm/motion_energy/stop"] == 1.0 and "alarm/motion_energy/stop" not in lines[1]
    main(["train", str(tmp_path / "config.yaml"), "--out", str(folder)])  # finished: nothing is trained again
    assert len(read_metrics(folder / "metrics.jsonl")) == 3


def test_an_adapter_of_a_run_acts_at_the_strength_it_was_trained_at(run: Path) -> None:
    scales = {pair.scale for pair in read_adapter(run / "best.safetensors").values()}
    assert scales == {shapes_tiny().lora.alpha / shapes_tiny().lora.rank} != {1.0}


def test_guards_compare_with_the_bare_base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    acting: list[tuple[str | None, int | None]] = []
    candidates, using = Windows.candidates, Policies.using

    def watched(self: Windows, seed: int, group_size: int | None = None, see: Any = None) -> Any:
        acting.append((policies[0].active, group_size))
        return candidates(self, seed, group_size, see)

    policies: list[Policies] = []

    def noted(self: Policies, name: str | None) -> Any:
        policies[:] = [self]
        return using(self, name)

    monkeypatch.setattr(Windows, "candidates", watched)
    monkeypatch.setattr(Policies, "using", noted)
    save_yaml(config(2), tmp_path / "config.yaml")
    main(["train", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")])
    assert acting == [("behavior", None), (None, 2)] * 2


@pytest.mark.parametrize("name", ["shapes_positive", "shapes_reward_weighted", "shapes_grpo", "shapes_selective"])
def test_every_rival_is_a_recipe_that_trains(name: str, tmp_path: Path) -> None:
    assert name in RECIPES
    folder = tmp_path / "run"
    main(["train", name, "--steps", "2", "--model.dtype", "float32", "--rollout.prompts", "2", "--rollout.group_size",
          "4", "--rollout.micro_batch", "4", "--window.frames", "6", "--optimizer.minibatches", "1",
          "--optimizer.micro_batch", "4", "--lora.rank", "4", "--out", str(folder)])  # fmt: skip
    tensors = load_file(folder / "adapter.safetensors")
    assert any(tensor.abs().max() > 0 for key, tensor in tensors.items() if "lora_B" in key)


def test_a_guards_action_that_does_not_exist_is_refused_with_those_that_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    save_yaml(config(), path)
    path.write_text(path.read_text().replace("action: warn", "action: panic"))
    assert "warn, slow, refresh, stop" in fails(["train", str(path), "--out", str(tmp_path / "run")], capsys)
    path.write_text(path.read_text().replace("action: panic", "action: warn").replace("motion_energy", "beauty"))
    assert "'beauty' is neither a measure" in fails(["train", str(path), "--out", str(tmp_path / "run")], capsys)
    assert not (tmp_path / "run").exists()
