"""What a file is that is no text, by its first bytes, and what to do with it."""

from __future__ import annotations

import zipfile
from pathlib import Path

TABLE = "export its column of prompts as CSV"
UNPACK = "unpack it first"
EXPECTED = "expected text with one prompt a line, or JSON, JSONL, CSV or TSV"
BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"PAR1", "a Parquet table", TABLE),
    (b"ARROW1", "an Arrow table", TABLE),
    (b"ORC", "an ORC table", TABLE),
    (b"Obj\x01", "an Avro table", TABLE),
    (b"SQLite format 3\x00", "an SQLite database", TABLE),
    (b"\xd0\xcf\x11\xe0", "a file of an old office program (xls, doc)", TABLE),
    (b"\x89HDF", "an HDF5 file", TABLE),
    (b"\x1f\x8b", "compressed by gzip", UNPACK),
    (b"BZh", "compressed by bzip2", UNPACK),
    (b"\xfd7zXZ", "compressed by xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"\x89PNG", "an image (PNG)", EXPECTED),
    (b"\xff\xd8\xff", "an image (JPEG)", EXPECTED),
    (b"GIF8", "an image (GIF)", EXPECTED),
    (b"RIFF", "an image, a sound or a video (RIFF)", EXPECTED),
    (b"\x1aE\xdf\xa3", "a video (Matroska, WebM)", EXPECTED),
    (b"%PDF", "a PDF document", EXPECTED),
    (b"{\\rtf", "an RTF document", "save it as plain text"),
    (b"\x93NUMPY", "a NumPy array", EXPECTED),
    (b"GGUF", "weights of a model (GGUF)", EXPECTED),
    (b"version https://git-lfs", "a pointer of git-lfs and not the file itself", "fetch it with `git lfs pull`"),
    (b"\xff\xfe", "UTF-16 text and not UTF-8", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text and not UTF-8", "save it as UTF-8"),
)
OPENINGS = {"<!doctype html": "a web page", "<html": "a web page", "<?xml": "an XML file"}
IN_ZIP = {
    "xl/": ("an Excel workbook", TABLE),
    "word/": ("a Word document", "save it as plain text"),
    "content.xml": ("an OpenDocument file", TABLE),
}


def what_it_is(path: Path, start: bytes) -> tuple[str, str] | None:
    """What a file is that begins with ``start`` (some hundred bytes), and what to do; None for what may be text."""
    for beginning, name, advice in BEGINNINGS:
        if start.startswith(beginning):
            return name, advice
    if start.startswith(b"PK\x03\x04"):
        return in_zip(path)
    if start[4:8] == b"ftyp":
        return "a video or an image (MP4, MOV, HEIC)", EXPECTED
    if start[257:262] == b"ustar":
        return "a tar archive", UNPACK
    words = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:20].decode("latin-1").lower()
    for opening, name in OPENINGS.items():
        if words.startswith(opening):
            return name, EXPECTED
    return ("a binary file", EXPECTED) if b"\x00" in start else None


def in_zip(path: Path) -> tuple[str, str]:
    """What a zip file is, by the names in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        names = []
    for beginning, found in IN_ZIP.items():
        if any(name.startswith(beginning) for name in names):
            return found
    return "a zip archive", UNPACK
