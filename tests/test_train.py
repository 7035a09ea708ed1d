"""What the trainer decides besides the maths: what rests where, and which candidate a stream goes on with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from astrolabe.experiment import TrainConfig
from astrolabe.recipes.shapes import shapes_tiny
from astrolabe.rl.settings import RegularisationSettings
from astrolabe.trainer import Trainer
from astrolabe.types import Experience, Rollout, Scores


class Moves:
    """Stands for generator and policies on a GPU: notes what is moved where."""

    device = torch.device("cuda:0")

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def move_decoder(self, device: torch.device) -> None:
        self.seen.append(("decoder", str(device)))

    def move(self, name: str, device: torch.device) -> None:
        self.seen.append((name, str(device)))


def trainer(cfg: TrainConfig, moves: Any = None) -> Trainer:
    nothing: Any = None
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    return Trainer(cfg, moves, nothing, nothing, nothing, moves, nothing, optimizer, nothing, nothing)


def test_a_reference_that_pulls_comes_home_for_the_update() -> None:
    moves, pull = Moves(), RegularisationSettings(samples="uniform")
    trainer(replace(shapes_tiny(), offload=True, regularisation=pull), moves).make_room("update")
    assert moves.seen[0] == ("reference", "cuda:0")


def test_moments_go_to_the_device_for_the_update_and_nothing_else_does() -> None:
    moves, away = Moves(), torch.device("meta")  # stands for the GPU
    asked = trainer(replace(shapes_tiny(), offload=True), moves)
    (parameter,) = asked.optimizer.param_groups[0]["params"]
    parameter.grad = torch.ones(2)
    asked.optimizer.step()
    asked.make_room("rollout")
    assert asked.optimizer.state[parameter]["exp_avg"].device.type == "cpu"
    moves.device = away
    asked.make_room("update")
    state = asked.optimizer.state[parameter]
    assert [state[name].device for name in ("exp_avg", "exp_avg_sq")] == [away, away]
    assert parameter.device.type == state["step"].device.type == "cpu"


def test_what_is_idle_waits_in_the_hosts_memory_if_asked() -> None:
    moves = Moves()
    asked = trainer(replace(shapes_tiny(), offload=True), moves)
    asked.make_room("rollout")
    asked.make_room("update")
    assert moves.seen == [("reference", "cpu"), ("decoder", "cuda:0"), ("reference", "cpu"), ("decoder", "cpu")]
    moves.seen.clear()
    trainer(shapes_tiny(), moves).make_room("update")
    assert not moves.seen


@pytest.mark.parametrize("how", ["best", "random"])
def test_a_stream_goes_on_with_the_best_or_with_any(how: Any) -> None:
    base = shapes_tiny()
    made = trainer(replace(base, window=replace(base.window, continue_with=how)))
    credit = torch.tensor([0.1, 0.9, -1.0, 0.3, 0.2, 0.1])
    rollout = Rollout(("a", "b"), 3, torch.zeros(6, 3, 1, 1, 1), (), ())
    experience = Experience(rollout, Scores(("x",), credit[:, None]), credit, credit, credit > 9)
    chosen = [made.chosen(experience, step) for step in range(90)]
    if how == "best":
        assert chosen == [[1, 0]] * 90
    else:
        assert {tuple(pair) for pair in chosen} == {(i, j) for i in range(3) for j in range(3)}
        assert chosen == [made.chosen(experience, step) for step in range(90)]
