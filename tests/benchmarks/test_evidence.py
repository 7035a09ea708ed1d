"""The evidence is run and judged as its plan says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astrolabe.evaluation.paired import LONG_SEEDS
from astrolabe.evaluation.paired import SEEDS as DEMO_NOISES
from astrolabe.evaluation.suites import MEASURES
from astrolabe.runtime.errors import UserError
from astrolabe.shapes.captions import split
from astrolabe.shapes.settings import ShapesName
from benchmarks import power
from benchmarks.evidence import page, store
from benchmarks.evidence.__main__ import main, missing
from benchmarks.evidence.cells import BETAS, TUNING_SEEDS, Cell, best, cells, recipe, restrained, selected, tunings
from benchmarks.evidence.claims import BETTER, CLAIMS, NO_WORSE, Claim, Rule, at_equal, between, proxy, seconds
from benchmarks.evidence.run import LONG_NOISE, DeadBehavior, noises
from benchmarks.evidence.statistics import Components, Estimate
from benchmarks.evidence.store import Store, digest

SCENES = len(split("test"))
CLAIM = {claim.letter: claim for claim in CLAIMS}
CHOSEN = dict.fromkeys(tunings(), 1.0) | {"strength": 0.004}
KNOWN = cells(CHOSEN)


def record(name: str, base: ShapesName, seed: int, chance: float = 0.5, **more: Any) -> dict[str, Any]:
    """A run whose videos are right with this chance. Noises are alike for all cells of a seed, as in the real ones."""
    cell = KNOWN[name]
    draws = np.random.default_rng(seed).random((SCENES, cell.noises)) < chance
    own = list(draws.mean(1))
    quarters = {f"{measure} by quarter": [own] * 4 for measure in ("joint", "right")}
    return {
        "cell": name, "base": base, "seed": seed, "digest": digest(cell, base), "wall_seconds": 100.0,
        "scores": dict.fromkeys((*MEASURES, "saturation"), own), "diverged": "", "steps": 14, "samples": 672,
        "outcomes": {key: ["".join(str(int(one)) for one in scene) for scene in draws] for key in ("joint", "right")},
        "cpu_seconds": 100.0, "peak_bytes": 3e8, "by_step": {"latents_rms": [1.0, 1.0]}, "long": quarters,
        "along": [{"step": 0} | dict.fromkeys(("joint", "right", "flicker"), own)],
    } | more  # fmt: skip


def filled_store(folder: Path, chances: dict[str, float], seeds: Sequence[int] = range(5)) -> Store:
    """Runs of these cells on all their bases, and of the base."""
    found = Store(folder)
    for name, chance in ({"base": 0.4} | chances).items():
        for base in KNOWN[name].bases:
            for seed in seeds:
                found.add(record(name, base, seed, chance))
    return found


def estimated(mean: float, error: float) -> Estimate:
    """An estimate as five seeds have it."""
    return Estimate(mean, error, 4.0, Components(0.0, 0.0, 0.0), (1, 5, SCENES))


# ------------------------------------------------------------------------------------------------------------- rules


def test_better_is_held_above_nothing_and_refuted_where_no_gain_is_left_that_matters() -> None:
    assert BETTER.verdict(estimated(0.06, 0.02)) == "held"  # [0.004, 0.116]
    assert BETTER.verdict(estimated(0.05, 0.02)) == "undecided"  # [-0.006, 0.106]
    assert BETTER.verdict(estimated(0.0, 0.017)) == "refuted"  # up to 0.047
    assert BETTER.verdict(estimated(0.02, 0.005)) == "held"  # small, but there
    assert NO_WORSE.verdict(estimated(0.0, 0.017)) == "held" and NO_WORSE.verdict(estimated(-0.06, 0.02)) == "refuted"
    assert NO_WORSE.verdict(estimated(-0.01, 0.02)) == "undecided"


@given(st.floats(-0.3, 0.3), st.floats(0, 0.3), st.floats(1e-4, 0.1), st.sampled_from([BETTER, NO_WORSE]))
def test_a_larger_difference_never_makes_a_verdict_worse(mean: float, more: float, error: float, rule: Rule) -> None:
    order = ["refuted", "undecided", "held"]
    one, other = (order.index(rule.verdict(estimated(value, error))) for value in (mean, mean + more))
    assert one <= other


def test_to_refute_one_of_several_takes_more() -> None:
    found = estimated(0.0, 0.0175)
    level = CLAIM["f"].level
    assert level == pytest.approx(1 - 0.05 / 3)
    assert BETTER.verdict(found) == "refuted" and BETTER.verdict(found, level) == "undecided"


@pytest.mark.parametrize(
    ("rivals", "verdict"),
    [((0.5, 0.5, 0.5), "held"), ((0.5, 0.95, 0.5), "refuted"), ((0.5, 0.8, 0.5), "refuted"), ((0.5, 0.5), "not run")],
)
def test_a_claim_is_held_when_all_comparisons_are_and_refuted_when_one_is(
    tmp_path: Path, rivals: Sequence[float], verdict: str
) -> None:
    names = ("f positive", "f reward_weighted", "f grpo")
    found = filled_store(tmp_path, {"f nft": 0.8} | dict(zip(names, rivals, strict=False)))
    assert CLAIM["f"].verdict(found, KNOWN) == verdict


def test_one_seed_decides_nothing_and_says_what_it_would_take(tmp_path: Path) -> None:
    found = filled_store(tmp_path, {"e beta 1": 0.9, "f nft": 0.5}, seeds=[0])
    claim = Claim("e", "", CLAIM["e"].decides)
    assert claim.verdict(found, KNOWN) == "undecided" and claim.seeds(found, KNOWN) == (1, 5)
    assert "**Verdict so far, 1 of 5 seeds: undecided.**" in page.section(claim, found, KNOWN)
    assert page.row(claim.decides[0], claim.level, found, KNOWN)[-1] == "undecided"
    two = filled_store(tmp_path / "two", {"e beta 1": 0.56, "f nft": 0.5}, seeds=[0, 1])
    (comparison,) = claim.decides
    assert page.row(comparison, claim.level, two, KNOWN)[-1].startswith("undecided; takes about ")


# ------------------------------------------------------------------------------------------------- at equal somethings


def test_a_run_is_read_where_it_stands_at_the_level() -> None:
    values = np.array([[1.0, 0.0], [0.8, 0.2], [0.4, 0.6]])
    assert between(np.array([0.0, 1.0, 3.0]), values, 2.0) == pytest.approx([0.6, 0.4])
    assert between(np.array([0.0, 1.0, 3.0]), values, 0.0) == pytest.approx([1.0, 0.0])
    assert between(np.array([0.0, 3.0, 1.0]), values, 1.5) == pytest.approx([0.9, 0.1])  # where it first stands there
    assert between(np.array([0.0, 1.0, 3.0]), values, 4.0) == pytest.approx([0.4, 0.6])


def along(speed: float, cost: float, took: float = 1.0) -> dict[str, Any]:
    """A run whose steadiness rises by ``speed`` a look, at a cost in right; a look takes so many seconds."""
    looks = [{"step": step, "flicker": [1 - speed * step], "right": [1 - cost * speed * step]} for step in range(1, 7)]
    return {"along": looks, "steps": 6, "cpu_seconds": 6 * took}


def test_a_slower_regulariser_is_compared_where_it_has_risen_as_far() -> None:
    base = {"along": [{"step": 0, "flicker": [1.0], "right": [1.0]}]}
    none, difference = along(0.02, 0.5), at_equal("right", proxy)
    assert difference(along(0.01, 0.1), none, base) == pytest.approx([(0.5 - 0.1) * 0.06])
    assert difference(along(0.04, 0.1), none, base) == pytest.approx([(0.5 - 0.1) * 0.12])
    assert difference(along(-0.01, 0.1), none, base) == pytest.approx([0.0])  # it never rises: there is the base


def test_of_equal_seconds_the_slower_run_has_done_fewer_steps() -> None:
    base = {"along": [{"step": 0, "flicker": [1.0], "right": [1.0]}]}
    quick, slow = along(0.1, 0.5), along(0.1, 0.5, took=2.0)
    assert at_equal("right", seconds)(slow, quick, base) == pytest.approx([0.05 * 3])  # three steps of the six


# ------------------------------------------------------------------------------------------------------------ the cells


def test_where_hacking_is_the_question_the_yardstick_is_not_trained_on() -> None:
    for name, cell in KNOWN.items():
        if name[:2] in ("b ", "c ") and cell.config and "_fit" not in name and "all" not in name:
            trained = {reward.name for reward in cell.config.rewards if reward.role != "judge"}
            assert trained <= {"steadiness", "pixel_saturation", "pixel_motion"}, name


def test_cells_make_as_many_videos_as_the_recipe_but_for_those_that_are_named_longer() -> None:
    usual = recipe()
    for name, cell in KNOWN.items():
        if cell.config and "long" not in name and name not in ("demo", "random"):
            made = cell.config.steps * cell.config.rollout.prompts * cell.config.rollout.group_size
            assert made == usual.steps * usual.rollout.prompts * usual.rollout.group_size, name


def test_no_noise_is_shared_by_two_training_seeds_or_with_anything_else() -> None:
    used = [*DEMO_NOISES, *LONG_SEEDS]
    for seed in range(100):
        used += noises(KNOWN["recipe"], seed) + noises(KNOWN["recipe"], seed, LONG_NOISE)
    used += noises(KNOWN["t base"], TUNING_SEEDS[0])
    assert len(used) == len(set(used))
    assert noises(KNOWN["b none"], 3) == noises(KNOWN["base"], 3)  # paired


def test_settings_are_tuned_on_scenes_and_seeds_that_decide_nothing() -> None:
    tuning = {name for name, cell in KNOWN.items() if cell.tunes}
    compared = {name for claim in CLAIMS for one in (*claim.decides, *claim.also) for name in (one.one, one.other)}
    assert not tuning & compared and compared == set(KNOWN) - tuning
    assert all(KNOWN[name].all_seeds == TUNING_SEEDS for name in tuning)
    assert not set(TUNING_SEEDS) & {seed for name in compared for seed in KNOWN[name].all_seeds}


def test_every_comparison_is_of_cells_that_run_on_its_bases_with_what_it_looks_at() -> None:
    for claim in CLAIMS:
        for one in (*claim.decides, *claim.also):
            for name in (one.one, one.other):
                assert set(one.bases) <= set(KNOWN[name].bases), (claim.letter, name)
            looks = "along" if "equal" in one.what else "long" if "quarter" in one.what else ""
            assert not looks or all(getattr(KNOWN[name], looks) for name in (one.one, one.other)), one


def test_the_best_rate_is_chosen_and_of_two_alike_the_smaller() -> None:
    scores = {0.3: {"joint": 0.7}, 1.0: {"joint": 0.7}, 3.0: {"joint": 0.1}}
    assert best(scores, {}) == 0.3


def test_the_strongest_pull_is_chosen_under_which_the_proxy_still_rises() -> None:
    def scores(*flickers: float) -> dict[float, dict[str, float]]:
        return {value: {"flicker": one} for value, one in zip((0.0, 0.001, 0.004, 0.016), flickers, strict=True)}

    assert restrained(scores(2.0, 3.0, 5.0, 9.0), {"flicker": 10.0}) == 0.004
    assert restrained(scores(2.0, 8.0, 9.0, 9.5), {"flicker": 10.0}) == 0.001


def test_words_mean_a_cell_a_claim_or_the_demo_and_bring_what_tunes_them() -> None:
    assert selected(["h unwarped"], KNOWN) == ["h unwarped"]
    assert selected(["demo"], KNOWN) == ["base", "demo", "random"]
    assert selected(["h"], KNOWN) == ["h unwarped", "h continuous", "h noisy context"]
    assert selected(["e beta 1"], KNOWN) == ["t base", "t beta 1 0.3", "t beta 1 1", "t beta 1 3", "e beta 1"]
    assert selected(["h", "nothing"], KNOWN) == []


def test_of_a_dead_behavior_policy_the_loss_compares_the_learner_with_itself() -> None:
    forward, made = DeadBehavior.__new__(DeadBehavior), torch.ones(1, requires_grad=True) * 2
    forward.learner = lambda noisy, sigma, chunks: made  # type: ignore[method-assign]
    learner, behavior = forward.predict(made, made, slice(0, 1))
    assert learner is made and torch.equal(behavior, made) and not behavior.requires_grad


# ------------------------------------------------------------------------------------------------------ what is there


def test_what_is_there_is_found_again_by_every_cell_that_is_the_same_and_by_no_other(tmp_path: Path) -> None:
    filled_store(tmp_path, {"recipe": 0.5}, seeds=[0, 1])
    again = Store(tmp_path)
    assert set(again.runs(KNOWN["recipe"], "shapes")) == {0, 1}
    assert set(again.runs(KNOWN["f nft"], "shapes")) == {0, 1}  # whose tuned rate is the recipe's
    assert not again.runs(cells(CHOSEN | {f"beta {BETAS[0]:g}": 3.0})["f nft"], "shapes")
    assert not again.runs(KNOWN["h unwarped"], "shapes") and not again.runs(KNOWN["f dead"], "shapes")
    assert not again.runs(replace(KNOWN["recipe"], noises=7), "shapes")


def test_results_of_other_weights_or_without_what_is_asked_are_left_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Store(tmp_path)
    found.add(record("recipe", "shapes", 0, long=None))
    assert not found.runs(KNOWN["recipe"], "shapes")  # it is judged on long videos, too
    found.add(record("recipe", "shapes", 0))
    assert set(found.runs(KNOWN["recipe"], "shapes")) == {0}
    (lines,) = found.lines.values()
    assert len(lines) == 1  # in the place of the first
    monkeypatch.setattr(store, "weights", lambda base: "others")
    assert not found.runs(KNOWN["recipe"], "shapes")


def test_a_broken_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.jsonl").write_text('{"cell": "recipe"\n', encoding="utf-8")
    with pytest.raises(UserError, match="expected a run in every line"):
        Store(tmp_path)


def test_what_is_missing_comes_seed_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.evidence.__main__.weights", lambda base: "there")
    found = filled_store(tmp_path, {"h unwarped": 0.5}, seeds=[0, 2])
    jobs = missing(found, KNOWN, ["h unwarped", "h continuous"], None)
    assert [(job.cell, job.seed) for job in jobs] == [
        ("h continuous", 0), ("h unwarped", 1), ("h continuous", 1), ("h continuous", 2), ("h unwarped", 3),
        ("h continuous", 3), ("h unwarped", 4), ("h continuous", 4),
    ]  # fmt: skip
    assert not missing(found, KNOWN, ["h unwarped"], [0, 2])


def test_a_setting_is_chosen_when_all_its_runs_are_there(tmp_path: Path) -> None:
    found = Store(tmp_path)
    for seed in TUNING_SEEDS:
        found.add(record("t base", "shapes", seed))
        for value, chance in ((0.3, 0.5), (1.0, 0.6)):
            found.add(record(f"t grpo {value:g}", "shapes", seed, chance))
    assert found.chosen() == {}
    found.add(record("t grpo 3", "shapes", TUNING_SEEDS[0], 0.9))
    assert found.chosen() == {}
    found.add(record("t grpo 3", "shapes", TUNING_SEEDS[1], 0.9))
    assert found.chosen() == {"grpo": 3.0}


@pytest.mark.slow
def test_a_run_is_kept_and_not_run_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--tiny", "--folder", str(tmp_path), "--only", "d adaptive", "--seeds", "3", "--workers", "1"]
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0 and "d adaptive, shapes, seed 3: done" in capfd.readouterr().out
    (line,) = (tmp_path / "d-adaptive.jsonl").read_text(encoding="utf-8").splitlines()
    found = json.loads(line)
    assert (
        found["seed"] == 3 and found["steps"] == 2 and found["samples"] == 8 and found["command"].endswith("--seeds 3")
    )
    assert set(MEASURES) <= set(found["scores"]) and all(len(one) == SCENES for one in found["scores"].values())
    assert [float(one) for one in found["outcomes"]["joint"]] == found["scores"]["joint"]  # one noise
    assert found["cpu_seconds"] > 0 and found["peak_bytes"] > 1e6 and found["seconds"]["update"] > 0
    with pytest.raises(SystemExit):
        main(words)
    assert capfd.readouterr().out.splitlines() == ["0 runs, about 0.0 h, 1 at a time"]


# ---------------------------------------------------------------------------------------------------- power, and pages


def test_power_is_told_of_two_cells_that_are_alike_and_of_real_differences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled_store(tmp_path, {"recipe": 0.5, "p 1 level": 0.6})
    power.main(["recipe", "--folder", str(tmp_path)])
    alone = capsys.readouterr().out
    assert "recipe on shapes, joint, 5 seeds x 44 scenes x 6 noises" in alone and "| 2 | 8 | ±" in alone
    assert "0.500 (within a scene)" in alone or "0.499 (within a scene)" in alone or "0.501 (within a scene)" in alone
    power.main(["recipe", "--against", "p 1 level", "--folder", str(tmp_path)])
    paired = capsys.readouterr().out

    def first(said: str) -> float:
        return float(said.split("±")[1].split(",")[0])

    assert first(paired) < first(alone)  # they share their noises


def test_the_table_of_power_is_put_into_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tmp_path / "plan.md"
    plan.write_text(page.PLAN.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(power, "PLAN", plan)
    filled_store(tmp_path / "runs", {"recipe": 0.5})
    power.main(["recipe", "--folder", str(tmp_path / "runs"), "--write"])
    assert "<!-- begin: power -->\nrecipe on shapes, joint, 5 seeds" in plan.read_text(encoding="utf-8")


def test_power_of_independent_videos_is_that_of_their_number() -> None:
    values = np.random.default_rng(0).random((400, SCENES, 6)).round()  # nothing but noise, half of them right
    rows = power.foreseen(values, alone=True)
    (half,) = [row[4] for row in rows if row[:2] == ["1", "5"]]  # 6 noises
    expected = 100 * (2 * 0.25 / (5 * SCENES * 6)) ** 0.5
    width = float(half.removeprefix("±").split(",")[0])
    assert 2 * expected < width < 3.1 * expected  # Student's quantiles for a few degrees of freedom


def test_power_needs_two_seeds(tmp_path: Path) -> None:
    filled_store(tmp_path, {"recipe": 0.5}, seeds=[0])
    with pytest.raises(UserError, match="at least 2 are needed"):
        power.main(["recipe", "--folder", str(tmp_path)])


def test_a_block_is_put_in_its_place_and_only_there() -> None:
    text = "Words.\n<!-- begin: one -->\nold\n<!-- end -->\nMore.\n<!-- begin: two -->\n<!-- end -->\n"
    found = page.filled(text, {"one": "| 1 |", "two": "| 2 |", "three": ""})
    assert found == text.replace("old", "| 1 |").replace("two -->\n", "two -->\n| 2 |\n")
    assert page.filled(found, {"one": "| 1 |", "two": "| 2 |"}) == found


@pytest.mark.parametrize("file", [page.PAGE, page.PLAN], ids=str)
def test_pages_show_the_runs_that_are_there_by_the_rules_of_today(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert page.filled(text, page.blocks(Store())) == text, "run python -m benchmarks.evidence.page"


def test_the_plan_tells_every_claim_and_the_page_has_room_for_it() -> None:
    plan, shown = (file.read_text(encoding="utf-8") for file in (page.PLAN, page.PAGE))
    for claim in CLAIMS:
        assert f"- **{claim.letter}.**" in plan and f"<!-- begin: claim {claim.letter} -->" in shown


def test_a_cell_says_in_what_it_differs() -> None:
    assert page.differs(recipe()) == []
    config = KNOWN["c steadiness"].config
    assert config is not None
    rate, rewards = page.differs(config)
    assert rate.startswith("optimizer.lr ") and rewards == "rewards steadiness 1"


def test_a_cell_is_a_run_of_its_base() -> None:
    cell: Cell = KNOWN["recipe"]
    assert cell.on("shapes-2step", 4).model.name == "shapes-2step" and cell.on("shapes-2step", 4).seed == 4
