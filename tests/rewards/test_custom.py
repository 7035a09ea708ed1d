"""Rewards of a user's own: found, checked, and their failures told as sentences."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astrolabe.rewards.base import Member, Scorer, ScoringError, UncertainReward, attempt, judged
from astrolabe.rewards.cache import ScoreCache, identity
from astrolabe.rewards.custom import load_custom, write_template
from astrolabe.rewards.opening import Opening, look_at
from astrolabe.rewards.pool import whole
from astrolabe.rewards.settings import KNOWN, RewardModelSettings, RewardSettings, ServerSettings
from astrolabe.rewards.spec import parse_spec
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.settings import Plain
from astrolabe.types import Footage

VIDEO = torch.rand(2, 9, 3, 8, 8, generator=torch.Generator().manual_seed(0))
HEAD = "import torch\nclass Mine:\n    name = 'mine'\n"


def written(folder: Path, body: str) -> str:
    """A file with a reward, and its spec."""
    (folder / "mine.py").write_text(body, encoding="utf-8")
    return f"{folder / 'mine.py'}:Mine"


def test_the_template_is_a_reward(tmp_path: Path) -> None:
    spec = write_template("Redness", tmp_path / "redness.py")
    values, doubts = judged(Member(load_custom(spec)), VIDEO, ["a", "b"])
    torch.testing.assert_close(values, (VIDEO[:, :, 0] - VIDEO[:, :, 1:].mean(2)).mean((1, 2, 3)))
    assert not doubts.any()
    with pytest.raises(UserError, match=r"redness\.py exists; name another file"):
        write_template("Redness", tmp_path / "redness.py")
    with pytest.raises(UserError, match="is no name for a class"):
        write_template("my reward", tmp_path / "b.py")


def test_one_that_doubts_is_asked_for_its_doubt(tmp_path: Path) -> None:
    body = f"{HEAD}    def judge(self, video, prompts):\n        return torch.ones(2), torch.full((2,), 0.5)\n"
    body += "    def __call__(self, video, prompts):\n        return self.judge(video, prompts)[0]\n"
    reward = load_custom(written(tmp_path, body))
    assert isinstance(reward, UncertainReward)
    assert judged(Member(reward), VIDEO, ["a", "b"])[1].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("class Other: pass\n", "has no class Mine; it has Other"),
        ("def Mine(): pass\n", "has no class Mine; it has no class at all"),
        ("class Mine:\n    def __call__(self, video, prompts): ...\n", "a reward has a `name`"),
        ("class Mine:\n    name = 'mine'\n", "a reward has a `name` and a method"),
        (f"{HEAD}    def __call__(self, video): ...\n", r"takes \(video\): too many positional"),
        (f"{HEAD}    def __init__(self, size): ...\n    def __call__(self, v, p): ...\n", "made with size, which"),
        ("import nosuchmodule\n", "ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("class Mine\n", r"SyntaxError: expected ':' \(mine\.py, line 1\)$"),
        ("import torch\n\ntorch.ones(2) @ torch.ones(3)\n", r"RuntimeError: .* \(mine\.py, line 3\)$"),
        ("import sys\nsys.exit('no licence')\n", r"SystemExit: no licence \(mine\.py, line 2\)$"),
        (f"{HEAD}    def __init__(self):\n        assert False\n", r"AssertionError \(mine\.py, line 5\)$"),
        (f"{HEAD}    name = property(lambda self: 1 / 0)\n", r"division by zero \(mine\.py, line 4\)$"),
        ("raise ValueError('one\\n' + 'long ' * 999)\n", r"ValueError: one (long ){59}\w* \(mine\.py, line 1\)$"),
    ],
)
def test_what_is_no_reward_is_refused_at_start(body: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        load_custom(written(tmp_path, body))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("torch.ones(3)", r"'mine' returned shape \[3\]; expected a tensor with one score for each of 2 videos"),
        ("[1.0, 2.0]", "'mine' returned list"),
        ("1 / 0", r"mine\.py:Mine': ZeroDivisionError: division by zero \(mine\.py, line 5\)"),
        ("torch.ones(2) @ torch.ones(3)", r"mine\.py:Mine': RuntimeError: .* \(mine\.py, line 5\)"),
        ("torch.ones(2, 1)", r"returned shape \[2, 1\]"),
    ],
)
def test_a_step_keeps_what_others_say_when_a_reward_fails(returned: str, said: str, tmp_path: Path) -> None:
    mine = load_custom(written(tmp_path, f"{HEAD}    def __call__(self, video, prompts):\n        return {returned}\n"))

    class Good:
        name = "good"

        def __call__(self, video: torch.Tensor, prompts: object) -> torch.Tensor:
            return torch.tensor([1.0, 2.0])

    def scorer(role: str) -> Scorer:
        made = Scorer([Member(Good()), Member(mine, role=role)], 2)  # type: ignore[arg-type]
        frames = (VIDEO * 255).byte()
        made.see(Footage(torch.arange(2), frames, ("a", "b"), {"clip": 1.0, "video": 1.0, "mixed": 1.0}))
        return made

    with pytest.raises(ScoringError, match=said):
        scorer("auxiliary").scores(torch.zeros(2, 1, 1, 1, 1), 0.1)
    judge = scorer("judge")
    scores = judge.scores(torch.zeros(2, 1, 1, 1, 1), 0.1)  # a judge that fails costs no sample, and is told
    assert scores.column("good").tolist() == [1.0, 2.0] and scores.column("mine").isnan().all() and scores.valid.all()
    assert list(judge.refusals) == ["mine"]


@pytest.mark.parametrize("spec", ["mine.py", "a b:Mine", "mine.py:", "nowhere.py:Mine", "no.such.module:Mine"])
def test_a_spec_that_names_nothing_is_refused(spec: str) -> None:
    with pytest.raises(UserError):
        load_custom(spec)


def test_a_class_that_is_not_there_is_looked_for_among_the_files_own(tmp_path: Path) -> None:
    spec = write_template("Redness", tmp_path / "redness.py")
    with pytest.raises(UserError, match=r"no class Blueness; it has Redness$"):
        load_custom(spec.replace(":Redness", ":Blueness"))


def test_names_are_known_or_name_a_class() -> None:
    for name in (*KNOWN, "file.py:Class", "package.module:Class"):
        if name == "server":
            with pytest.raises(UserError, match="url, model, rubric"):
                RewardSettings(name=name)
            continue
        assert RewardSettings(name=name).own == (":" in name)
    with pytest.raises(UserError, match="'hspv3' is unknown; did you mean hpsv3"):
        RewardSettings(name="hspv3")
    with pytest.raises(UserError, match="reward joint: model is for hpsv3"):
        RewardSettings(name="joint", model=RewardModelSettings())


@given(st.floats(-10, 10), st.text(max_size=20))
def test_a_score_is_found_again_by_reward_pixels_and_prompt(tmp_path_factory, score: float, prompt: str) -> None:
    path = tmp_path_factory.mktemp("cache") / "scores.sqlite"
    ScoreCache(path).put("a", VIDEO, prompt, score)
    again = ScoreCache(path)
    assert again.get("a", VIDEO, prompt) == score
    for other in (("b", VIDEO, prompt), ("a", VIDEO, f"{prompt}x"), ("a", VIDEO.flip(1), prompt),
                  ("a", VIDEO.reshape(1, 18, 3, 8, 8), prompt)):  # fmt: skip
        assert again.get(*other) is None
    again.put("a", VIDEO, prompt + "y", float("nan"))
    assert again.get("a", VIDEO, prompt + "y") is None


def test_a_video_that_cannot_be_judged_costs_no_other_a_score_and_no_gradient_is_kept() -> None:
    class Picky:
        name = "picky"

        def __init__(self) -> None:
            self.layer = torch.nn.Linear(1, 1)

        def __call__(self, video: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            if "" in prompts:
                raise UserError("picky: a prompt is empty")
            return self.layer(video.mean((1, 2, 3, 4))[:, None])[:, 0]

    member, video = Member(Picky()), VIDEO.repeat(2, 1, 1, 1, 1)
    whole, _, nothing = attempt(member, video, ["a", "b", "c", "d"])
    found, doubt, refusal = attempt(member, video, ["a", "b", "", "d"])
    assert found.isnan().tolist() == [False, False, True, False] and refusal == "picky: a prompt is empty"
    torch.testing.assert_close(found[[0, 1, 3]], whole[[0, 1, 3]])
    assert not whole.requires_grad and not nothing and not doubt.any()


def test_videos_that_do_not_fit_together_are_judged_one_by_one_and_one_that_never_fits_says_what_to_do() -> None:
    class Hungry:
        name = "hungry"

        def __init__(self, most: int) -> None:
            self.most = most

        def __call__(self, video: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            if len(video) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return video.mean((1, 2, 3, 4))

    found, _, refusal = attempt(Member(Hungry(1)), VIDEO, ["a", "b"])
    torch.testing.assert_close(found, VIDEO.mean((1, 2, 3, 4)))
    assert not refusal
    found, _, refusal = attempt(Member(Hungry(0)), VIDEO, ["a", "b"])
    assert found.isnan().all() and "hungry: out of memory on " in refusal and "see fewer frames" in refusal


@pytest.mark.parametrize("returned", ["torch.ones(2)", "None", "(torch.ones(2),)"])
def test_doubt_comes_beside_the_scores_or_not_at_all(returned: str, tmp_path: Path) -> None:
    body = f"""{HEAD}    def __call__(self, video, prompts):
        return torch.ones(2)
    def judge(self, video, prompts):
        return {returned}
"""
    mine = load_custom(written(tmp_path, body))
    assert "judge returned" in attempt(Member(mine), VIDEO, ["a", "b"])[2]


def test_a_judge_method_is_called_like_the_reward(tmp_path: Path) -> None:
    body = f"{HEAD}    def __call__(self, video, prompts): ...\n    def judge(self, video): ...\n"
    with pytest.raises(UserError, match=r"its judge is called with \(video, prompts\)"):
        load_custom(written(tmp_path, body))


def test_a_reward_is_another_when_its_settings_or_its_code_are(tmp_path: Path) -> None:
    spec = written(tmp_path, HEAD)
    plain = identity(RewardSettings(name=spec))
    assert plain == identity(RewardSettings(name=spec, weight=3.0, role="judge"))
    assert plain != identity(RewardSettings(name=spec, frames=3))
    assert plain != identity(RewardSettings(name=spec), fps=30.0)
    written(tmp_path, HEAD + "# another\n")
    assert plain != identity(RewardSettings(name=spec))
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("Is it good?", encoding="utf-8")
    asked = RewardSettings(name="server", server=ServerSettings(url="http://x/v1", model="m", rubric=rubric))
    plain = identity(asked)
    rubric.write_text("Is it very good?", encoding="utf-8")
    assert plain != identity(asked)


def test_what_is_no_cache_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 4096, encoding="utf-8")
    with pytest.raises(UserError, match="not a cache of scores"):
        ScoreCache(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "x" * 4096


ARGUED = """
import torch
from pathlib import Path
class Mine:
    name = "mine"
    def __init__(self, threshold: float, word: str = "a", count: int | None = None, place: Path = Path("."), any=None):
        self.given = threshold, word, count, place, any
    def __call__(self, video, prompts):
        return torch.ones(len(video))
"""


def test_its_arguments_come_as_its_class_says(tmp_path: Path) -> None:
    spec = written(tmp_path, ARGUED)
    cases: list[tuple[dict[str, Plain], tuple[Any, ...]]] = [
        ({"threshold": 0.3}, (0.3, "a", None, Path("."), None)),
        ({"threshold": "1e-4", "word": "b", "count": 3}, (1e-4, "b", 3, Path("."), None)),
        ({"threshold": 1, "place": "/a", "any": True}, (1.0, "a", None, Path("/a"), True)),
    ]
    for args, expected in cases:
        found = load_custom(spec, args).reward.given  # type: ignore[attr-defined]
        assert found == expected and [type(value) for value in found] == [type(value) for value in expected]
    assert Opening().reward(parse_spec(f"{spec},args.threshold=0.3,args.count=7")).name == "mine"
    one, other = (identity(parse_spec(f"{spec},args.threshold={number}")) for number in (0.3, 0.4))
    assert one != other


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "made with threshold, which is not given: write args.threshold=VALUE; its arguments: threshold: float,"),
        (
            {"thresold": 1.0},
            "unknown argument thresold; did you mean threshold.* its arguments: threshold: float, word",
        ),
        ({"threshold": "much"}, "args.threshold=much: expected a number$"),
        ({"threshold": True}, "args.threshold=true: expected a number$"),
        ({"threshold": None}, "args.threshold=none: expected a number$"),
        ({"threshold": 1.0, "count": 0.5}, "args.count=0.5: expected a whole number or none$"),
        ({"threshold": 1.0, "word": 7}, """args.word=7: expected text; in quotes .* is text: '"7"'$"""),
        ({"threshold": 1.0, "self": 7}, "unknown argument self"),
    ],
)
def test_arguments_that_its_class_does_not_take_are_refused_before_it_is_made(
    args: dict[str, Plain], said: str, tmp_path: Path
) -> None:
    made = ARGUED.replace("self.given =", "raise SystemError('it was made')\n        self.given =")
    with pytest.raises(UserError, match=said):
        load_custom(written(tmp_path, made), args)


def test_one_that_takes_anything_is_given_anything_and_one_that_takes_nothing_says_so(tmp_path: Path) -> None:
    body = f"{HEAD}    def __init__(self, **given): self.given = given\n    def __call__(self, v, p): ...\n"
    assert load_custom(written(tmp_path, body), {"a": 1}).reward.given == {"a": 1}  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="unknown argument a; its arguments: none"):
        load_custom(written(tmp_path, f"{HEAD}    def __call__(self, v, p): ...\n"), {"a": 1})


def test_the_line_that_is_named_is_the_users_innermost(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import importlib.util\n"
        f"found = importlib.util.spec_from_file_location('beside', {str(tmp_path / 'beside.py')!r})\n"
        "beside = importlib.util.module_from_spec(found)\nfound.loader.exec_module(beside)\n",
        encoding="utf-8",
    )
    (tmp_path / "beside.py").write_text("import json\n\njson.loads('{')\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"JSONDecodeError: .* \(beside\.py, line 3\)$"):
        load_custom(f"{tmp_path / 'mine.py'}:Mine")
    (tmp_path / "beside.py").write_text("\n\ndef f(:\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"SyntaxError: invalid syntax \(beside\.py, line 3\)$"):
        load_custom(f"{tmp_path / 'mine.py'}:Mine")


def test_a_package_of_ones_own_is_named_by_its_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judges_of_ours").mkdir()
    (tmp_path / "judges_of_ours" / "red.py").write_text("\nimport json\njson.loads('{')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"JSONDecodeError: .* \(red\.py, line 3\)$"):
        load_custom("judges_of_ours.red:Mine")


def test_a_home_is_written_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, f"{HEAD}    def __call__(self, v, p): ...\n")
    assert load_custom("~/mine.py:Mine").name == "mine" and "your own" in look_at(RewardSettings(name="~/mine.py:Mine"))
    assert whole(RewardSettings(name="~/mine.py:Mine")).name == f"{tmp_path / 'mine.py'}:Mine"


def test_a_file_that_is_kept_from_us_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = written(tmp_path, HEAD)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)
    for look in (lambda: look_at(RewardSettings(name=spec)), lambda: load_custom(spec)):
        with pytest.raises(UserError, match=r"mine\.py: permission denied"):
            look()
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        write_template("Redness", tmp_path / "redness.py")
