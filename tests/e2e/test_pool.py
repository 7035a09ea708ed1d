"""Rewards on Ray: the same scores, whatever happens to the workers."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from astrolabe.experiment import TrainConfig
from astrolabe.recipes.shapes import shapes_tiny
from astrolabe.rewards.base import Member, Scorer
from astrolabe.rewards.opening import Opening
from astrolabe.rewards.pool import Batch, Crew, Pool, check_gpus
from astrolabe.rewards.settings import PoolSettings, RewardSettings, WorkerSettings
from astrolabe.runtime.checkpoint import load_tensors
from astrolabe.runtime.errors import UserError
from astrolabe.shapes.captions import caption, split
from astrolabe.shapes.world import render
from astrolabe.training import train
from astrolabe.types import Footage, to_frames
from astrolabe.words import Span

RAY = PoolSettings(backend="ray", threads=1)
# Dies as often as the file says, and only on videos of its own.
DEADLY = """
import os, pathlib
class Deadly:
    name = "deadly"
    def __call__(self, video, prompts):
        left = pathlib.Path({left!r})
        if left.exists() and any("cross" in prompt for prompt in prompts):
            lives = int(left.read_text())
            left.write_text(str(lives - 1)) if lives > 1 else left.unlink()
            os._exit(1)
        return video.mean((1, 2, 3, 4)) + video[:, 0].amax((1, 2, 3))
"""

OWN_PACKAGE = """
import torch
import measure
class Versioned:
    name = "{name}"
    def __call__(self, video, prompts):
        return torch.full((len(video),), measure.VERSION)
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the workers have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def deadly(folder: Path, lives: int) -> RewardSettings:
    """A reward that kills its worker so many times."""
    left = folder / "left"
    left.write_text(str(lives), encoding="utf-8")
    (folder / "deadly.py").write_text(DEADLY.format(left=str(left)), encoding="utf-8")
    return RewardSettings(name=f"{folder / 'deadly.py'}:Deadly", worker=WorkerSettings(replicas=2))


def footage() -> list[Footage]:
    """Twelve videos in two parts, the second with another share."""
    scenes = split("train")[::7][:12]
    frames = to_frames(render(scenes, 13, torch.Generator().manual_seed(0)))
    captions = [caption(scene, 0) for scene in scenes]
    even: dict[Span, float] = {"clip": 1.0, "video": 1.0, "mixed": 1.0}
    little: dict[Span, float] = {"clip": 0.0, "video": 0.3, "mixed": 0.3}
    return [
        Footage(torch.arange(10), frames[:10], tuple(captions[:10]), even),
        Footage(torch.tensor([11, 10]), frames[10:], tuple(captions[10:]), even),
        Footage(torch.tensor([3]), frames[5:6], tuple(captions[5:6]), little),
    ]


def seen(scorer: Scorer, dropped: float = 0.0) -> torch.Tensor:
    """The scores of the footage."""
    for part in footage():
        scorer.see(part)
    return scorer.scores(torch.zeros(12, 1, 1, 1, 1), dropped).values


def test_scores_are_those_of_no_pool_though_workers_die(tmp_path: Path) -> None:
    rewards = [RewardSettings(name=name) for name in ("joint", "motion_fit", "pixel_motion")]
    rewards += [RewardSettings(name="shape_fit", frames=9), deadly(tmp_path, lives=2)]
    with closing(Pool(RAY, rewards, Opening())) as pool:
        assert [member.reward.name for member in pool.suite] == ["joint", "motion_fit", "pixel_motion", "shape_fit",
                                                                 "deadly"]  # fmt: skip
        assert [len(crew.rewards) for crew in pool.crews] == [3, 1, 1]  # oracles live together
        found = seen(pool.scorer(12))
        assert not (tmp_path / "left").exists()
        opening = Opening()
        inline = Scorer([Member(opening.reward(r), r.weight, r.role, r.span, r.frames) for r in rewards], 12)
        assert torch.equal(found, seen(inline))
        # What kills every worker has no score, and nobody else is the worse for it.
        deadly(tmp_path, lives=99)
        scorer = pool.scorer(12)
        broken = seen(scorer, 0.99)
        lost = broken[:, 4].isnan()
        assert lost.any() and not lost.all() and torch.equal(broken[:, :4], found[:, :4])
        assert torch.equal(broken[~lost, 4], found[~lost, 4])
        assert "its worker died 3 times on" in scorer.refusals["deadly"]


def wheel(folder: Path, version: str) -> Path:
    """A package that pip installs without asking anybody."""
    path, about = folder / f"measure-{version}-py3-none-any.whl", f"measure-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as pack:
        pack.writestr("measure.py", f"VERSION = {version}")
        pack.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: measure\nVersion: {version}\n")
        pack.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: here\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        pack.writestr(f"{about}/RECORD", "")
    return path


def test_rewards_may_need_two_versions_of_a_package(tmp_path: Path) -> None:
    rewards = []
    for version in ("1.5", "2.5"):
        own = tmp_path / f"own{version[0]}.py"
        own.write_text(OWN_PACKAGE.format(name=own.stem), encoding="utf-8")
        worker = WorkerSettings(packages=(str(wheel(tmp_path, version)),))
        rewards.append(RewardSettings(name=f"{own}:Versioned", worker=worker))
    with closing(Pool(RAY, rewards, Opening())) as pool:
        assert seen(pool.scorer(12))[0].tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("size", "said"),
    [(None, r"no such file as .*mine\.py$"), (0, r"ZeroDivisionError: division by zero \(mine\.py, line 4\)$")],
)
def test_a_worker_that_cannot_start_is_one_sentence(size: int | None, said: str, tmp_path: Path) -> None:
    own = tmp_path / "a, b=c" / "mine.py"
    if size is not None:
        own.parent.mkdir()
        own.write_text("class Mine:\n    name = 'mine'\n    def __init__(self, size: int):\n        1 / size\n")
    with pytest.raises(UserError, match=rf"a worker of .*mine\.py:Mine did not start: .*{said}"):
        Pool(RAY, [RewardSettings(name=f"{own}:Mine", args={} if size is None else {"size": size})], Opening())


def test_training_goes_on_as_if_no_worker_had_been_killed(tmp_path: Path) -> None:
    def config(folder: Path, lives: int, pool: PoolSettings) -> TrainConfig:
        folder.mkdir()
        rewards = (RewardSettings(name="motion_fit"), deadly(folder, lives))
        return replace(shapes_tiny(), prompts=str(prompts), rewards=rewards, pool=pool)

    crosses = [caption(scene, 0) for scene in split("train") if scene.shape == "cross"]
    prompts = tmp_path / "crosses.txt"
    prompts.write_text("\n".join(crosses), encoding="utf-8")

    whole = config(tmp_path / "a", 1, PoolSettings())
    (tmp_path / "a" / "left").unlink()
    one = train(whole, tmp_path / "inline")
    other = train(config(tmp_path / "b", 2, RAY), tmp_path / "ray")
    assert not (tmp_path / "b" / "left").exists()  # it was killed, twice
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)]
    for mine, theirs in zip(*lines, strict=True):
        assert {k: v for k, v in mine.items() if not k.startswith("seconds/")} == {
            k: v for k, v in theirs.items() if not k.startswith("seconds/")
        }
    adapters = [load_tensors(run / "adapter.safetensors")[0] for run in (one, other)]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


class Error(Exception):
    """Of the Ray that only pretends."""


class Died(Error): ...


class Unavailable(Error): ...


class Late(Error): ...


class Broken(Error): ...


@pytest.mark.parametrize(
    ("happens", "said", "killed"),
    [
        ([Died(), Unavailable(), Died()], "its worker died and cannot be started again", 0),
        ([Died(), None, Late(), None, Error("no memory"), None], "its worker died 3 times on 2 videos", 1),
        ([Broken("Traceback\n  somewhere\nKeyError: 'x'")], "joint: KeyError: 'x'", 0),
    ],
)
def test_whatever_becomes_of_a_worker_its_batch_has_no_score_and_the_run_goes_on(
    happens: list[Exception | None], said: str, killed: int
) -> None:
    answers, kills = iter(happens), []

    def get(asked: object, timeout: float) -> None:
        if error := next(answers):
            raise error

    errors = {"RayError": Error, "ActorUnavailableError": Unavailable, "GetTimeoutError": Late, "RayTaskError": Broken}
    ray = SimpleNamespace(get=get, kill=lambda *_, **__: kills.append(1), exceptions=SimpleNamespace(**errors))
    crew = Crew.__new__(Crew)
    crew.ray, crew.rewards, crew.timeout = ray, [RewardSettings(name="joint")], 9.0
    method = SimpleNamespace(remote=lambda *_: None)
    batch = Batch(None, 0, 2, ["a", "b"], [0], Future())
    ((found, doubt, refusal),) = crew._judge(SimpleNamespace(names=method, judge=method), batch)
    assert said in refusal and found.isnan().all() and len(found) == 2 and not doubt.any() and len(kills) == killed
    assert next(answers, "all") == "all"


def test_gpus_that_are_not_there_are_one_sentence() -> None:
    ray = SimpleNamespace(cluster_resources=lambda: {"CPU": 2.0, "GPU": 1.0})
    check_gpus(ray, [WorkerSettings(gpus=0.5), WorkerSettings(gpus=0.25, replicas=2)])
    with pytest.raises(UserError, match=r"ask for 2 GPUs in all .* and Ray has 1"):
        check_gpus(ray, [WorkerSettings(gpus=1, replicas=2)])
