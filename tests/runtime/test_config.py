from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from astrolabe.runtime.arguments import Parser
from astrolabe.runtime.config import (
    changes,
    config,
    describe,
    diff,
    from_dict,
    load_yaml,
    override,
    parse_overrides,
    paths_in,
    save_yaml,
    setting,
    to_dict,
)
from astrolabe.runtime.errors import UserError


@config
class Optimizer:
    lr: float = setting("learning rate", unit="per step", gt=0)
    betas: tuple[float, float] = setting("decay of the moments", default=(0.9, 0.99))
    clip: float | None = setting("largest gradient norm", default=1.0, gt=0)


@config
class Rollout:
    group_size: int = setting("candidates per prompt", ge=2, le=64)
    frames: int = setting("latent frames", default=12, ge=1)
    window: int = setting("frames seen at once", default=6, ge=1)
    seeds: tuple[int, ...] = setting("fixed seeds", default=())

    def __post_init__(self) -> None:
        if self.window > self.frames:
            raise ValueError(f"window={self.window} is longer than frames={self.frames}")


@config
class Nft:
    kind: Literal["nft"] = "nft"
    beta: float = setting("strength", default=1.0, ge=0, lt=10)


@config
class Grpo:
    kind: Literal["grpo"] = "grpo"
    beta: float = setting("strength", default=0.1)


@config
class Reward:
    name: str = setting("which reward", min_length=1)
    weight: float = setting("its share", default=1.0)


@config
class Run:
    steps: int = setting("training steps", gt=0)
    out: Path = setting("where results go", default=Path("runs/x"))
    note: str = setting("anything", default="")
    device: Literal["cpu", "cuda"] = setting("where to compute", default="cpu")
    resume: bool = setting("go on from the latest checkpoint", default=False)
    optimizer: Optimizer = setting("the optimizer")
    rollout: Rollout = setting("the rollout")
    algorithm: Nft | Grpo = setting("the algorithm", default=Nft())
    rewards: tuple[Reward, ...] = setting("the rewards", default=(Reward(name="color"), Reward(name="motion")))
    ema: Optimizer | None = setting("an optional group", default=None)


RUN = Run(steps=10, optimizer=Optimizer(lr=1e-3), rollout=Rollout(group_size=4))


def refusal(**texts: str) -> str:
    with pytest.raises(UserError) as caught:
        override(RUN, {name.replace("__", "."): text for name, text in texts.items()})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_required_setting_has_no_default():
    with pytest.raises(ValidationError):
        Optimizer()  # type: ignore[call-arg]


def test_a_configuration_is_frozen_and_refuses_unknown_names_and_loose_types():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RUN.steps = 3  # type: ignore[misc]
    for wrong in ({"step": 3}, {"steps": True}, {"steps": "3"}, {"steps": 0}, {"device": "tpu"}):
        with pytest.raises((ValidationError, TypeError)):
            dataclasses.replace(RUN, **wrong)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "12", 12),
        ("optimizer.lr", "1e-4", 1e-4),
        ("optimizer.betas", "0.5, 0.75", (0.5, 0.75)),
        ("optimizer.clip", "none", None),
        ("optimizer.clip", "0.5", 0.5),
        ("resume", "true", True),
        ("resume", "no", False),
        ("note", "a, b", "a, b"),
        ("out", "runs/mine", Path("runs/mine")),
        ("device", "cuda", "cuda"),
        ("rollout.seeds", "1,-2,3", (1, -2, 3)),
        ("rollout.seeds", "", ()),
        ("rewards.1.weight", "-2", -2.0),
        ("algorithm.beta", "0", 0.0),
    ],
)
def test_a_value_is_read_by_the_type_of_its_field(name: str, text: str, value: Any):
    changed: Any = override(RUN, {name: text})
    for part in name.split("."):
        changed = changed[int(part)] if part.isdigit() else getattr(changed, part)
    assert changed == value and type(changed) is type(value)


def test_an_override_changes_nothing_else_and_leaves_the_original_alone():
    changed = override(RUN, {"optimizer.lr": "0.5", "rewards.0.weight": "3"})
    assert diff(RUN, changed) == ["optimizer.lr: 0.001 -> 0.5", "rewards.0.weight: 1.0 -> 3.0"]
    assert RUN.optimizer.lr == 1e-3


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("optimizer.lr", "abc", "optimizer.lr=abc: expected a number > 0 (learning rate, in per step)"),
        ("optimizer.lr", "-1", "optimizer.lr=-1: expected a number > 0 (learning rate, in per step)"),
        ("optimizer.lr", "nan", "optimizer.lr=nan: expected a number > 0 (learning rate, in per step)"),
        ("optimizer.clip", "0", "optimizer.clip=0: expected a number > 0 or none (largest gradient norm)"),
        ("steps", "1.5", "steps=1.5: expected a whole number > 0 (training steps)"),
        ("resume", "maybe", "resume=maybe: expected true or false (go on from the latest checkpoint)"),
        ("device", "tpu", "device=tpu: expected one of cpu, cuda (where to compute)"),
        ("rollout.group_size", "65", "expected a whole number >= 2 and <= 64"),
        ("optimizer.betas", "0.5", "expected 2 values separated by commas (a number, a number)"),
        ("rollout.seeds", "1,x", "expected values separated by commas (a whole number, ...)"),
        ("rewards.0.name", "", "rewards.0.name=: expected text of length >= 1 (which reward)"),
    ],
)
def test_a_wrong_value_is_answered_with_what_was_expected(name: str, text: str, said: str):
    assert said in refusal(**{name: text})


def test_an_unknown_name_is_answered_with_the_nearest_full_names():
    assert refusal(rollout__groupsize="3") == (
        "unknown setting rollout.groupsize; did you mean rollout.group_size, rollout.seeds, rollout.frames?"
    )
    assert refusal(lr="3").endswith("did you mean optimizer.lr?")
    assert "unknown setting zzz" in refusal(zzz="3")


def test_a_group_is_not_a_setting_and_a_group_that_is_off_has_none():
    assert refusal(rollout="3") == (
        "rollout is a group of settings: set rollout.group_size, rollout.frames, rollout.window, rollout.seeds"
    )
    assert "ema is none here" in refusal(ema__lr="3")
    on = dataclasses.replace(RUN, ema=Optimizer(lr=1.0))
    assert override(on, {"ema": "none"}).ema is None
    assert override(on, {"ema.lr": "2"}).ema == Optimizer(lr=2.0)
    with pytest.raises(UserError, match=r"ema=none leaves no ema\.lr"):
        override(on, {"ema.lr": "2", "ema": "none"})


def test_a_rule_across_fields_sees_all_overrides_at_once():
    changed = override(RUN, {"rollout.window": "20", "rollout.frames": "24"})
    assert (changed.rollout.window, changed.rollout.frames) == (20, 24)
    assert refusal(rollout__window="20") == "rollout: window=20 is longer than frames=12"


@given(
    steps=st.integers(1, 10**9),
    lr=st.floats(1e-12, 1e6),
    clip=st.none() | st.floats(1e-6, 1e6),
    seeds=st.lists(st.integers(-(10**12), 10**12)),
    resume=st.booleans(),
)
def test_every_shown_value_can_be_typed_back(steps: int, lr: float, clip: float | None, seeds: list[int], resume: bool):
    optimizer = Optimizer(lr=lr, clip=clip)
    rollout = Rollout(group_size=2, seeds=tuple(seeds))
    cfg = dataclasses.replace(RUN, steps=steps, optimizer=optimizer, rollout=rollout, resume=resume)
    told = {doc.name: doc.value for doc in describe(cfg) if doc.name != "ema"}
    assert override(RUN, told) == cfg


@example(note="\x85", lr=1.0, seeds=[], grpo=False)  # a line break to YAML when it stands unescaped
@given(
    note=st.text(st.characters(exclude_categories=["Cs"])),
    lr=st.floats(1e-300, 1e300),
    seeds=st.lists(st.integers()),
    grpo=st.booleans(),
)
def test_yaml_gives_back_an_equal_configuration(
    tmp_path_factory: pytest.TempPathFactory, note: str, lr: float, seeds: list[int], grpo: bool
):
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    cfg = dataclasses.replace(
        RUN,
        note=note,
        ema=Optimizer(lr=lr),
        rollout=Rollout(group_size=2, seeds=tuple(seeds)),
        algorithm=Grpo() if grpo else Nft(beta=2.0),
    )
    save_yaml(cfg, path)
    assert load_yaml(Run, path) == cfg
    assert from_dict(Run, to_dict(cfg), "memory") == cfg


SMALL = "steps: 3\noptimizer: {lr: 0.1}\nrollout: {group_size: 4}\n"


def test_a_hand_written_number_like_1e_4_is_a_number(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(SMALL.replace("0.1", "1e-4"))
    assert load_yaml(Run, path).optimizer.lr == 1e-4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SMALL + "stepz: 1\n", "unknown setting stepz; did you mean steps?"),
        (SMALL.replace("lr", "rl"), "unknown setting optimizer.rl"),
        (SMALL.replace("steps: 3", ""), "missing setting steps: expected a whole number > 0 (training steps)"),
        (SMALL.replace("lr: 0.1", ""), "missing setting optimizer.lr: expected a number > 0"),
        (SMALL.replace("3", "true"), "steps=true: expected a whole number > 0"),
        (SMALL.replace("3", "'3'"), "steps=3: expected a whole number > 0"),
        (SMALL.replace("0.1", ".nan"), "optimizer.lr=nan: expected a number > 0"),
        (SMALL.replace("{lr: 0.1}", "fast"), "optimizer: expected a mapping of settings, got str"),
        (SMALL + "rewards: [{name: x, wait: 1}]", "unknown setting rewards.0.wait"),
        (SMALL + "rewards: {a: 1}", "expected values separated by commas"),
        (SMALL + "algorithm: {kind: ppo}", "kind=ppo: expected one of nft"),
        (SMALL + "algorithm: {kind: grpo, beta: x}", "algorithm.beta=x: expected a number"),
        (SMALL.replace("group_size: 4", "group_size: 4, window: 99"), "rollout: window=99 is longer than frames=12"),
        ("- a\n- b\n", "the whole: expected a mapping of settings, got list"),
        ("", "the whole: expected a mapping of settings, got NoneType"),
        ("steps: [", "not valid YAML"),
        (SMALL + "steps: 4\n", "steps is set twice"),
        (SMALL.replace("lr: 0.1", "lr: 0.1, lr: 0.2"), "lr is set twice"),
        ("steps: 2024-13-45", "not valid YAML"),
        ("steps: !!python/object:os.system {}", "not valid YAML"),
    ],
)
def test_a_faulty_file_is_answered_with_the_file_and_the_field(tmp_path: Path, text: str, said: str):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_yaml(Run, path)
    assert str(caught.value).startswith(f"{path}: ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_or_not_there_is_named(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"steps: \xff")
    for wrong, said in ((path, "not UTF-8"), (tmp_path / "none.yaml", "cannot be read"), (tmp_path, "cannot be read")):
        with pytest.raises(UserError, match=said):
            load_yaml(Run, wrong)


def test_the_help_page_knows_every_setting():
    docs = {doc.name: doc for doc in describe(RUN)}
    lr = docs["optimizer.lr"]
    assert (lr.type_text, lr.value, lr.unit, lr.description, lr.limits) == (
        "float",
        "0.001",
        "per step",
        "learning rate",
        "> 0",
    )
    assert docs["device"].choices == ("cpu", "cuda")
    assert docs["optimizer.clip"].type_text == "float | none"
    assert docs["rollout.seeds"].type_text == "int,..."
    assert docs["ema"].value == "none"
    assert "optimizer" not in docs and "rewards.1.weight" in docs


def test_flags_come_in_two_spellings_and_dashes_stand_for_underscores():
    argv = ["--rollout.group-size", "8", "--optimizer.lr=1e-4", "--note=a=b", "--x", "-1.5", "--x", "-2"]
    assert parse_overrides(argv) == {"rollout.group_size": "8", "optimizer.lr": "1e-4", "note": "a=b", "x": "-2"}


@pytest.mark.parametrize(
    "argv", [["steps"], ["--steps"], ["--steps", "--lr", "3"], ["--a", "1", "2"], ["-s", "1"], ["--"]]
)
def test_a_flag_without_a_value_and_a_value_without_a_flag_are_refused(argv: list[str]):
    with pytest.raises(UserError):
        parse_overrides(argv)


def test_a_difference_names_what_only_one_side_has():
    on = dataclasses.replace(RUN, ema=Optimizer(lr=1.0))
    assert "ema.lr: (absent) -> 1.0" in diff(RUN, on)
    assert diff(RUN, RUN) == []


@config
class Marked:
    """Settings that say what they are."""

    lr: float = setting("a rate", default=1.0)
    batch: int = setting("at once", default=1, affects="rounding")
    every: int = setting("now and then", default=1, affects="nothing")
    file: str = setting("a file", default="", path=True)
    other: Path | None = setting("another", default=None, path=True)
    inner: Reward | None = setting("a group", default=None)


def test_a_change_says_what_it_affects_and_what_one_side_lacks_affects_results():
    changed = changes(Marked(), Marked(lr=2.0, batch=2, every=2, inner=Reward(name="x")))
    assert {change.name: change.affects for change in changed} == {
        "lr": "results", "batch": "rounding", "every": "nothing", "inner": "results", "inner.name": "results",
        "inner.weight": "results",
    }  # fmt: skip


def test_settings_that_name_files_are_known_and_empty_ones_left_out():
    assert paths_in(Marked()) == {}
    assert paths_in(Marked(file="a/b", other=Path("c"))) == {"file": "a/b", "other": "c"}


def test_a_home_is_meant_where_a_file_is_named_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written = {"file": "~/a", "other": "~/b", "inner": {"name": "~", "weight": 1.0}}
    for read in (from_dict(Marked, written, "x.yaml"), override(Marked(), {"file": "~/a", "other": "~/b"})):
        assert (read.file, read.other) == (str(tmp_path / "a"), tmp_path / "b")
    assert from_dict(Marked, written, "x.yaml").inner == Reward(name="~", weight=1.0)
    parser = Parser(prog="x")
    parser.add_argument("--out", type=Path)
    assert parser.read(["--out=~/c"]).out == tmp_path / "c"
