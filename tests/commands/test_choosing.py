"""What words on the command line stand for: recipes, rewards, guards, models."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from pathlib import Path

import pytest
import yaml

from astrolabe.cli import main
from astrolabe.commands.choosing import configuration_arguments, configured, default_out, parse_guard
from astrolabe.experiment import TrainConfig, model_settings
from astrolabe.recipes import RECIPES
from astrolabe.recipes.shapes import shapes, shapes_grpo
from astrolabe.rl.settings import GRPOSettings, GuardSettings, NFTSettings
from astrolabe.runtime.config import save_yaml, to_dict
from astrolabe.runtime.errors import UserError


def read(*argv: str, runs: bool = False) -> TrainConfig:
    """The configuration that a command line names."""
    parser = ArgumentParser()
    configuration_arguments(parser)
    args, rest = parser.parse_known_args(argv)
    return configured(args, rest, runs)


def test_a_recipe_is_found_under_its_name_and_its_models() -> None:
    assert read("self_forcing") == read("self-forcing") == RECIPES["self_forcing"]()
    assert read("krea-realtime-14b") == read("krea-realtime") == RECIPES["krea_realtime"]()
    assert model_settings("self_forcing") == model_settings("self-forcing")
    assert model_settings("krea_realtime").name == "krea-realtime-14b"
    assert default_out("self-forcing") == Path("runs/self_forcing")


def test_rewards_named_on_the_command_line_take_the_place_of_the_recipes() -> None:
    cfg = read("shapes", "--rewards", "joint,weight=2", "--rewards", "pixel_motion,role=judge", "--steps", "3")
    assert [(reward.name, reward.weight, reward.role) for reward in cfg.rewards] == [
        ("joint", 2.0, "auxiliary"),
        ("pixel_motion", 1.0, "judge"),
    ]
    assert cfg.steps == 3


def test_rewards_and_what_depends_on_them_are_changed_at_once() -> None:
    cfg = read("shapes", "--regularisation.samples", "selective", "--rewards", "joint,role=primary",
               "--rewards", "motion_fit")  # fmt: skip
    assert cfg.regularisation.samples == "selective"


def test_a_field_of_rewards_that_are_named_anew_is_refused() -> None:
    with pytest.raises(UserError, match=r"rewards\.0\.weight=2: rewards are named anew on this command line"):
        read("shapes", "--rewards", "joint", "--rewards.0.weight", "2")


def test_guards_named_on_the_command_line_take_the_place_of_the_recipes() -> None:
    cfg = read("shapes", "--guards", "motion_energy,below=0.6,steps=5,action=slow", "--guards", "joint,drop=0.1")
    assert cfg.watch.guards == (
        GuardSettings(watch="motion_energy", below=0.6, steps=5, action="slow"),
        GuardSettings(watch="joint", drop=0.1),
    )


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("motion_energy", "give one of below, above and drop"),
        ("motion_energy,under=0.5", "unknown setting under"),
        ("motion_energy,below=low", "expected a number > 0"),
        ("motion_energy,below=0.5,action=shout", "one of warn, slow, refresh, stop"),
        ("motion_energy,below=0.5,steps=0", "a whole number >= 1"),
        ("", "no reward is named|nothing is named"),
    ],
)
def test_a_guard_that_is_none_is_refused_in_one_line(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        parse_guard(spec)
    assert "--guards" in str(refused.value) and "\n" not in str(refused.value)


def test_config_prints_what_trains_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["config", "shapes_grpo", "--optimizer.lr", "1e-4"])
    text = capsys.readouterr().out
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    cfg = read(str(tmp_path / "own.yaml"))
    assert cfg == read("shapes_grpo", "--optimizer.lr", "1e-4") and cfg.optimizer.lr == 1e-4


def test_a_yaml_file_may_hold_only_what_differs_from_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: shapes\noptimizer:\n  lr: 1e-4\nalgorithm:\n  beta: 0.3\nrewards:\n- name: joint\n")
    cfg = read(str(file), "--steps", "7")
    assert (cfg.optimizer.lr, cfg.optimizer.minibatches, cfg.steps) == (1e-4, 3, 7)
    assert isinstance(cfg.algorithm, NFTSettings) and (cfg.algorithm.beta, cfg.algorithm.behavior_keep) == (0.3, 0.9)
    assert [reward.name for reward in cfg.rewards] == ["joint"]


def test_another_algorithm_in_a_yaml_file_takes_nothing_from_the_recipes(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"recipe": "shapes", "algorithm": to_dict(shapes_grpo().algorithm)}))
    assert isinstance(read(str(file)).algorithm, GRPOSettings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recipe: shape\n", "recipe: 'shape' is unknown; did you mean shapes"),
        ("recipe: shapes\noptimiser: {lr: 1}\n", "unknown setting optimiser; did you mean optimizer"),
        ("recipe: shapes\noptimizer: {lr: -1.0}\n", "optimizer.lr=-1.0: expected a number > 0"),
        ("recipe: [1]\n", "is unknown"),
        ("- 1\n", "expected a mapping"),
    ],
)
def test_a_yaml_file_that_is_no_configuration_is_refused_with_its_name(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=said) as refused:
        read(str(file))
    assert str(file) in str(refused.value)


RECIPE = """
from dataclasses import replace
from pathlib import Path
from astrolabe.recipes.shapes import shapes
Path(__file__).with_name("ran").touch()
def mine():
    return replace(shapes(), steps=5)
def broken():
    return 1 / 0
def leaving():
    raise SystemExit(0)
def other():
    return 7
"""


def test_a_recipe_in_a_file_of_python_is_run_only_when_it_is_trusted(tmp_path: Path) -> None:
    file = tmp_path / "recipe.py"
    file.write_text(RECIPE)
    with pytest.raises(UserError, match="add --trust-code"):
        read(f"{file}:mine")
    assert not (tmp_path / "ran").exists()
    assert read(f"{file}:mine", "--trust-code", "--seed", "3").steps == 5
    assert default_out(f"{file}:mine") == Path("runs/mine")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        read(f"{file}:broken", "--trust-code")
    with pytest.raises(UserError, match="SystemExit: 0"):
        read(f"{file}:leaving", "--trust-code")
    with pytest.raises(UserError, match="gave int; expected a function that returns a TrainConfig"):
        read(f"{file}:other", "--trust-code")
    with pytest.raises(UserError, match="has no function of that name"):
        read(f"{file}:nothing", "--trust-code")
    with pytest.raises(UserError, match="no such file"):
        read(f"{tmp_path / 'nothing.py'}:mine", "--trust-code")


def test_code_that_a_file_names_needs_trust_and_what_the_command_line_names_does_not(tmp_path: Path) -> None:
    file = tmp_path / "foreign.yaml"
    save_yaml(read("shapes", "--rewards", "theirs.py:Theirs"), file)
    with pytest.raises(UserError, match=r"code to run, theirs.py:Theirs.*--trust-code"):
        read(str(file), runs=True)
    assert read(str(file), runs=False).rewards[0].own  # looking at it runs nothing
    assert read(str(file), "--trust-code", runs=True).rewards[0].own
    assert read(str(file), "--rewards", "mine.py:Mine", runs=True).rewards[0].name == "mine.py:Mine"
    assert read("shapes", "--rewards", "mine.py:Mine", runs=True).rewards[0].own
    assert shapes().rewards[0].name == "joint"


def test_what_is_no_recipe_is_answered_by_what_it_looks_like(tmp_path: Path) -> None:
    save_yaml(RECIPES["shapes_tiny"](), tmp_path / "config.yaml")
    for word, said in (
        (f"{tmp_path}@40", f"--init {tmp_path}@40 --out NEW"),
        ("recipe.py", "recipe.py:FUNCTION --trust-code"),
        (str(tmp_path / "nothing"), "no run is there"),
        ("shape", "did you mean shapes"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            read(word)
