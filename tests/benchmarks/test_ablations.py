"""Ablations compare like with like."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.ablation_cells import CELLS
from benchmarks.ablation_page import PAGE, costs_alone
from benchmarks.ablation_tables import at_proxy, at_the_end, filled, matched, read, said, tables
from benchmarks.ablations import SEEDS, STUDENT_T, Store, configuration, interval, proxies, summary, weights


def test_a_judge_is_read_where_the_proxy_stands_at_the_level() -> None:
    assert at_proxy([0.0, 1.0, 3.0], [1.0, 0.8, 0.4], 2.0) == pytest.approx(0.6)
    assert at_proxy([0.0, 1.0], [1.0, 0.8], 2.0) is None
    assert at_proxy([0.5, 1.0], [1.0, 0.8], 0.2) == 1.0


def test_a_slower_regulariser_is_compared_where_it_has_risen_as_far() -> None:
    content = {"base": {"first": {"pixel_saturation": 0.5, "joint": 1.0}}}

    def cell(speed: float, cost: float, seed: int = 0) -> dict[str, object]:
        proxy = [0.5 + speed * step for step in range(1, 7)]
        points = [{"pixel_saturation": value, "joint": 1 - cost * (value - 0.5)} for value in proxy]
        return {"runs": [{"seed": seed, "along": points}]}

    none = cell(0.02, 0.5)
    assert matched(content, cell(0.01, 0.1), none) == pytest.approx([(0.5 - 0.1) * 0.06])
    assert matched(content, cell(0.04, 0.1), none) == pytest.approx([(0.5 - 0.1) * 0.12])
    assert matched(content, none, none) == [0.0] and matched(content, cell(0.01, 0.1, seed=1), none) == []


def test_what_a_regulariser_ends_with_is_compared_as_if_the_proxy_had_risen_as_far() -> None:
    content = {"base": {"short": {"pixel_saturation": 0.5, "joint": 1.0}}}

    def cell(proxy: float, joint: float) -> dict[str, object]:
        return {"runs": [{"seed": 0, "scores": {"pixel_saturation": proxy, "joint": joint}}]}

    none = cell(0.7, 0.6)  # loses two points of joint for every one of the proxy
    assert at_the_end(content, cell(0.6, 0.85), none, none) == pytest.approx([0.05])
    assert at_the_end(content, cell(0.6, 0.85), cell(0.55, 0.9), none) == pytest.approx([0.05])
    assert at_the_end(content, none, none, none) == [0.0]


def test_a_table_is_put_in_its_place_and_only_there() -> None:
    page = "Words.\n<!-- table: one -->\nold\n<!-- end -->\nMore.\n<!-- table: two -->\n<!-- end -->\n"
    found = filled(page, {"one": "| 1 |", "two": "| 2 |"})
    assert (
        found == "Words.\n<!-- table: one -->\n| 1 |\n<!-- end -->\nMore.\n<!-- table: two -->\n| 2 |\n<!-- end -->\n"
    )
    assert filled(found, {"one": "| 1 |", "two": "| 2 |", "three": ""}) == found
    with pytest.raises(KeyError):
        filled(page, {"one": "| 1 |"})


def test_a_table_says_mean_and_interval() -> None:
    assert said([1.0, 2.0, 3.0]) == "2.000 [-0.483, 4.483]" and said([0.5], "+.2f") == "+0.50"


def test_an_interval_is_students() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0 and found["ci95"] == pytest.approx([2 - 4.30 / 3**0.5, 2 + 4.30 / 3**0.5], abs=1e-3)
    assert interval([1.0])["ci95"] is None and len(SEEDS) in STUDENT_T


def test_every_cell_makes_as_many_samples_and_what_is_there_to_be_hacked_never_trains_on_the_yardstick() -> None:
    for name, cfg in CELLS.items():
        assert cfg.steps * cfg.rollout.prompts * cfg.rollout.group_size == 24 * 4 * 8, name
        if name.startswith("b ") or "saturation" in name or "steadiness" in name:
            assert "joint" not in {reward.name for reward in cfg.rewards if reward.role != "judge"}, name


def test_what_was_run_is_not_run_again_unless_its_configuration_or_the_model_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = {"seed": 0, "configuration": configuration(CELLS["d adaptive"]), "samples": 768, "seconds": 1.0}
    result |= {"peak_bytes": 1, "scores": {"joint": 0.5}, "along": [], "by_step": {}}
    store = Store(tmp_path / "found.json")
    store.add("d adaptive", 0, result)
    store.add("e beta 1", 0, result)  # as if another configuration had had this name
    again = Store(tmp_path / "found.json")
    assert again.has("d adaptive", 0) and not again.has("d adaptive", 1) and not again.has("e beta 1", 0)
    again.add("d adaptive", 1, result | {"seed": 1, "scores": {"joint": 0.7}})
    (cell,) = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["cells"]
    assert cell["seeds"] == [0, 1] and cell["scores"]["joint"]["mean"] == 0.6
    monkeypatch.setattr("benchmarks.ablations.weights", lambda: {"transformer.safetensors": "others"})
    assert not Store(tmp_path / "found.json").runs


def test_proxies_are_read_from_videos_without_prompts() -> None:
    still = proxies(torch.full((2, 9, 3, 64, 64), 0.5))
    assert still["pixel_motion"] == still["pixel_saturation"] == still["flow_degree"] == 0


def test_the_page_shows_the_committed_numbers_and_these_are_of_the_cells_of_today() -> None:
    content, cells = read()
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, tables(content, cells, costs_alone())) == page
    assert content["files"] == weights()
    today = {name: configuration(cfg) for name, cfg in CELLS.items()}
    assert all(run["configuration"] == today[name] for name, cell in cells.items() for run in cell["runs"])
    summaries = {name: summary(name, cell["runs"])["scores"] for name, cell in cells.items()}
    assert summaries == {name: cell["scores"] for name, cell in cells.items()}
