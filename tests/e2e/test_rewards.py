"""``astrolabe rewards``, and training on a reward of one's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from astrolabe import training
from astrolabe.cli import main
from astrolabe.recipes.shapes import shapes_tiny
from astrolabe.rewards.settings import KNOWN, RewardSettings
from astrolabe.rl.settings import GuardSettings, WatchSettings
from astrolabe.rollout.settings import WindowSettings
from astrolabe.runtime.checkpoint import load_tensors
from astrolabe.runtime.config import save_yaml
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.video import write_mp4
from astrolabe.training import train
from tests.e2e.test_commands import fails

PROMPTS = ("a red circle", "a blue square", "a green cross", "a cat")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``astrolabe generate`` leaves it, with a file that is no video."""
    folder = tmp_path_factory.mktemp("videos")
    lines = []
    for number, prompt in enumerate(PROMPTS):
        video = torch.rand(5, 3, 32, 48, generator=torch.Generator().manual_seed(number)) * (number + 1) / 4
        write_mp4(folder / f"{number:04d}.mp4", video, 16)
        lines.append(json.dumps({"file": f"{number:04d}.mp4", "prompt": prompt}))
    (folder / "0004.mp4").write_text("no video", encoding="utf-8")
    lines.append(json.dumps({"file": "0004.mp4", "prompt": "nothing"}))
    (folder / "videos.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_rewards_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    main(["rewards", "list"])
    said = capsys.readouterr().out
    assert all(name in said for name in KNOWN) and "MizzenAI/HPSv3" in said


def test_a_new_reward_passes_its_own_check_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["rewards", "new", "Redness"])
    assert "redness.py:Redness" in capsys.readouterr().out
    main(["rewards", "check", "redness.py:Redness"])
    assert "NO" not in capsys.readouterr().out
    mine, guard = "redness.py:Redness", GuardSettings(watch="redness.py:Redness", drop=0.9)
    rewards = (RewardSettings(name="joint"), RewardSettings(name=mine, role="judge"))
    save_yaml(replace(shapes_tiny(), rewards=rewards, watch=WatchSettings(guards=(guard,))), tmp_path / "mine.yaml")
    main(["train", "mine.yaml", "--trust-code", "--out", "run"])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 and {"reward/redness", "watch/redness", "judgement"} <= json.loads(lines[0]).keys()


def test_code_that_a_config_brings_is_not_run_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("open('ran', 'w')\nclass Bad: ...\n", encoding="utf-8")
    save_yaml(replace(shapes_tiny(), rewards=(RewardSettings(name="bad.py:Bad"),)), tmp_path / "mine.yaml")
    assert "names what is to be trusted: code to run, bad.py:Bad" in fails(
        ["train", "mine.yaml", "--out", "run"], capsys
    )
    assert not (tmp_path / "ran").exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rewards": [{"name": "joint", "worker": {"packages": ["a_stranger"]}}]}, "packages to install, a_stranger"),
        ({"rewards": [{"name": "server", "server": {"url": "http://a.stranger/v1", "model": "m", "rubric": "/etc/hosts",
                                                    "key": "/root/key"}}]},
         "files to send to http://a.stranger/v1, /etc/hosts /root/key"),
        ({"pool": {"backend": "ray", "address": "a.stranger:6379"}}, "a cluster to work on, a.stranger:6379"),
    ],
)  # fmt: skip
def test_nothing_is_installed_sent_or_joined_because_a_config_says_so(
    fields: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_yaml(shapes_tiny(), tmp_path / "theirs.yaml")
    cfg = yaml.safe_load((tmp_path / "theirs.yaml").read_text(encoding="utf-8")) | fields
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(cfg), encoding="utf-8")
    assert said in fails(["train", str(tmp_path / "theirs.yaml"), "--out", str(tmp_path / "run")], capsys)


def test_a_reward_that_breaks_the_rules_is_told_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "odd.py").write_text(
        "import torch\nclass Odd:\n    name = 'odd'\n    def __call__(self, video, prompts):\n"
        "        video.mul_(0.5)\n        return torch.rand(len(video)) + torch.arange(len(video))\n", encoding="utf-8"
    )  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main(["rewards", "check", f"{tmp_path / 'odd.py'}:Odd"])
    out = capsys.readouterr().out
    assert stop.value.code == 1
    for rule in ("leaves its input alone", "repeats itself", "judges each video alone"):
        assert any(line.split()[0] == "NO" for line in out.splitlines() if rule in line), rule


def test_files_are_scored_one_by_one_and_a_bad_one_is_named(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["rewards", "score", "pixel_saturation", str(videos), "--cache", str(tmp_path / "scores")])
    out, err = capsys.readouterr()
    assert stop.value.code == 1 and "1 of 5 could not be judged" in err
    scores = [float(line.split()[0]) for line in out.splitlines()[:4]]
    assert scores == sorted(scores) and "0004.mp4: neither an image nor a video" in out
    main(["rewards", "score", "pixel_saturation", str(videos / "0001.mp4"), "--cache", str(tmp_path / "scores")])
    assert float(capsys.readouterr().out.split()[0]) == scores[1]


def test_a_file_too_short_for_a_reward_costs_no_other(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mp4(tmp_path / "one.mp4", torch.rand(1, 3, 32, 48), 16)
    files = [str(tmp_path / "one.mp4"), str(videos / "0001.mp4")]
    for name in ("pixel_seamlessness", "flow_smoothness", "pixel_motion"):
        with pytest.raises(SystemExit):
            main(["rewards", "score", name, *files])
        out = capsys.readouterr().out.splitlines()
        assert f"{name}: videos of 1 frames came; it looks at" in out[0] and float(out[1].split()[0]) < 9


def test_two_rewards_are_compared_by_rank(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    main(["rewards", "correlate", "pixel_saturation", "pixel_saturation,frames=2", "--videos", str(videos),
          "--out", str(out)])  # fmt: skip
    said, err = capsys.readouterr()
    assert said.startswith("rank correlation 1.000 [") and "over 4 videos" in said and "left out: 0004.mp4" in err
    assert "pixel_saturation,frames=2" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("check", "hspv3"), "did you mean hpsv3"),
        (("score", "joint,frames", "x.mp4"), "'frames' is no setting; write NAME,frames=8"),
        (("score", "hpsv3,model.best_share=2", "x.mp4"), "best_share"),
        (("correlate", "joint", "shape", "--videos", "nowhere"), "no videos there"),
        (("score", "server,server.url=http://x/v1", "x.mp4"), "needs server.model, server.rubric"),
        (("score", "clipscore,model.device=gpu", "x.mp4"), "reward clipscore: model.device=gpu: not usable here"),
        (("new", "two words"), "is no name for a class"),
        (("new", "class"), "is no name for a class"),
        (("check", "mine.py"), "'mine.py' is a file; name its class too: mine.py:Class"),
        (("score", "pixel_seamlessness", "x.mp4", "--chunk-frames", "0"), "--chunk-frames 0: a chunk has one"),
        (("score", "pixel_motion"), "required"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert said in fails(["rewards", *words], capsys)


@pytest.mark.parametrize("streams", [False, True])
def test_a_run_that_a_reward_stopped_goes_on_with_the_same_bytes(
    streams: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flaky.py").write_text(
        "import pathlib\nclass Flaky:\n    name = 'flaky'\n    calls = 0\n"
        "    def __call__(self, video, prompts):\n        Flaky.calls += 1\n"
        f"        broken = pathlib.Path({str(tmp_path / 'broken')!r}).exists()\n"
        "        if Flaky.calls > 4 and broken: raise ValueError('tired')\n"
        "        return video.mean((1, 2, 3, 4))\n", encoding="utf-8"
    )  # fmt: skip
    window = WindowSettings(frames=6, video_frames=18, per_stream=3) if streams else WindowSettings(frames=6)
    rewards = (RewardSettings(name=f"{tmp_path / 'flaky.py'}:Flaky"),)
    cfg = replace(shapes_tiny(), steps=4, checkpoint_every=9, window=window, rewards=rewards)
    whole = train(cfg, tmp_path / "whole")
    (tmp_path / "broken").touch()
    with pytest.raises(
        UserError,
        match=r"step 3: 4 of 4 samples got no .*ValueError: tired \(flaky\.py, line 8\); .* the same command goes",
    ):
        train(cfg, tmp_path / "parts")
    (tmp_path / "broken").unlink()
    parts = training.train(cfg, tmp_path / "parts")
    one, other = (load_tensors(folder / "adapter.safetensors")[0] for folder in (whole, parts))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("body", "rule", "said"),
    [
        ("torch.full((len(video),), 1e3) + 1e-4 * torch.rand(len(video))", "range", "scores are alike"),
        ("torch.ones(len(video)) + 1e-9 * video.mean((1, 2, 3, 4)).double()", "range", "scores are alike"),
        ("video.mean((1, 2, 3, 4)) / (len(video) > 1 or 1 / 0)", "judges each", "division by zero (mine.py, line 5)"),
        ("video @ prompts", "scores", "TypeError: unsupported operand type(s) for @: 'Tensor' and 'list' (mine.py, l"),
    ],
)
def test_a_reward_that_would_teach_nothing_or_fail_later_is_found_by_checking(
    body: str, rule: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "a, b=c" / "mine.py"
    own.parent.mkdir()
    head = "import torch\nclass Mine:\n    name = 'mine'\n    def __call__(self, video, prompts):\n"
    own.write_text(f"{head}        return {body}\n", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main(["rewards", "check", f"{own}:Mine"])
    out = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 1 and f"NO {rule}" in out and said in out
