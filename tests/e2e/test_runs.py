"""A run is worth what it learned so far: its checkpoints are used, it goes on further, another begins from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from astrolabe.cli import main
from astrolabe.runs.folder import RunFolder
from astrolabe.runs.history import events
from astrolabe.runtime.checkpoint import load_tensors
from astrolabe.runtime.tracking import read_metrics
from astrolabe.shapes.captions import split
from tests.e2e.test_commands import fails

TINY = ["train", "shapes_tiny", "--model.dtype", "float32", "--optimizer.schedule", "constant"]
STREAMS = ["--window.per_stream", "3", "--window.continue_with", "best"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three steps, all of its checkpoints kept."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    main([*TINY, "--steps", "3", "--checkpoints_kept", "9", "--out", str(folder)])
    return folder


@pytest.fixture
def cut(whole: Path, tmp_path: Path) -> Path:
    """The same, as if it had been stopped after two steps."""
    folder = tmp_path / "cut"
    shutil.copytree(whole, folder)
    (folder / "adapter.safetensors").unlink()
    shutil.rmtree(folder / "checkpoints" / "step_000003")
    return folder


def metrics(run: Path) -> list[dict[str, Any]]:
    """Without the seconds, which are never the same."""
    lines = read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith("seconds/")} for line in lines]


def learner(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_tensors(run / "checkpoints" / f"step_{step:06d}" / "state.safetensors", "learner/")[0]


@pytest.mark.parametrize("words", [[], STREAMS], ids=["clips", "in the middle of a stream"])
def test_an_extended_run_equals_one_that_was_asked_for_so_from_the_start(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extended, straight = tmp_path / "extended", tmp_path / "straight"
    main([*TINY, *words, "--steps", "1", "--out", str(extended)])
    assert f"finished, 1 step: {extended}" in capsys.readouterr().out
    main([*TINY, *words, "--steps", "3", "--out", str(extended)])
    assert f"finished, 3 steps (extended from 1): {extended}" in capsys.readouterr().out
    main([*TINY, *words, "--steps", "3", "--out", str(straight)])
    assert (extended / "adapter.safetensors").read_bytes() == (straight / "adapter.safetensors").read_bytes()
    assert metrics(extended) == metrics(straight) and len(metrics(straight)) == 3
    assert (extended / "config.yaml").read_text() == (straight / "config.yaml").read_text()
    told = [(event["what"], event["step"]) for event in events(extended)]
    assert told == [("begun", 0), ("finished", 1), ("resumed", 1), ("finished", 3)]


def test_a_rate_that_depends_on_the_number_of_steps_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "shapes_tiny", "--model.dtype", "float32", "--optimizer.lr", "5e-4"]
    for steps in ("1", "2"):
        main([*words, "--out", str(tmp_path / "run"), "--steps", steps])
    error = capsys.readouterr().err
    assert "from step 2 on it is that of a run of 2 (0 -> 0.00025)" in error and "from the start" in error


def test_a_finished_run_says_that_it_is_done_and_nothing_is_loaded(
    whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("astrolabe.training.opened", lambda *_: pytest.fail("the model was loaded"))
    main([*TINY, "--steps", "3", "--out", str(whole)])
    assert f"already done: {whole} (finished, 3 steps)" in capsys.readouterr().out
    assert "has done 3 steps, --steps 2 is fewer" in fails([*TINY, "--steps", "2", "--out", str(whole)], capsys)


def test_a_stopped_run_goes_on_with_other_memory_and_other_checkpoints(
    whole: Path, cut: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*TINY, "--steps", "3", "--checkpoint_every", "7", "--checkpoints_kept", "9", "--rollout.micro_batch", "1",
          "--out", str(cut)])  # fmt: skip
    error = capsys.readouterr().err
    assert "checkpoint_every: 1 -> 7 (the same results)\n" in error
    assert "rollout.micro_batch: 2 -> 1 (the same results, to rounding)\n" in error
    one, two = load_file(whole / "adapter.safetensors"), load_file(cut / "adapter.safetensors")
    moved = max(tensor.abs().max().item() for name, tensor in one.items() if "lora_B" in name)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=0.02 * moved)
    cfg = RunFolder(cut).written()
    assert cfg.checkpoint_every == 7 and cfg.rollout.micro_batch == 1


def test_any_checkpoint_is_exported_as_an_adapter(
    cut: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for which, step, said in (("", 2, "after 2 of 3 steps"), ("@2", 2, "after 2 of 3 steps"), ("@1", 1, "")):
        out = tmp_path / f"peft{which}"
        main(["export", f"{cut}{which}", "--out", str(out)])
        error = capsys.readouterr().err
        assert said in error and bool(error) == bool(said)
        exported, own = load_file(out / "adapter_model.safetensors"), learner(cut, step)
        assert exported.keys() == {f"base_model.model.{name}" for name in own}
        assert all(torch.equal(exported[f"base_model.model.{name}"], tensor) for name, tensor in own.items())
    assert f"there are: {cut}@1, {cut}@2" in fails(["export", f"{cut}@5", "--out", str(tmp_path / "no")], capsys)


def test_a_checkpoint_generates_is_evaluated_and_reported_under_its_own_name(
    cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--prompt", "a red circle moving left", "--frames", "3", "--latents"]
    made = {}
    for name, source in (("run", f"{cut}@1"), ("file", str(tmp_path / "peft"))):
        if name == "file":
            main(["export", f"{cut}@1", "--out", source])
        main(["generate", "--adapter", source, "--model.dtype", "float32", *words, "--out", str(tmp_path / name)])
        made[name] = load_file(tmp_path / name / "0000.safetensors")["latents"]
        assert json.loads((tmp_path / name / "videos.jsonl").read_text())["adapter"] == source
    torch.testing.assert_close(made["run"], made["file"])
    monkeypatch.setattr("astrolabe.evaluation.suites.split", lambda name: split(name)[:2])
    main(["evaluate", f"{cut}@1", "--no-long"])
    result = json.loads((cut / "evaluation-step_000001.json").read_text())
    assert result["adapter"] == f"{cut}@1" and not (cut / "evaluation.json").exists()
    main(["report", f"{cut}@1"])
    page = (cut / "report-step_000001.html").read_text(encoding="utf-8")
    assert "1 of 3 steps" in page and f"{result['measures']['joint']['aligned'] * 100:.1f}" in page


def test_a_run_begins_from_the_adapter_of_another(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still = [*TINY, "--steps", "1", "--optimizer.lr", "1e-12", "--optimizer.weight_decay", "0"]
    main(["export", f"{whole}@2", "--out", str(tmp_path / "peft")])
    for number, source in enumerate((f"{whole}@2", str(tmp_path / "peft"))):
        out = tmp_path / f"run{number}"
        main([*still, "--init", source, "--out", str(out)])
        begun, state = learner(whole, 2), load_tensors(out / "checkpoints" / "step_000001" / "state.safetensors")[0]
        assert max(tensor.abs().max().item() for name, tensor in begun.items() if "lora_B" in name) > 1e-5
        for slot in ("learner", "behavior", "reference"):
            for name, tensor in begun.items():
                torch.testing.assert_close(state[f"{slot}/{name}"], tensor, rtol=0, atol=1e-8)
        assert len(json.loads((out / "checkpoints/step_000001/state.json").read_text())["state"]["init"]) == 64
    main([*still[:-4], "--steps", "2", "--init", f"{whole}@2", "--optimizer.lr", "1e-12", "--optimizer.weight_decay",
          "0", "--out", str(tmp_path / "run0")])  # fmt: skip
    for words, said in (
        (["--lora.rank", "8", "--init", str(whole)], "rank 4 and this run 8"),
        (["--lora.alpha", "1", "--init", str(tmp_path / "peft")], "this run rank 4 and alpha 1"),
        (["--init", f"{whole}@9"], "keeps no checkpoint of step 9"),
        (["--init", "nowhere"], "no such run, folder or file"),
        (["--init", str(whole), "--out", str(tmp_path / "run0")], "another configuration (init"),
    ):
        assert said in fails([*TINY, "--out", str(tmp_path / "no"), *words], capsys)
    assert not (tmp_path / "no").exists()


def test_a_run_does_not_begin_twice_from_two_adapters(
    cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, "--steps", "1", "--init", str(cut), "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr("astrolabe.training.Trainer.step", interrupted)
        with pytest.raises(SystemExit):
            main(words)
    shutil.rmtree(cut / "checkpoints" / "step_000002")  # the other run's newest checkpoint is another one now
    with pytest.raises(SystemExit):
        main(words)
    error = capsys.readouterr().err
    assert f"init={cut} is another adapter than when this run began; name one that stays" in error


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_run_of_relative_paths_is_used_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    Path("prompts.txt").write_text("a red circle moving left\na blue square still\n")
    main([*TINY, "--prompts", "prompts.txt", "--steps", "1", "--out", "run"])
    monkeypatch.chdir(tmp_path)
    main(["train", "home/run", "--steps", "2"])
    assert "prompts: prompts.txt\n" in Path("home/run/config.yaml").read_text()
    main(["train", "home/run/config.yaml", "--out", "again"])
    assert Path("again/adapter.safetensors").read_bytes() == Path("home/run/adapter.safetensors").read_bytes()
    Path("home/prompts.txt").unlink()
    assert f"{tmp_path}/home/prompts.txt" in fails(["train", "home/run/config.yaml", "--out", "third"], capsys)


def test_what_made_a_session_end_is_in_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the sky fell")

    with monkeypatch.context() as patch:
        patch.setattr("astrolabe.training.Trainer.step", broken)
        with pytest.raises(RuntimeError):
            main([*TINY, "--out", str(tmp_path / "run")])
    assert events(tmp_path / "run")[-1]["what"] == "failed"
    assert events(tmp_path / "run")[-1]["why"] == "RuntimeError: the sky fell"
    main([*TINY, "--out", str(tmp_path / "run")])
    assert events(tmp_path / "run")[-1]["what"] == "finished"
