"""The disk that checkpoints take is known before the first step."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from astrolabe.experiment import TrainConfig
from astrolabe.models.released import released
from astrolabe.models.settings import ReleasedSettings
from astrolabe.recipes.shapes import shapes_tiny
from astrolabe.recipes.wan import longlive
from astrolabe.rollout.settings import WindowSettings
from astrolabe.runs import disk
from astrolabe.runs.disk import check_disk, checkpoint_bytes, decoder_bytes
from astrolabe.runs.folder import RunFolder
from astrolabe.runtime.errors import UserError
from astrolabe.shapes.settings import WAN
from astrolabe.training import train

Usage = namedtuple("Usage", "total used free")
STREAMS = WindowSettings(frames=6, per_stream=3)


@pytest.mark.parametrize("window", [WindowSettings(frames=6), replace(STREAMS, credit=0.5)], ids=["clips", "streams"])
def test_a_checkpoint_takes_what_was_said(window: WindowSettings, tmp_path: Path) -> None:
    cfg = replace(shapes_tiny(), steps=2, window=window, model=replace(shapes_tiny().model, dtype="float32"))
    run = train(cfg, tmp_path / "run")
    largest = max(file.stat().st_size for file in run.glob("checkpoints/step_*/state.safetensors"))
    assert 0.9 * largest < checkpoint_bytes(cfg, WAN) < 1.25 * largest


def test_what_a_decoder_carries_is_counted_without_running_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import AutoencoderKLWan

    from astrolabe.models.wan.vae import WanVAE

    monkeypatch.setattr(disk, "WAN_VAE_WIDTH", 8)
    codec = WanVAE(AutoencoderKLWan(base_dim=8))
    _, state = codec.decode(torch.randn(1, 3, 16, 6, 8))
    carried = sum(tensor.nbytes for name, tensor in codec.pack(state).items() if name != "kinds")
    assert decoder_bytes(ReleasedSettings(name="self-forcing", height=48, width=64, dtype="float32")) == carried


def test_in_the_middle_of_a_stream_every_prompt_has_its_cache_and_its_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "decoder_bytes", lambda model: 1000)
    model = ReleasedSettings(name="longlive", dtype="bfloat16", device="cpu")
    clips = replace(longlive(), model=model, window=WindowSettings(frames=21))
    streams = replace(clips, window=WindowSettings(frames=21, per_stream=2))
    wan, layers, window, tokens, dim = released("longlive").wan, 30, 12, 30 * 52, 1536
    one = 2 * layers * window * tokens * dim * 2 + 1000  # keys and values of the frames that are visible, in 2 bytes
    assert checkpoint_bytes(streams, wan) - checkpoint_bytes(clips, wan) == clips.rollout.prompts * one


def free(monkeypatch: pytest.MonkeyPatch, count: float) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda place: Usage(10**15, 0, int(count)))


@pytest.mark.parametrize(("kept", "there", "needed"), [(2, 0, 3), (2, 1, 2), (2, 2, 1), (2, 9, 1), (1, 0, 2)])
def test_there_must_be_room_for_the_checkpoints_to_come(
    kept: int, there: int, needed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg: TrainConfig = replace(shapes_tiny(), checkpoints_kept=kept)
    for step in range(there):
        (tmp_path / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
    one = checkpoint_bytes(cfg, WAN)
    free(monkeypatch, needed * one)
    check_disk(cfg, WAN, RunFolder(tmp_path))
    free(monkeypatch, needed * one - 1)
    with pytest.raises(UserError, match=f"are needed at {tmp_path} for checkpoints of .* each, {kept + 1} at once"):
        check_disk(cfg, WAN, RunFolder(tmp_path))


def test_a_full_disk_stops_a_run_before_its_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 1000)
    with pytest.raises(UserError, match="are free; name another --out or lower checkpoints_kept"):
        train(shapes_tiny(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
