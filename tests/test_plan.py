"""A plan counts what would be allocated, exactly where it can be said beforehand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from astrolabe import plan as module
from astrolabe.cli import main
from astrolabe.experiment import TrainConfig
from astrolabe.models.lora import lora_parameters
from astrolabe.plan import Ledger, make_plan
from astrolabe.recipes.shapes import shapes_tiny
from astrolabe.rl.settings import GRPOSettings, GuardSettings, RegularisationSettings, WatchSettings
from astrolabe.runtime.config import override
from astrolabe.shapes.settings import WAN
from tests.e2e.test_commands import fails

FAR = {"window.start": "choices", "window.choices": "48", "window.video_frames": "60"}


def tiny(**fields: str) -> TrainConfig:
    return override(shapes_tiny(), {"model.dtype": "float32", **{k.replace("__", "."): v for k, v in fields.items()}})


def test_memory_is_counted_while_it_lives_and_once_whatever_its_views() -> None:
    with FakeTensorMode(), Ledger() as ledger:
        one = torch.zeros(1000)
        views = [one[5:], one.view(10, 100).t()]
        assert ledger.live == 4000
        two = one + 1
        assert (ledger.live, ledger.peak) == (8000, 8000)
        del one, views, two
        assert (ledger.live, ledger.peak) == (0, 8000)


def test_multiplications_are_counted() -> None:
    with FakeTensorMode(), Ledger() as ledger:
        torch.zeros(3, 5) @ torch.zeros(5, 7)
        assert ledger.operations == 2 * 3 * 5 * 7
        query, key = torch.zeros(2, 4, 8, 16), torch.zeros(2, 4, 24, 16)
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, key)
        assert ledger.operations == 2 * 3 * 5 * 7 + 4 * 2 * 4 * 8 * 24 * 16


def test_what_is_held_is_what_its_sizes_say() -> None:
    cfg = override(tiny(), FAR)
    plan = make_plan(cfg)
    slot = 4 * lora_parameters(WAN, cfg.lora.rank)
    assert plan.held["adapters"] == 3 * slot
    assert 2 * slot <= plan.held["optimizer"] < 2 * slot + 4096  # two moments, and a counter each
    assert plan.held["history"] == WAN.cache_bytes(cfg.rollout.prompts, 9, 16, itemsize=4)
    assert plan.frames == 4 * (4 * 6 - 3) * 3 * 64 * 64
    assert make_plan(override(cfg, {"rollout.micro_batch": "1"})).frames == plan.frames / 2
    assert make_plan(override(cfg, {"offload": "true"})).held["adapters"] == 2 * slot


def test_a_pull_and_a_trajectory_are_counted() -> None:
    plain, pulled = tiny(), replace(tiny(), regularisation=RegularisationSettings(samples="uniform"))
    assert make_plan(pulled).phases["update"].operations > 1.2 * make_plan(plain).phases["update"].operations
    offload = replace(pulled, offload=True)
    assert make_plan(offload).held["adapters"] == make_plan(plain).held["adapters"]  # the reference is needed at home
    watched = replace(plain, watch=WatchSettings(guards=(GuardSettings(watch="flicker", above=2.0),)))
    made, usual = (make_plan(cfg).phases["decode"].operations for cfg in (watched, plain))
    assert made == 2 * usual  # two candidates of the base beside the group of two
    grpo = replace(plain, algorithm=GRPOSettings(behavior_keep=0.0))
    way = 2 * 2 * 4 * 4 * 6 * 16 * 8 * 8 * 4  # inputs and predictions as made and as kept, levels, candidates, latents
    assert make_plan(grpo).phases["rollout"].bytes == make_plan(plain).phases["rollout"].bytes + way


def test_a_window_far_along_takes_no_more_than_one_that_is_near() -> None:
    near, far = ({**FAR, "window.choices": place, "window.video_frames": end} for place, end in
                 (("12", "18"), ("1200", "1206")))  # fmt: skip
    one, two = make_plan(override(tiny(), near)), make_plan(override(tiny(), far))
    assert two.peak <= 1.001 * one.peak  # when Python drops a tensor of a few kB is its own affair
    assert two.phases["history"].operations > 90 * one.phases["history"].operations


def test_the_knobs_turn_what_they_say() -> None:
    base = make_plan(tiny(optimizer__micro_batch="2")).phases["update"]
    for name, value in (("optimizer__gradient_checkpointing", "true"), ("optimizer__chunks", "1")):
        turned = make_plan(tiny(optimizer__micro_batch="2", **{name: value})).phases["update"]
        assert turned.bytes < 0.8 * base.bytes, name
    assert make_plan(tiny(optimizer__micro_batch="1")).phases["update"].bytes < base.bytes
    rollout = [make_plan(tiny(rollout__micro_batch=n)).phases["rollout"].bytes for n in ("1", "2")]
    assert rollout[0] < rollout[1]


def test_plan_says_what_a_step_takes_and_what_to_turn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["plan", "shapes_tiny", "--device", "h200"])
    assert "in all" in capsys.readouterr().out
    main(["plan", "shapes_tiny"])
    assert "are there" in capsys.readouterr().out
    monkeypatch.setitem(module.DEVICES, "rtx-4090", (module.RESERVE + 25e6, 1e12))
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "shapes_tiny", "--device", "rtx-4090", "--optimizer.micro_batch", "2"])
    said = capsys.readouterr().out
    assert stopped.value.code == 1 and "--optimizer.gradient_checkpointing true" in said and "too much" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [(["shapes_tiny", "--device", "h2000"], "did you mean h200"), (["shapes_tiny", "--window.frames", "7"], "6 and 9"),
     (["shaps"], "did you mean shapes")],
)  # fmt: skip
def test_a_plan_that_cannot_be_made_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in fails(["plan", *words], capsys)
