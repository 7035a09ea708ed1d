"""The causal Wan, its text encoder and its VAE compute what the released systems compute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.golden import replay

FILES = sorted(Path(__file__).parent.glob("*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_files_replay_within_tolerance(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main([str(path)]) == 0
    assert float(capsys.readouterr().out.split()[-1]) <= 2e-5


def test_a_changed_weight_is_noticed(tmp_path: Path) -> None:
    path = next(path for path in FILES if path.stem == "stream_global_chunk3")
    config, tensors = replay.read(str(path))
    tensors["weights.blocks.1.ffn.0.weight"] = tensors["weights.blocks.1.ffn.0.weight"] * 1.05
    save_file(tensors, tmp_path / "changed.safetensors", metadata={"config": json.dumps(config)})
    assert replay.main([str(tmp_path / "changed.safetensors")]) == 1


def test_every_kind_of_golden_file_is_covered() -> None:
    assert {path.stem for path in FILES} == {
        "stream_global_chunk3", "stream_local_sink", "stream_framewise", "stream_relative_rope",
        "forward_teacher_forced", "forward_block_causal", "umt5_encoder", "wan_vae",
    }  # fmt: skip
