"""A plan counts what would be allocated and done, exactly where it can be said beforehand."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from astrolabe.cli import main
from astrolabe.doctor import computing
from astrolabe.experiment import TrainConfig
from astrolabe.models.lora import lora_parameters
from astrolabe.models.released import WAN_1_3B
from astrolabe.models.wan.config import StreamConfig, WanConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.plan import cards, plays
from astrolabe.plan.cards import DEVICES, Rates, on_card, target
from astrolabe.plan.knobs import smallest_change, turned
from astrolabe.plan.ledger import Ledger, Work
from astrolabe.plan.plays import Measurer, PartCost, play_history, play_optimizer, play_rollout, play_update
from astrolabe.plan.stage import empty_generator
from astrolabe.plan.step import Phase, Plan, make_plan
from astrolabe.recipes import RECIPES
from astrolabe.recipes.shapes import shapes_tiny
from astrolabe.recipes.wan import longlive, self_forcing
from astrolabe.rl.settings import GRPOSettings, GuardSettings, RegularisationSettings, WatchSettings
from astrolabe.runtime.config import override
from astrolabe.shapes.codec import Codec
from astrolabe.shapes.settings import WAN
from tests.e2e.test_commands import fails

FAR = {"window.start": "choices", "window.choices": "48", "window.video_frames": "60"}
# Of released models, to be quick; what the measurers have played for one test they know for the next.
SMALL = {"model.height": "64", "model.width": "96", "window.frames": "6"}
CPU, GPU = Measurer(), Measurer(device="cuda")


def tiny(**fields: str) -> TrainConfig:
    return override(shapes_tiny(), {"model.dtype": "float32", **{k.replace("__", "."): v for k, v in fields.items()}})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block and two, but where it matters."""
    monkeypatch.setattr(plays, "BLOCKS", (1, 2))


def four_blocks(cfg: TrainConfig) -> WanGenerator:
    wan = WanConfig(dim=24, ffn_dim=48, num_heads=2, num_layers=4, freq_dim=16, text_dim=8)
    stream = StreamConfig(3, 6, 3, "relative", 5.0, (1000, 750, 500, 250))
    return empty_generator(wan, stream, (16, 4, 4), 6, Codec().requires_grad_(False), torch.float32)


def test_memory_is_counted_while_it_lives_and_once_whatever_its_views() -> None:
    with FakeTensorMode(), Ledger() as ledger:
        one = torch.zeros(1000)
        views = [one[5:], one.view(10, 100).t()]
        assert ledger.live == 4000
        two = one + 1
        assert (ledger.live, ledger.peak) == (8000, 8000)
        del one, views, two
        assert (ledger.live, ledger.peak) == (0, 8000)


def test_products_are_counted_by_their_precision_and_all_else_by_what_it_moves() -> None:
    with FakeTensorMode(), Ledger() as ledger:
        torch.empty(3, 5) @ torch.empty(5, 7)
        assert ledger.work == Work(exact=2 * 3 * 5 * 7, calls=1)
        torch.empty(3, 5, dtype=torch.bfloat16) @ torch.empty(5, 7, dtype=torch.bfloat16)
        assert ledger.work == Work(2 * 3 * 5 * 7, 2 * 3 * 5 * 7, 0, 2)
        query, key = torch.empty(2, 4, 8, 16), torch.empty(2, 4, 24, 16)
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, key)
        assert ledger.work.exact == 2 * 3 * 5 * 7 + 4 * 2 * 4 * 8 * 24 * 16
        done = ledger.work
        torch.empty(10, 10).t()[3:].expand(4, 7, 10)
        assert ledger.work == done  # views do nothing
        wide = torch.empty(10, 1)
        wide + torch.empty(1, 20)
        assert (ledger.work - done) == Work(traffic=4 * (10 + 20 + 200), calls=1)
        done = ledger.work
        wide.mul_(2)
        assert (ledger.work - done).traffic == 4 * 10 * 1


def test_what_is_held_is_what_its_sizes_say() -> None:
    cfg = override(tiny(), FAR)
    plan = make_plan(cfg, CPU)
    slot = 4 * lora_parameters(WAN, cfg.lora.rank)
    assert (plan.held["adapters"], plan.held["reference"]) == (2 * slot, slot)
    assert 2 * slot <= plan.held["optimizer"] < 2 * slot + 4096  # two moments, and a counter each
    history = CPU.part(play_history, cfg, cfg.window, 1)["stream"].kept
    text = 2 * 4 * WAN.num_layers * WAN.dim  # keys and values of a word
    held = WAN.cache_bytes(1, 12, 16, 4)  # sink and window of one prompt: they are made one after another
    assert held < history < held + 64 * text
    assert plan.frames == 2 * (4 * 6) * 3 * 64 * 64
    assert make_plan(override(cfg, {"rollout.micro_batch": "1"}), CPU).frames == plan.frames / 2


def test_a_few_blocks_tell_what_all_of_them_take(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"window.start": "choices", "window.choices": "12", "optimizer.gradient_checkpointing": "true",
              "regularisation.samples": "uniform"}  # fmt: skip
    cfg, found = override(tiny(), fields), []
    for blocks in ((2, 3), (4, 5)):
        monkeypatch.setattr(plays, "BLOCKS", blocks)
        measurer = Measurer(four_blocks)
        parts = [measurer.part(play, cfg) for play in (play_optimizer, play_history, play_rollout, play_update)]
        found.append([*(part for some in parts for part in some.values()), PartCost(sum(measurer.held(cfg).values()))])
    for few, all_of_them in zip(*found, strict=True):
        assert few.bytes == pytest.approx(all_of_them.bytes, rel=2e-3, abs=64)
        for name in ("tensor", "exact", "traffic", "calls"):
            assert getattr(few.work, name) == pytest.approx(getattr(all_of_them.work, name), rel=1e-9), name


def test_the_runs_between_the_first_and_the_last_are_as_they_would_be_played(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny(window__frames="9", optimizer__chunks="1", regularisation__samples="uniform")
    quick = Measurer(four_blocks)._play(play_update, cfg, 1)
    monkeypatch.setattr(plays.Shown, "velocity_in_context", lambda self, *args: self._velocity(*args))
    monkeypatch.setattr(plays.Shown, "all", lambda self: (sum(self.runs, Work()), sum(self.pulls, Work())))
    whole = Measurer(four_blocks)._play(play_update, cfg, 1)
    chunk = 4 * 3 * 16 * 4 * 4  # bytes of the latents that a run between hands on, with their gradient
    assert whole["update"].bytes <= quick["update"].bytes < whole["update"].bytes + 5 * chunk
    assert quick["update"].work.exact == pytest.approx(whole["update"].work.exact, rel=0.001)
    assert quick["anchored"].work.exact == pytest.approx(whole["anchored"].work.exact, rel=0.001)


def test_no_part_is_played_twice_that_the_same_settings_decide() -> None:
    make_plan(tiny(), CPU)
    before = CPU.plays
    make_plan(override(tiny(), {"steps": "77", "max_dropped": "0.5", "offload": "true"}), CPU, on_host=False)
    assert CPU.plays == before
    make_plan(tiny(optimizer__lr="0.5"), CPU)
    assert CPU.plays <= before + 2  # the update, in two sizes


def test_chunks_cost_by_what_they_look_back_at() -> None:
    """Of a clip of 1 + n chunks the passes lie between the first and the last, in even steps where all is seen."""
    cfg = override(on_card(self_forcing()), {**SMALL, "window.frames": "9"})
    parts = GPU.part(play_rollout, cfg, cfg.window, 2, cfg.rollout.micro_batch)
    first, last = parts["first"].work.tensor, parts["last"].work.tensor
    passes = 5 * first + 5 * (first + last) / 2 + 4 * last  # four levels each, and the context but of the last
    assert make_plan(cfg, GPU, False).phases["rollout"].work.tensor == pytest.approx(24 * passes)


def test_a_pull_and_a_trajectory_are_counted() -> None:
    plain, pulled = tiny(), replace(tiny(), regularisation=RegularisationSettings(samples="uniform"))
    works = [make_plan(cfg, CPU).phases["update"].work.exact for cfg in (plain, pulled)]
    assert works[1] > 1.2 * works[0]
    selective = override(self_forcing(), SMALL)
    some, everyone = (
        make_plan(replace(on_card(selective), regularisation=RegularisationSettings(samples=samples)), GPU, False)
        for samples in ("selective", "uniform")
    )
    assert some.phases["update"].bytes == everyone.phases["update"].bytes
    assert some.phases["update"].work.tensor < 0.95 * everyone.phases["update"].work.tensor  # a fifth is pulled at most
    watched = replace(plain, watch=WatchSettings(guards=(GuardSettings(watch="flicker", above=2.0),)))
    made, usual = (make_plan(cfg, CPU).phases["decode"].work.exact for cfg in (watched, plain))
    assert made == pytest.approx(2 * usual)  # two candidates of the base beside the group of two
    grpo = replace(plain, algorithm=GRPOSettings(behavior_keep=0.0))
    clip, levels = 4 * 6 * 16 * 8 * 8, 4
    way = 2 * levels * (2 + 4) * clip  # inputs and predictions, as two candidates are made and as all four are kept
    assert make_plan(grpo, CPU).phases["rollout"].bytes == make_plan(plain, CPU).phases["rollout"].bytes + way


def test_a_play_leaves_nothing_for_the_garbage_collector() -> None:
    stage = GPU.stage(cfg := override(self_forcing(), SMALL), 1)
    before = stage.ledger.live
    gc.disable()
    try:
        for play in (play_optimizer, play_history, play_rollout, play_update):
            GPU._play(play, cfg, 1)
            assert stage.ledger.live == before, play.__name__
    finally:
        gc.enable()


def test_a_window_far_along_takes_no_more_than_one_that_is_near() -> None:
    near, far = ({**FAR, "window.choices": place, "window.video_frames": end} for place, end in
                 (("12", "18"), ("1200", "1206")))  # fmt: skip
    one, two = make_plan(override(tiny(), near), CPU), make_plan(override(tiny(), far), CPU)
    assert two.peak <= 1.001 * one.peak  # when Python drops a tensor of a few kB is its own affair
    assert two.phases["history"].work.exact > 90 * one.phases["history"].work.exact


def test_the_knobs_turn_what_they_say() -> None:
    base = make_plan(tiny(optimizer__micro_batch="2"), CPU).phases["update"]
    for name, value in (("optimizer__gradient_checkpointing", "true"), ("optimizer__chunks", "1")):
        other = make_plan(tiny(optimizer__micro_batch="2", **{name: value}), CPU).phases["update"]
        assert other.bytes < 0.8 * base.bytes, name
    assert make_plan(tiny(optimizer__micro_batch="1"), CPU).phases["update"].bytes < base.bytes
    rollout = [make_plan(tiny(rollout__micro_batch=n), CPU).phases["rollout"].bytes for n in ("1", "2")]
    assert rollout[0] < rollout[1]
    alone, beside = (make_plan(tiny(rollout__side_by_side=n), CPU).phases for n in ("1", "2"))
    assert alone["rollout"].bytes < beside["rollout"].bytes and alone["decode"].bytes < beside["decode"].bytes
    assert alone["decode"].work == beside["decode"].work


def test_what_rests_on_the_host_is_counted_where_it_works_and_nowhere_else() -> None:
    cfg, measurer = on_card(override(self_forcing(), SMALL)), GPU
    plain, resting = (make_plan(replace(cfg, offload=off), measurer, on_host=False) for off in (False, True))
    held = plain.held
    models = (held["rewards"], held["decoder"], held["optimizer"], held["reference"])
    for name, gone in (
        ("rollout", held["rewards"] + held["optimizer"] + held["reference"]),
        ("update", held["rewards"] + held["decoder"]),  # the anchored samples ask the reference
    ):
        assert plain.phases[name].bytes - resting.phases[name].bytes == pytest.approx(gone, abs=64), name
    judging = plain.phases["rewards"].bytes - resting.phases["rewards"].bytes
    assert 4e9 < judging < sum(models)  # the largest model comes, and the others wait
    assert resting.phases["rewards"].moved == 24 * held["rewards"]  # for every micro-batch
    assert (
        make_plan(replace(cfg, offload=True), measurer, on_host=True).peak == plain.peak
    )  # a host has no other memory


def test_rewards_are_a_phase_with_seconds_and_elsewhere_they_leave_the_card() -> None:
    cfg, measurer, rates = on_card(override(self_forcing(), SMALL)), GPU, DEVICES["h200"][1]
    here = make_plan(cfg, measurer, on_host=False)
    assert here.held["rewards"] == pytest.approx(19.9e9, rel=0.01)
    away = override(cfg, {f"rewards.{n}.model.device": "cuda:1" for n in range(3)})
    there = make_plan(away, measurer, on_host=False)
    assert there.held["rewards"] == 0 and there.phases["rewards"].work == here.phases["rewards"].work
    pooled = make_plan(override(cfg, {"pool.backend": "ray"}), measurer, on_host=False)
    longer = max(pooled.seconds(rates)["rewards"], sum(pooled.seconds(rates)[n] for n in ("rollout", "decode")))
    assert pooled.held["rewards"] == 0
    assert pooled.step(rates) == pytest.approx(
        longer + pooled.seconds(rates)["update"] + pooled.seconds(rates)["optimizer"]
    )
    slow = make_plan(override(cfg, {"rewards.0.model.device": "cpu"}), measurer, on_host=False)
    assert slow.held["rewards"] < 5e9 and slow.step(rates) > 2 * here.step(rates)


def test_an_adapter_that_belongs_to_the_model_is_held_and_works() -> None:
    cfg, measurer = on_card(override(longlive(), SMALL)), GPU
    own, none = (make_plan(override(cfg, {"model.adapter": name}), measurer, on_host=False) for name in ("", "none"))
    assert own.held["its own adapter"] == 4 * lora_parameters(WAN_1_3B, 256)
    assert none.held["its own adapter"] == 0
    own_work, work = (plan.phases["rollout"].work for plan in (own, none))
    assert own_work.exact == work.exact == 0  # adapters multiply in the base's dtype
    assert own_work.tensor > 1.05 * work.tensor and own_work.calls > work.calls


def test_float32_on_a_gpu_writes_out_the_scores_of_what_is_shared() -> None:
    """The kernel that tells its log-sum-exp is for half precision there; on a CPU there is one for both."""
    sizes = {"model.height": "256", "model.width": "256", "model.dtype": "float32", "window.frames": "6"}
    fields = sizes | {"window.start": "choices", "window.choices": "9", "window.video_frames": "15"}
    fields |= {"rollout.micro_batch": "2"}
    cfg = override(on_card(longlive()), fields)
    gpu, cpu = (Measurer(device=kind).part(play_rollout, cfg)["last"].bytes for kind in ("cuda", "cpu"))
    assert gpu > 1.5 * cpu


def test_doctor_says_that_float32_on_a_gpu_is_slow() -> None:
    assert "tensor cores" in computing("cuda:1", torch.float32)
    assert computing("cuda", torch.bfloat16) == "cuda, bfloat16" and computing("cpu", torch.float32) == "cpu, float32"


def test_a_plan_for_a_card_does_not_depend_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for native in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cuda, "is_available", lambda native=native: not native)
        found.append(target("h200", self_forcing()))
        assert found[-1][1].model.dtype == "bfloat16" and found[-1][1].rewards[0].reward_model.place == "cuda"
    assert found[0] == found[1]


def test_seconds_are_the_kinds_of_work_one_after_another_or_the_asking() -> None:
    rates = Rates(tensor=10.0, exact=2.0, traffic=5.0, launch=0.5)
    work = Work(tensor=20.0, exact=2.0, traffic=10.0, calls=4)
    assert rates.seconds(work) == 2 + 1 + 2
    assert rates.seconds(replace(work, calls=20)) == 10 and rates.slowest(replace(work, calls=20)) == "starting kernels"
    assert Phase(0, work, moved=cards.BUS).seconds(rates) == 6


def test_recipes_for_24_gb_fit_a_card_of_24_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plays, "BLOCKS", (2, 3))
    for recipe in ("self_forcing_24gb", "longlive_24gb"):
        card, cfg = target("rtx-4090", RECIPES[recipe]())
        plan = make_plan(cfg, Measurer(device="cuda"), on_host=False)
        assert plan.peak < card.bytes < 24e9
        assert sum(plan.host.values()) < 24e9  # and what rests there fits a usual host
    same = replace(RECIPES["causal_forcing_24gb"](), model=RECIPES["self_forcing_24gb"]().model)
    assert same == RECIPES["self_forcing_24gb"]()  # the networks are of one size


def test_the_smallest_change_that_fits_has_nothing_to_spare() -> None:
    cfg = on_card(self_forcing())

    def plan_of(other: TrainConfig) -> Plan:
        rank, prompts = other.lora.rank / 16, 4 * (other.rollout.side_by_side or other.rollout.prompts)
        rests = 0 if other.offload else 20
        tokens = other.rewards[0].reward_model.token_budget / 4096
        decode = 2 if "32" in str(other.model) else 9
        update = 3 if other.optimizer.chunks else 12
        needs = {"rollout": prompts, "decode": decode, "rewards": tokens + 8, "update": update}
        return Plan({}, frozenset(), {name: Phase(rank + rests + count) for name, count in needs.items()})

    for budget in (47, 29, 24, 20, 17, 14, 13):
        chosen, needed = smallest_change(cfg, plan_of, budget, False)
        assert chosen and needed == plan_of(turned(cfg, chosen)).peak <= budget
        for knob in chosen:
            assert plan_of(turned(cfg, [other for other in chosen if other is not knob])).peak > budget
    assert [knob.flags for knob in smallest_change(cfg, plan_of, 29, False)[0]] == ["--offload true"]
    nothing, least = smallest_change(cfg, plan_of, 1, False)
    everything = turned(cfg, nothing)
    assert least > 1 and everything.lora.rank == 64 and everything.lora.alpha / everything.lora.rank == 1


def test_plan_says_what_a_step_takes_and_what_to_turn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["plan", "shapes_tiny"])
    said = capsys.readouterr().out
    assert "in all" in said and "are there" in said and "for 2 steps" in said
    monkeypatch.setitem(DEVICES, "rtx-4090", (cards.RESERVE + 27e6, DEVICES["rtx-4090"][1]))
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "shapes_tiny", "--device", "rtx-4090", "--optimizer.micro_batch", "2"])
    said = capsys.readouterr().out
    assert stopped.value.code == 1 and "too much" in said and "the smallest change that fits" in said and "--" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [(["shapes_tiny", "--device", "h2000"], "did you mean h200"), (["shapes_tiny", "--window.frames", "7"], "6 and 9"),
     (["shaps"], "did you mean shapes")],
)  # fmt: skip
def test_a_plan_that_cannot_be_made_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in fails(["plan", *words], capsys)
