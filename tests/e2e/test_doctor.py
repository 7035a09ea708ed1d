"""The doctor says what training would refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from astrolabe.cli import main
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import claimed
from tests.runs.test_disk import free

TINY = ["doctor", "shapes_tiny"]


def said(argv: list[str], capsys: pytest.CaptureFixture[str], ill: bool) -> str:
    """What the doctor says, on one line; its exit code says whether something is to be fixed."""
    capsys.readouterr()
    if ill:
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        assert stopped.value.code == 1
    else:
        main(argv)
    return " ".join(capsys.readouterr().out.split())


def test_missing_libraries_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise UserError("TensorBoard is not installed: pip install 'astrolabe-rl[tensorboard]'")

    monkeypatch.setattr("astrolabe.doctor.summary_writer", missing)
    monkeypatch.setattr("astrolabe.doctor.find_spec", lambda name: None)
    words = [*TINY, "--out", str(tmp_path / "run")]
    said(words, capsys, ill=False)
    assert "TensorBoard is not installed" in said([*words, "--tensorboard", "true"], capsys, ill=True)
    assert "needs ray: pip install" in said([*words, "--pool.backend", "ray"], capsys, ill=True)


def test_the_disk_must_hold_the_checkpoints_and_ten_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*TINY, "--lora.rank", "192", "--out", str(tmp_path / "run")]
    free(monkeypatch, 1.2e9)
    assert "-- more disk ten checkpoints, and room for the rest, would take" in said(words, capsys, ill=False)
    free(monkeypatch, 1e8)
    found = said(words, capsys, ill=True)
    assert "NO disk needed" in found and "NO disk for the rest" in found


def test_what_a_run_begins_from_and_where_it_goes_are_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(["train", "shapes_tiny", "--steps", "1", "--out", str(run)])
    there = [*TINY, "--steps", "1", "--out", str(run)]
    assert "a run that is already done" in said(there, capsys, ill=False)
    assert "goes on from step 1 of 3 with steps: 1 -> 3" in said([*there, "--steps", "3"], capsys, ill=False)
    with claimed(run):
        assert "another process is working" in said(there, capsys, ill=True)
    new = [*TINY, "--out", str(tmp_path / "new")]
    assert "ok begins from" in said([*new, "--init", f"{run}@1"], capsys, ill=False)
    assert "keeps no checkpoint of step 9" in said([*new, "--init", f"{run}@9"], capsys, ill=True)
    assert "rank 4 and this run 8" in said([*new, "--init", str(run), "--lora.rank", "8"], capsys, ill=True)


def test_a_configuration_that_is_to_be_trusted_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(
        "class Mine:\n    name = 'mine'\n"
        "    def __call__(self, video, prompts):\n        return video.mean((1, 2, 3, 4))\n"
    )
    own = ["--rewards", f"{tmp_path}/mine.py:Mine", "--out", str(tmp_path / "run")]
    main(["config", "shapes_tiny", *own[:2]])
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    words = ["doctor", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]
    assert "NO trust" in said(words, capsys, ill=True)
    assert "NO" not in said([*words, "--trust-code"], capsys, ill=False)


def test_a_prompt_that_the_encoder_cannot_take_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle moving left\n" + "a " * 14 + "red circle left\n")
    words = [*TINY, "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "run")]
    assert "NO prompt texts" in said(words, capsys, ill=True)
