"""Rewards of a user's own: found, checked, and their failures told as sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astrolabe.rewards.base import Member, Scorer, ScoringError, UncertainReward, attempt, judged
from astrolabe.rewards.cache import ScoreCache, identity
from astrolabe.rewards.custom import load_custom, write_template
from astrolabe.rewards.server import ServerSettings
from astrolabe.rewards.settings import KNOWN, RewardModelSettings, RewardSettings
from astrolabe.runtime.errors import UserError
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
        (f"{HEAD}    def __init__(self, size): ...\n    def __call__(self, v, p): ...\n", "TypeError: .*size"),
        ("import nosuchmodule\n", "ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("class Mine\n", "SyntaxError"),
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
        ("1 / 0", r"mine\.py:Mine': ZeroDivisionError"),
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
