"""The table of released models, and where their files are found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args
from unittest.mock import MagicMock

import pytest
import torch
from huggingface_hub import errors

from astrolabe.models.hub import find_file
from astrolabe.models.released import PARAMETERS, RELEASED, released, table
from astrolabe.models.settings import ReleasedName, ReleasedSettings
from astrolabe.models.text_cache import TextCache
from astrolabe.models.wan.transformer import CausalWan
from astrolabe.runtime.errors import UserError


def test_the_table_has_the_released_families() -> None:
    assert {row["name"] for row in table()} == set(RELEASED) and len(RELEASED) == 7
    assert [released("longlive").stream.window_frames, released("longlive").stream.sink_frames] == [12, 3]
    assert released("causal-forcing-framewise").stream.chunk_frames == 1
    two = released("causal-forcing-2step").stream
    assert [len(two.levels_of(chunk)) for chunk in (0, 1, 7)] == [4, 2, 2]


@pytest.mark.parametrize("wan", PARAMETERS, ids=["1.3B", "14B"])
def test_the_networks_have_the_published_size(wan: object) -> None:
    with torch.device("meta"):
        network = CausalWan(wan)  # type: ignore[arg-type]
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == pytest.approx(PARAMETERS[wan], rel=1e-3)  # type: ignore[index]
    assert len(network.state_dict()) == {30: 825, 40: 1095}[wan.num_layers]  # type: ignore[attr-defined]


def test_the_caches_have_the_published_sizes() -> None:
    assert released("self-forcing").cache_bytes(5.0625) == pytest.approx(6.0e9, rel=0.01)
    assert released("krea-realtime-14b").cache_bytes(5.0625) == pytest.approx(26.8e9, rel=0.01)
    assert released("longlive").cache_bytes(600.0) == pytest.approx(3.45e9, rel=0.01)


def test_an_unknown_model_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean self-forcing"):
        released("self-forcin")


def test_a_file_is_found_in_a_folder_at_its_place_or_at_the_top(tmp_path: Path) -> None:
    nested = tmp_path / "a" / "checkpoints" / "model.pt"
    nested.parent.mkdir(parents=True)
    nested.touch()
    (tmp_path / "model.pt").touch()
    assert find_file(str(tmp_path / "a"), "owner/name", "checkpoints/model.pt") == nested
    assert find_file(str(tmp_path), "owner/name", "checkpoints/model.pt") == tmp_path / "model.pt"
    assert find_file(str(nested), "owner/name", "other.pt") == nested


@pytest.mark.parametrize(
    "source, asked",
    [
        ("", "owner/name"),
        ("owner/other", "owner/other"),
        ("Wan-AI/Wan2.1-T2V-1.3B", "Wan-AI/Wan2.1-T2V-1.3B"),
        ("Efficient-Large-Model/LongLive-1.3B", "Efficient-Large-Model/LongLive-1.3B"),
        ("hf:me/mine.v2", "me/mine.v2"),
        ("hf://me/mine", "me/mine"),
    ],
)
def test_the_hub_is_asked_for_ids_of_known_owners_and_for_those_that_are_marked(
    source: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"{asked}/model.pt: cannot be downloaded: HF_HUB_OFFLINE=1 forbids it"):
        find_file(source, "owner/name", "model.pt")


@pytest.mark.parametrize(
    "source",
    ["models/mine", "runs/a/b", "./a", "../a/b", "/a/b", "~/a", "a", "a.pt", "a/b.pt", "a b/c", "a\\b/c"],
)
def test_a_path_never_leaves_the_machine(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*words: object, **options: object) -> None:
        raise AssertionError(f"the hub was asked for {words}")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", asked)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no such file or folder.*not a hub id \(hf:owner/name\)") as caught:
        find_file(source, "owner/name", "model.pt")
    assert ("write hf:models/mine" in str(caught.value)) == (source == "models/mine")


def test_a_home_is_written_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model.pt").touch()
    for source in ("~/model.pt", "~"):
        assert find_file(source, "owner/name", "model.pt") == tmp_path / "model.pt"
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "encoder.json").write_text('{"encoder": "e", "dim": 3}')
    assert TextCache.open("~/text").folder == tmp_path / "text"
    with pytest.raises(UserError, match="no user of that name has a home folder here"):
        find_file("~nobody-at-all/model.pt", "owner/name", "model.pt")


def test_a_folder_may_have_shards_where_one_file_is_expected(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.touch()
    assert find_file(str(tmp_path), "owner/name", "model.pt", shards=True) == index
    with pytest.raises(UserError, match=r"has neither model\.pt"):
        find_file(str(tmp_path), "owner/name", "model.pt")


def test_what_the_hub_refuses_is_one_true_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = MagicMock(headers={})
    for error, said in (
        (errors.GatedRepoError("x", response=answer), r"licence is accepted at https://huggingface\.co/owner/name"),
        (errors.RepositoryNotFoundError("x", response=answer), "no such repository, or it is private"),
        (errors.RemoteEntryNotFoundError("x", response=answer), "the repository has no such file"),
        (OSError("no route"), r"cannot be downloaded \(no route\)"),
    ):
        monkeypatch.setattr("huggingface_hub.hf_hub_download", MagicMock(side_effect=error))
        with pytest.raises(UserError, match=f"owner/name/model.pt: .*{said}") as caught:
            find_file("", "owner/name", "model.pt")
        assert "\n" not in str(caught.value)


def test_without_a_home_the_hub_has_no_cache_and_that_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "~/.cache/huggingface/hub")
    for fetch in (True, False):
        with pytest.raises(UserError, match=r"has no home, .* HF_HOME"):
            find_file("", "owner/name", "model.pt", fetch)


def test_what_is_not_there_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"has neither checkpoints/model\.pt nor model\.pt"):
        find_file(str(tmp_path), "owner/name", "checkpoints/model.pt")
    with pytest.raises(UserError, match="no such file or folder"):
        find_file(str(tmp_path / "absent.pt"), "owner/name", "model.pt")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"owner/name/model\.pt: cannot be downloaded"):
        find_file("", "owner/name", "model.pt")


def test_settings_change_how_a_model_streams_and_nothing_else() -> None:
    assert set(get_args(ReleasedName)) == set(RELEASED)
    own = released("longlive").stream
    assert ReleasedSettings(name="longlive").stream == own
    changed = ReleasedSettings(name="longlive", window_frames=21, sink_frames=0, positions="relative").stream
    assert changed == replace(own, window_frames=21, sink_frames=0, positions="relative")
    assert ReleasedSettings(name="longlive", window_frames=0).stream.window_frames is None
    krea = ReleasedSettings(name="krea-realtime-14b", rebuild_frames=3).stream
    assert krea.rebuild_frames == 3 and krea.levels.tolist() == own.levels.tolist()
    with pytest.raises(UserError, match="sink_frames"):
        _ = ReleasedSettings(name="longlive", rebuild_frames=3).stream
