"""Which adapter RUN, RUN@STEP, RUN@best and RUN@last mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from astrolabe.runs.adapter import adapter_of, run_of, say_unfinished
from astrolabe.runs.folder import ADAPTER, BEST, RunFolder
from astrolabe.runtime.checkpoint import save_tensors
from astrolabe.runtime.errors import UserError
from tests.runs.test_folder import begun


def value(path: Path | str) -> float:
    """What the adapter holds."""
    adapter = adapter_of(path)
    assert adapter is not None
    tensors, metadata = adapter.load()
    assert metadata["base"] == "b" and tensors.keys() == {"w"}
    return tensors["w"][0].item()


def with_best(run: RunFolder) -> RunFolder:
    save_tensors(run.path / BEST, {"w": torch.full((2,), 0.5)}, {"base": "b"})
    return run


def kept(run: RunFolder, step: int) -> None:
    store = run.checkpoints
    store.save(step, {"learner/w": torch.full((2,), float(step)), "behavior/w": torch.zeros(2)}, {"base": "b"})


def test_an_unfinished_run_is_its_newest_checkpoint_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tmp_path / "run", done=2)
    kept(run, 3)
    assert value(run.path) == value(f"{run.path}@last") == value(f"{run.path}@3") == 3 and value(f"{run.path}@2") == 2
    for name, said in (("", "has not ended; this is its adapter after 3 of 4 steps"), ("@2", "")):
        adapter = adapter_of(f"{run.path}{name}")
        assert adapter is not None
        say_unfinished(adapter)
        assert said in (error := capsys.readouterr().err) and bool(error) == bool(said)


def test_a_finished_run_is_its_adapter_and_its_checkpoints_are_there_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = with_best(begun(tmp_path / "run", done=4, finished=True))
    save_tensors(run.path / ADAPTER, {"w": torch.full((2,), 9.0)}, {"base": "b"})
    assert value(run.path) == 9 and value(f"{run.path}@last") == value(f"{run.path}@4") == 4
    assert value(f"{run.path}@best") == 0.5
    adapter = adapter_of(run.path)
    assert adapter is not None
    say_unfinished(adapter)
    assert capsys.readouterr().err == ""


def test_an_earlier_end_of_an_extended_run_is_a_step_like_any_other(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", done=4, finished=True)
    run.put_aside(4)
    (run.path / "checkpoints").rename(tmp_path / "elsewhere")
    assert value(f"{run.path}@4") == 4


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("7", "keeps no checkpoint of step 7; there are: RUN@2"),
        ("best", "no best adapter: none of its rewards is a judge, or has judged for long enough; there are: RUN@2"),
        ("lst", "RUN@lst: expected a step, best or last behind the @; there are: RUN@2"),
        ("", "RUN@: expected a step"),
        ("²", "expected a step"),
    ],
)
def test_an_adapter_that_is_not_there_is_told_with_those_that_are(which: str, said: str, tmp_path: Path) -> None:
    run = begun(tmp_path / "run", done=2)
    with pytest.raises(UserError) as error:
        adapter_of(f"{run.path}@{which}")
    assert said in str(error.value).replace(str(run.path), "RUN")


def test_a_run_before_its_first_checkpoint_says_when_that_comes(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    for which in ("", "@last", "@3"):
        with pytest.raises(UserError, match="no adapter yet: its first checkpoint comes after 1 step"):
            adapter_of(f"{run.path}{which}")


def test_a_file_or_folder_whose_name_has_the_sign_is_itself(tmp_path: Path) -> None:
    begun(tmp_path / "run", done=2)
    odd = begun(tmp_path / "run@3", done=1)
    (tmp_path / "run@2").write_text("a LoRA file, say")
    assert adapter_of(tmp_path / "run@2") is None and run_of(tmp_path / "run@2") is None
    assert value(odd.path) == 1 and value(f"{odd.path}@1") == 1
    assert adapter_of(tmp_path / "nowhere@2") is None


def test_a_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    begun(tmp_path / "run", done=2)
    assert value("~/run@2") == 2
