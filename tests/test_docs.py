"""What the documentation shows works as shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from astrolabe.assembly import make_rewards
from astrolabe.experiment import TrainConfig
from astrolabe.rewards.base import Reward
from astrolabe.runtime.config import load_yaml, save_yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_interactive_example_runs() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shown: list[torch.Tensor] = []
    names: dict[str, Any] = {"show": shown.append}
    exec(code, names)
    assert [video.shape[1] for video in shown] == [9, *[12] * 8]


def test_the_run_with_all_defences_can_be_built_and_written(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    suite, own, server = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(suite, names)
    save_yaml(names["config"], tmp_path / "mine.yaml")
    assert load_yaml(TrainConfig, tmp_path / "mine.yaml") == names["config"]
    assert [member.role for member in make_rewards(names["config"])][-1] == "judge"
    exec(own, names)
    assert isinstance(names["Redness"](), Reward)
    exec(f"from pathlib import Path\nfrom astrolabe.rewards.server import ServerSettings\nasked = {server}", names)
    assert names["asked"].server.shown == 8
    assert names["Redness"]()(torch.ones(2, 9, 3, 8, 8), ["x", "x"]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert re.match(r"https?:", target) or (page.parent / target).exists(), target
