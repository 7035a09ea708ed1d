"""From names to reward models: their files found, checked before anything is read, opened once."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from astrolabe.judging import Judged, score_files
from astrolabe.rewards.cache import identity
from astrolabe.rewards.clip import AestheticLayers
from astrolabe.rewards.opening import RELEASED_REWARDS, Opening, look_at
from astrolabe.rewards.settings import MODELS, RewardModelSettings, RewardSettings
from astrolabe.rewards.videoalign import VideoAlignReward
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.video import write_mp4
from tests.rewards import tiny

PROMPTS = ["a cat", "a red fox that runs over snow"]
VIDEO = torch.rand(2, 5, 3, 40, 60, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RewardModelSettings]:
    """Folders as the hub has them, with tiny models; by reward."""
    home = tmp_path_factory.mktemp("models")
    base = home / "base"
    tokens = tiny.tokenizer()
    tokens.pad_token = "<|endoftext|>"
    tokens.save_pretrained(base)
    clip = tiny.clip_model()
    for folder in (base, home / "clip"):
        clip.save_pretrained(folder, safe_serialization=True)
    (home / "video").mkdir()
    tiny.write_videoalign(home / "video" / "model.pth")
    tiny.write_hpsv3(home / "HPSv3.safetensors")
    torch.save(AestheticLayers((24, 1024, 128, 64, 16, 1)).state_dict(), home / "aesthetic-model.pth")
    places = dict.fromkeys(MODELS, "video") | {"hpsv3": "HPSv3.safetensors", "clipscore": "clip", "pickscore": "clip"}
    return {
        name: RewardModelSettings(weights=str(home / place), base=str(base), device="cpu", dtype="float32")
        for name, place in places.items() if name not in ("hpsv2", "aesthetic")
    }  # fmt: skip


def test_every_reward_model_is_released_somewhere() -> None:
    assert set(RELEASED_REWARDS) == set(MODELS)


def test_models_are_opened_from_folders_and_score(models: dict[str, RewardModelSettings]) -> None:
    opening = Opening()
    for name, settings in models.items():
        reward = opening.reward(RewardSettings(name=name, model=settings))
        scores = reward(VIDEO, PROMPTS)
        assert reward.name == name and scores.shape == (2,) and scores.isfinite().all(), name


def test_dimensions_of_the_same_model_share_it(models: dict[str, RewardModelSettings]) -> None:
    opening = Opening()
    found = [opening.reward(RewardSettings(name=name, model=models[name])) for name in models if "videoalign" in name]
    assert len(found) == 3
    assert len({id(reward.judge_of_all) for reward in found if isinstance(reward, VideoAlignReward)}) == 1


def test_the_dtype_is_the_bodys_and_the_head_stays_exact(models: dict[str, RewardModelSettings]) -> None:
    settings = replace(models["hpsv3"], dtype="bfloat16")
    reward = Opening().reward(RewardSettings(name="hpsv3", model=settings))
    weights = {name: tensor.dtype for name, tensor in reward.scorer.named_parameters()}  # type: ignore[attr-defined]
    assert {dtype for name, dtype in weights.items() if name.startswith("rm_head")} == {torch.float32}
    assert {dtype for name, dtype in weights.items() if not name.startswith("rm_head")} == {torch.bfloat16}


def test_files_of_any_rate_are_seen_in_their_own_time_whatever_stands_beside_them(
    models: dict[str, RewardModelSettings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = torch.rand(16, 3, 40, 60, generator=torch.Generator().manual_seed(1))
    files = {"slow": 4, "as slow": 4, "fast": 8}
    for name, fps in files.items():
        write_mp4(tmp_path / f"{name}.mp4", video, fps)
    weights = models["videoalign_mq"]
    spec = f"videoalign_mq,model.weights={weights.weights},model.base={weights.base},model.device=cpu"

    def found(*names: str) -> list[Judged]:
        paths = [tmp_path / f"{name}.mp4" for name in names]
        return list(score_files(spec, paths, ["a cat"] * len(paths), cache=None))

    slow, again, fast = found("slow", "as slow", "fast")
    assert slow.score is not None and slow.score == again.score
    said = capsys.readouterr().err
    assert "slow.mp4 comes at 4 frames a second, and 2 more at other rates: seen at 16" in said
    assert found("fast")[0].score == fast.score != slow.score  # its 16 frames are two seconds, of which it sees fewer


def test_files_are_looked_at_without_reading_a_weight(
    models: dict[str, RewardModelSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr("astrolabe.runtime.tensorfile.Reader.read", never)
    for name, settings in models.items():
        assert "every tensor where it should be" in look_at(RewardSettings(name=name, model=settings))
    assert look_at(RewardSettings(name="joint")) == "built in"
    with pytest.raises(UserError, match=r"no such file as nowhere\.py"):
        look_at(RewardSettings(name="nowhere.py:Mine"))
    monkeypatch.undo()
    tensors = load_file(models["hpsv3"].weights)
    tensors.pop("rm_head.3.bias")
    save_file(tensors, tmp_path / "HPSv3.safetensors")
    broken = RewardModelSettings(weights=str(tmp_path), base=models["hpsv3"].base)
    with pytest.raises(UserError, match=r"1 missing: rm_head\.3\.bias"):
        look_at(RewardSettings(name="hpsv3", model=broken))


def test_what_is_missing_is_named_with_the_setting_that_says_where(tmp_path: Path) -> None:
    settings = RewardModelSettings(weights=str(tmp_path), base=str(tmp_path))
    with pytest.raises(UserError, match=r"reward hpsv3: .*has neither HPSv3\.safetensors.*model\.weights and"):
        Opening().reward(RewardSettings(name="hpsv3", model=settings))


def test_a_checkpoint_exchanged_in_its_folder_is_another_reward(
    models: dict[str, RewardModelSettings], tmp_path: Path
) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(Path(models["clipscore"].weights), folder)
    settings = RewardSettings(name="clipscore", model=replace(models["clipscore"], weights=str(folder)))
    before = identity(settings)
    assert before == identity(settings)
    os.utime(folder / "model.safetensors", (1, 1))
    assert before != identity(settings)


@pytest.mark.parametrize("config", ["[]", "{", '{"text_config": 3}', "{}"])
def test_a_configuration_that_is_none_is_one_sentence(
    config: str, models: dict[str, RewardModelSettings], tmp_path: Path
) -> None:
    shutil.copytree(Path(models["clipscore"].weights), tmp_path / "clip")
    (tmp_path / "clip" / "config.json").write_text(config, encoding="utf-8")
    broken = replace(models["clipscore"], weights=str(tmp_path / "clip"))
    with pytest.raises(UserError, match="not the configuration of a CLIP model"):
        Opening().reward(RewardSettings(name="clipscore", model=broken))


def test_a_tokenizer_that_is_none_is_one_sentence(models: dict[str, RewardModelSettings], tmp_path: Path) -> None:
    shutil.copytree(Path(models["clipscore"].base), tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("{}", encoding="utf-8")
    broken = replace(models["clipscore"], base=str(tmp_path / "base"))
    with pytest.raises(UserError, match=r"reward clipscore: .*no tokenizer"):
        Opening().reward(RewardSettings(name="clipscore", model=broken))
