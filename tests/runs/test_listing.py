"""The list of runs, from what lies on the disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from astrolabe.cli import main
from astrolabe.runs.folder import BEST, RunFolder
from astrolabe.runs.history import HISTORY, record
from astrolabe.runs.listing import summaries
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import claimed
from astrolabe.runtime.steps import finished_steps
from tests.runs.test_folder import begun


def test_every_state_is_told_from_what_lies_on_the_disk(tmp_path: Path) -> None:
    begun(tmp_path / "a" / "stopped", done=2)
    begun(tmp_path / "finished", done=4, finished=True)
    begun(tmp_path / "guarded", done=3, finished=True, guard=True)
    begun(tmp_path / "running", done=2)
    failed = begun(tmp_path / "failed", done=1)
    record(failed.path, "failed", 1, why="a reward is tired")
    with claimed(tmp_path / "running"):
        rows = {row.name: row for row in summaries(tmp_path)}
    assert {name: row.state for name, row in rows.items()} == {
        "a/stopped": "stopped", "finished": "finished", "guarded": "guard", "running": "running", "failed": "failed",
    }  # fmt: skip
    assert rows["finished"].steps == "4/4" and rows["guarded"].steps == "3/4"
    assert rows["failed"].result == "a reward is tired" and rows["finished"].result == "joint 0.05 -> 0.25"
    assert rows["finished"].recipe == "tiny" and rows["finished"].code


def test_an_evaluation_is_the_headline(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", done=4, finished=True)
    measures = {"joint": {"base": 0.5, "aligned": 0.75}}
    (run.path / "evaluation.json").write_text(json.dumps({"measures": measures}))
    assert summaries(tmp_path)[0].result == "joint 0.500 -> 0.750, held out"


def test_runs_of_earlier_versions_are_listed_and_what_is_broken_stops_nothing(tmp_path: Path) -> None:
    old = begun(tmp_path / "old", done=2)
    (old.path / HISTORY).unlink()
    begun(tmp_path / "unknown setting", done=2)
    file = tmp_path / "unknown setting" / "config.yaml"
    file.write_text(file.read_text() + "invented_later: 3\n")
    for name, content in (("no yaml", "a: [b"), ("empty", ""), ("other", "- 1\n"), ("binary", "\0\1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(content)
    broken = begun(tmp_path / "broken metrics", done=2)
    (broken.path / "metrics.jsonl").write_text("nonsense\n{}\n")
    rows = {row.name: row for row in summaries(tmp_path)}
    assert rows["old"].recipe == "shapes" and rows["old"].state == "stopped" and rows["old"].begun
    assert rows["unknown setting"].state == "stopped"
    for name in ("no yaml", "empty", "other", "binary", "broken metrics"):
        assert rows[name].state == "unreadable" and rows[name].result


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_stops_nothing(tmp_path: Path) -> None:
    begun(tmp_path / "fine", done=2)
    begun(tmp_path / "hidden", done=2).config_file.chmod(0)
    assert [row.state for row in summaries(tmp_path)] == ["stopped", "unreadable"]


def test_the_table_fits_eighty_columns_whatever_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    begun(tmp_path / "a-sweep-of-many-things" / "with-a-name-that-is-longer-than-anybody-would-type [red]", done=2)
    failed = begun(tmp_path / "failed", done=1)
    record(failed.path, "failed", 1, why="a reason that goes on and on " * 9)
    main(["runs", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    joined = "".join(line[:20].strip() for line in lines)
    assert "with-a-name-that-is-longer-than-anybody-would-type" in joined and "[red]" in joined
    assert any("2/4" in line and "stopped" in line for line in lines)
    (tmp_path / "empty").mkdir()
    main(["runs", str(tmp_path / "empty")])
    assert capsys.readouterr().out.startswith("no runs in")


def test_a_run_itself_may_be_named_and_a_folder_must_be_there(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", done=2)
    assert [row.name for row in summaries(run.path)] == [str(run.path)]
    with pytest.raises(UserError, match="no such folder"):
        summaries(tmp_path / "nowhere")


def test_to_be_looked_at_is_no_work_in_a_run(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", done=2)
    with claimed(run.path):
        pass
    assert summaries(tmp_path)[0].state == "stopped"
    with claimed(run.path):
        pass


def test_what_is_no_checkpoint_has_no_step(tmp_path: Path) -> None:
    for name in ("step_000002", ".step_000003.tmp", "step_x", BEST):
        (tmp_path / name).mkdir()
    assert finished_steps(tmp_path) == [2] and RunFolder(tmp_path).steps == []
