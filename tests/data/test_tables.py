"""Prompts in files that are more than a list of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrolabe.data.prompts import read_entries, read_prompts
from astrolabe.data.scripts import Shot, parse_script
from astrolabe.runtime.errors import UserError

LONGLIVE = '{"prompts": ["a cat runs", "it sleeps"]}\n{"prompts": ["a dog sings", "it runs"]}\n'
SWITCHES = ["a cat runs | it sleeps", "a dog sings | it runs"]
METADATA = '{"tag": "t2v", "prompt": "a cat runs"}\n\n{"tag": "t2v", "prompt": "a dog sleeps"}\n'
TWO = ["a cat runs", "a dog sleeps"]
TABLE = 'uuid,prompt,time\r\n0001,"a cat, runs",2023\r\n0002,"a ""big"" dog sleeps",2024\r\n'
QUOTED = ["a cat, runs", 'a "big" dog sleeps']


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.txt", "prompts.ndjson", "prompts"])
@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        (LONGLIVE, SWITCHES),
        (METADATA, TWO),
        (METADATA.replace("\n", "\r\n"), TWO),
        ("# flow\n" + METADATA, TWO),
        ('[{"prompt": "a cat runs"}, {"caption": "a dog sleeps"}]', TWO),
        ('[\n {"text": "a cat runs"},\n {"text": "a dog sleeps"}\n]', TWO),
        ('[\n "a cat runs",\n "a dog sleeps"\n]\n', TWO),
        ('{"split": "test", "data": [{"prompt": "a cat runs"}, {"prompt": "a dog sleeps"}]}', TWO),
    ],
)
def test_json_is_known_by_its_content(name: str, content: str, prompts: list[str], tmp_path: Path) -> None:
    file = tmp_path / name
    if content.startswith('{"split"') and name != "prompts.json":
        file = tmp_path / "prompts.json"
    file.write_bytes(content.encode())
    assert read_prompts(file) == prompts


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ('["a cat runs", "a dog sleeps"]', TWO),
        ('[["a cat runs", "it sleeps"], ["a dog sings", "it runs"]]', SWITCHES),
        ('{"prompts": ["a cat runs", "a dog sleeps"]}', TWO),
        (LONGLIVE, SWITCHES),
        (METADATA, TWO),
    ],
)
def test_a_json_document_is_a_list_of_prompts(content: str, prompts: list[str], tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(content, encoding="utf-8")
    assert read_prompts(tmp_path / "prompts.json") == prompts


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("prompts.csv", TABLE, QUOTED),
        ("prompts.txt", TABLE, QUOTED),
        ("prompts.csv", "\ufeff" + TABLE, QUOTED),
        ("prompts.csv", TABLE.replace(",prompt,", ",Caption,"), QUOTED),
        ("prompts.csv", "id;text\n1;a cat runs\n2;a dog sleeps\n", TWO),
        ("prompts.txt", "id|prompt\n1|a cat runs\n2|a dog sleeps\n", TWO),
        ("prompts.csv", "description\na cat runs\na dog sleeps\n", TWO),
        ("prompts.tsv", "caption\tid\na cat runs\t1\na dog sleeps\t2\n", TWO),
        ("prompts.csv", "prompt\na cat runs\na dog sleeps\n", TWO),
        ("prompts.csv", "a cat runs\na dog sleeps\n", TWO),
        ("prompts.csv", 'prompt\r\n"a cat\r\nruns"\r\n', ["a cat\r\nruns"]),
        ("prompts.txt", "neon, text, night\na cat, runs, caption\n", ["neon, text, night", "a cat, runs, caption"]),
    ],
)
def test_the_column_of_prompts_is_read(name: str, content: str, prompts: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert read_prompts(tmp_path / name) == prompts


prompt = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(lambda text: text.strip())


@given(st.lists(prompt, min_size=2, max_size=4))
def test_what_a_table_holds_is_plain_text(prompts: list[str]) -> None:
    written = io.StringIO()
    csv.writer(written).writerows([["id", "prompt"], *enumerate(prompts)])
    tables = {
        ".csv": written.getvalue(),
        ".jsonl": "\n".join(json.dumps({"prompt": one}, ensure_ascii=False) for one in prompts),
        ".json": json.dumps(prompts),
    }
    for suffix, content in tables.items():
        assert [parse_script(text) for text in read_text(suffix, content)] == [(Shot(one.strip()),) for one in prompts]
    script = read_text(".jsonl", json.dumps({"prompts": prompts}))
    assert [parse_script(text) for text in script] == [tuple(Shot(one.strip()) for one in prompts)]


def read_text(suffix: str, content: str) -> list[str]:
    """The prompts of a file with this content."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"prompts{suffix}"
        file.write_bytes(content.encode())
        return read_prompts(file)


def test_rows_without_a_prompt_and_signs_of_scripts_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text("id,prompt\n1,a cat | a dog\n2,\n3, \n4,a bird [5s]\n", encoding="utf-8")
    assert [entry.place for entry in read_entries(file)] == [f"{file}: line 2", f"{file}: line 5"]
    said = capsys.readouterr().err
    assert "2 records without a prompt, left out" in said and "2 records with bars or lengths, which are plain" in said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b"[1, 2]", "record 1 is a number"),
        ("a.json", b"3", "holds a number"),
        ("a.json", b'{"name": "x", "version": "1"}', "'name', 'version'"),
        ("a.json", b'[{"prompt": "a cat"', "cannot be read"),
        ("a.json", b"[" * 100_000, "cannot be read"),
        ("a.json", b"", "cannot be read"),
        ("a.txt", b'[\n  {"prompt": "a cat"},\n', "cannot be read"),
        ("a.txt", b'["a \\"big\\" cat",\n"a dog"', "cannot be read"),
        ("a.txt", b'a dog\n{"prompt": "a cat"}\n', "line 1 is not JSON as other lines are"),
        ("a.jsonl", b'{"prompt": "a cat"}\n{"prompt": "a d', "line 2 is not JSON"),
        ("a.jsonl", b'{"prompt": "a cat"}\n{"image": "a.png"}', "line 2 has 'image' and none of prompt"),
        ("a.jsonl", b'{"prompt": {"en": "a cat"}}\n', "line 1, field 'prompt', is an object"),
        ("a.jsonl", b'{"prompt": "a \\ud800 cat"}', "line 1: .*not valid Unicode"),
        ("a.jsonl", b'{"prompt": ""}', "no prompts"),
        ("a.json", b'[{"prompt": "a cat", "seconds": 5}]', "--script"),
        ("a.csv", b"uuid,time\n1,2\n", "columns 'uuid', 'time'"),
        ("a.csv", b"id,prompt\n1,a cat, runs\n", "line 2 has 3 fields where 2"),
        ("a.csv", b'id,prompt\n1,"a cat\n', "no row of a table"),
        ("a.csv", b"id,prompt\n", "no prompts"),
        ("a.csv", b"id,prompt\n1," + b"a" * 5000, "5000 characters"),
        ("a.csv", b"a" * 200_000, "."),
    ],
)
def test_a_table_without_prompts_is_refused_with_its_place(
    name: str, content: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path / name))}.*{said}") as refused:
        read_prompts(tmp_path / name)
    assert "\n" not in str(refused.value)


def a_zip(name: str) -> bytes:
    """A zip archive with one file in it."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(name, "x")
    return held.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PAR1\x15\x04\x15", "a Parquet table.*CSV"),
        (gzip.compress(b"a cat\n", mtime=0), "compressed by gzip.*unpack"),
        (a_zip("xl/workbook.xml"), "an Excel workbook.*CSV"),
        (a_zip("prompts.txt"), "a zip archive.*unpack"),
        (b"PK\x03\x04 cut", "a zip archive"),
        (b"\x89PNG\r\n\x1a\n", "an image"),
        (b"\0\0\0\x20ftypisom", "a video"),
        (b"%PDF-1.7", "a PDF"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x80\x04\x95\x00", "a binary file"),
    ],
)
@pytest.mark.parametrize("name", ["prompts.txt", "prompts.csv", "prompts.parquet"])
def test_a_file_of_another_kind_is_named(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("prompts.txt", "{'prompt': 'a cat runs'}\n", "line 1 is data and no prompt"),
        ("prompts.txt", "['a cat runs', 'a dog sleeps']\n", "line 1 is data and no prompt"),
        ("prompts.txt", "prompts:\n- a cat runs\n", "is YAML"),
        ("prompts.toml", 'prompts = ["a cat runs"]\n', "is toml and no list of prompts"),
        ("prompts.srt", "1\n00:00:01,000 --> 00:00:02,000\na cat runs\n", "is srt and no list of prompts"),
        ("prompts.csv", "negative_prompt\nugly\n", "no column but 'negative_prompt'"),
        ("prompts.jsonl", '{"prompts": ["a cat runs", ""]}\n', "line 1, field 'prompts', has an empty prompt among 2"),
        ("prompts.json", '["a \\u0000 cat"]', "record 1: .*zero byte"),
    ],
)
def test_rows_of_other_data_are_never_taken_for_prompts(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        read_prompts(tmp_path / name)


def test_the_name_of_a_column_is_no_prompt_and_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("Caption\na cat runs\na dog sleeps\n", encoding="utf-8")
    assert read_prompts(tmp_path / "prompts.txt") == TWO
    assert "line 1, 'Caption', is a name of a column and no prompt, left out" in capsys.readouterr().err
