"""Prompt files, lengths and terminals as they come from people, met by the commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from astrolabe.cli import main
from astrolabe.runtime.video import write_mp4
from tests.e2e.test_commands import fails

TABLES = {
    "prompts.csv": 'id,prompt\n1,"a red circle, moving left"\n2,a blue square moving up\n',
    "prompts.jsonl": '{"prompts": ["a red circle moving left", "a red circle moving right"]}\n',
}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "a cat", "--seconds", "inf"], "--seconds inf; a length must be above zero, and a day"),
        (["--prompt", "a cat", "--seconds", "nan"], "--seconds nan; a length must be above zero"),
        (["--prompt", "a cat", "--seconds", "-3"], "--seconds -3; a length must be above zero"),
        (["--prompt", "a cat", "--seconds", "0"], "--seconds 0; a length must be above zero"),
        (["--prompt", "a cat", "--seconds", "1e308"], "a day (86400 s) at most"),
        (["--prompt", "a cat", "--frames", "0"], "--frames 0: latent frames must be above zero"),
        (["--prompt", "a cat", "--frames", "-3"], "--frames -3: latent frames must be above zero"),
        (["--prompt", "a cat", "--frames", "9" * 30], "(a day) at most"),
        (["--prompt", "a cat", "--batch", "0"], "--batch 0: at least one"),
        (["--prompt", "a cat", "--seed", "-1"], "--seed -1: a seed is a whole number from 0 on"),
        (["--prompt", "a cat\udcff"], "--prompt: prompt 'a cat\\udcff' is not valid Unicode"),
        (["--prompt", "a cat", "--prompt", "a bird sings |"], "--prompt 2: a script has a shot without a prompt"),
        (["--prompt", "a cat[2s] | a dog[2s]", "--seconds", "9"], "--prompt: the script lasts 4 s"),
        (["--prompt", "a cat", "--frames", "7"], "nearest are 6 and 9"),
        (["--prompt", "a cat", "--start", "nothing.png"], "nothing.png: cannot be read (No such file"),
    ],
)
def test_what_cannot_be_made_is_refused_before_a_weight_is_looked_for(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", "self-forcing", "--model.weights", str(tmp_path / "nowhere")]
    assert said in fails(["generate", *model, *words, "--out", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a dog sleeps\na bird sings |\n", "prompts.txt: line 2: a script has a shot without a prompt"),
        ("a dog sleeps\na cat[5s] | a bird[5s]\n", "prompts.txt: line 2: the script lasts 10 s"),
        ("PAR1\0", "prompts.txt is a Parquet table"),
        ('{"image": "a.png"}\n', "prompts.txt: line 1 has 'image' and none of prompt"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "embed", "train", "doctor"])
def test_every_command_says_file_and_line(
    command: str, content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(content, encoding="utf-8")
    words = {
        "generate": ["--prompts", str(file), "--seconds", "2", "--out", str(tmp_path / "out")],
        "embed": [str(file), "--model.wan", str(tmp_path / "nowhere")],
        "train": ["self_forcing", "--prompts", str(file), "--out", str(tmp_path / "out")],
        "doctor": ["self_forcing", "--prompts", str(file)],
    }[command]
    if command == "embed" and "lasts" in said:
        return  # how long shots are is asked by who makes videos
    if command == "doctor":
        with pytest.raises(SystemExit):
            main([command, *words])
        assert said.replace(" ", "") in "".join(capsys.readouterr().out.split())
        return
    assert said in fails([command, *words], capsys)


@pytest.mark.parametrize("name", list(TABLES))
def test_tables_become_the_videos_of_their_prompts(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(TABLES[name], encoding="utf-8")
    main(["generate", "--prompts", str(tmp_path / name), "--frames", "6", "--out", str(tmp_path / "out")])
    lines = [
        json.loads(line) for line in (tmp_path / "out" / "videos.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    ]
    shown = [[shot["prompt"] for shot in line["script"]] for line in lines]
    if name == "prompts.csv":
        assert shown == [["a red circle, moving left"], ["a blue square moving up"]]
    else:
        assert shown == [["a red circle moving left", "a red circle moving right"]]


def test_a_caption_that_the_oracles_cannot_judge_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text("id,prompt\n1,a red circle moving left\n2,a cat\n", encoding="utf-8")
    said = fails(["train", "shapes_tiny", "--prompts", str(file), "--out", str(tmp_path / "out")], capsys)
    assert "prompts.csv: line 3: " in said


def test_a_terminal_that_cannot_show_a_name_gets_an_escape_and_the_video_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "vid\u00e9os \U0001f98a"
    words = ["generate", "--prompt", "a red circle moving left", "--frames", "3", "--out", str(out)]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "astrolabe", *words], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"vid\\xe9os \\U0001f98a" in done.stdout and (out / "0000.mp4").exists()


def test_what_is_said_once_is_said_by_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# mine\na cat\n", encoding="utf-8")
    for _ in range(2):
        with pytest.raises(SystemExit):
            main(["doctor", "self_forcing", "--prompts", str(file)])
        assert capsys.readouterr().err.count("1 comment beginning with # left out") == 1


def test_scores_are_those_of_one_rate_or_of_the_one_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = torch.rand(12, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    write_mp4(tmp_path / "A.MP4", video, 32)
    scores = []
    for words in ([], ["--fps", "32"]):
        main(["rewards", "score", "pixel_motion", str(tmp_path), "--prompt", "x", *words])
        out, err = capsys.readouterr()
        scores.append(float(out.split()[0]))
        assert ("comes at 32 frames a second: seen at 16" in err) == (not words)
    assert scores[0] != scores[1]
    assert "--fps nan" in fails(
        ["rewards", "score", "pixel_motion", str(tmp_path), "--prompt", "x", "--fps", "nan"], capsys
    )
