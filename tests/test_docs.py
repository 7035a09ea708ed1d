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


def test_the_python_example_trains_and_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shown: list[torch.Tensor] = []
    exec(code, {"show": shown.append})
    assert [video.shape[1] for video in shown] == [9, *[12] * 9]
    assert "elephant" in capsys.readouterr().out


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
    exec(f"from pathlib import Path\nfrom astrolabe.rewards.settings import ServerSettings\nasked = {server}", names)
    assert names["asked"].server.shown == 8
    assert names["Redness"]()(torch.ones(2, 9, 3, 8, 8), ["x", "x"]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert re.match(r"https?:", target) or (page.parent / target).exists(), target


def named(page: str) -> list[str]:
    """What stands in a page as code: between backticks, and in blocks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```.*?\n(.*?)```", text, re.DOTALL)
    words = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [*words, *(line for block in blocks for line in block.splitlines())]


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_targets_and_programs_that_a_page_names_are_there(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in named(page):
        for target in re.findall(r"^make (?:[A-Z]+=\S+ )*([a-z-]+)", words):
            assert f"\n{target}: " in makefile, words
        for module in re.findall(r"python -m ((?:tests|benchmarks|astrolabe)[\w.]*)", words):
            place = module.replace(".", "/")
            assert any(
                (ROOT / top / f"{place}{end}").is_file() for top in ("", "src") for end in (".py", "/__main__.py")
            )


def test_how_to_work_here_names_every_target_and_nothing_that_is_not_there() -> None:
    words = named("CONTRIBUTING.md")
    targets = re.findall(r"^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert not {f"make {target}" for target in targets if target != "help"} - set(words)
    paths = {word for word in words if re.fullmatch(r"[\w./-]+(/|\.(py|md|txt|json|toml))", word)}
    homes = (ROOT, ROOT / "src" / "astrolabe")
    assert not {path for path in paths if not any((home / path).exists() for home in homes)}
    # Names of code: CONSTANT, CamelCase, or words_with_lines.
    names = {word for word in words if re.fullmatch(r"[A-Z]\w+|[a-z]+_\w+", word)}
    source = "\n".join(
        path.read_text(encoding="utf-8") for top in ("src", "tests") for path in (ROOT / top).rglob("*.py")
    )
    assert names >= {"UserError"}
    assert not {name for name in names if not re.search(rf"(class|def) {name}\b|^{name}\b.* = ", source, re.MULTILINE)}
