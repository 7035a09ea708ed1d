"""What a file is that holds no tensors we read, told by its first bytes, and what to do about it."""

from __future__ import annotations

import re

EXPECTED = "expected a safetensors file or a zip written by torch.save"
AGAIN = "copy or download it again"
HEAD = 512  # bytes that tell every kind below
LFS, ANNEX = b"version https://git-lfs", b"/annex/objects/"
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # the magic number, pickled, of torch before 1.6
PAGE = re.compile(rb"\s*<(!doctype html|html|head|body|!--|\?xml|error)", re.IGNORECASE)
CONVERT = "ask its author for safetensors"
UNPACK = "unpack it and name the file in it"
PACKED = (
    (b"\x1f\x8b", "packed with gzip", UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", UNPACK),
    (b"\xfd7zXZ\x00", "packed with xz", UNPACK),
    (b"BZh", "packed with bzip2", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!", "a rar archive", UNPACK),
    (b"PK\x05\x06", "an empty zip archive", AGAIN),
)  # fmt: skip
MAGIC = (
    (b"GGUF", "a GGUF file: weights quantised for other programs", "take the model as safetensors or .pt"),
    (LEGACY, "in torch's format of before 2020", "load it there with weights_only=True and save it as safetensors"),
    (b"\x89HDF", "an HDF5 file", CONVERT),
    (b"\x93NUMPY", "a NumPy array", CONVERT),
    (b"\x89PNG", "a picture", EXPECTED),
    (b"\xff\xd8\xff", "a picture", EXPECTED),
)  # fmt: skip


def mistaken(start: bytes, size: int) -> str:
    """What came instead of a file of any kind (nothing, a pointer, a web page, a package), and the remedy, as the end
    of a sentence; empty for what is none of these."""
    if not size:
        return f"empty (0 bytes); {AGAIN}"
    if start.startswith(LFS):
        whole = re.search(rb"\nsize (\d+)", start)
        of = f" to a file of {int(whole[1]):,} bytes" if whole else ""
        return f"a git-lfs pointer{of}, not the file itself; run `git lfs pull` in its folder, or download it"
    if start.startswith(ANNEX):
        return "a git-annex pointer, not the file itself; run `git annex get` on it, or download it"
    if PAGE.match(start):
        return (
            f"a web page{_title(start)}, not the file itself; the server answered the download with it: log in, accept "
            "the licence if there is one, and take the link of the file itself"
        )
    for magic, what, remedy in PACKED:
        if start.startswith(magic):
            return f"{what}; {remedy}"
    if not start.strip(b"\0"):
        return f"nothing but zeros at its beginning, as an unfinished download has; {AGAIN}"
    return ""


def told(start: bytes, size: int) -> str:
    """What a file of ``size`` bytes is that begins with ``start`` and holds no tensors, and the remedy."""
    if found := mistaken(start, size):
        return found
    for magic, what, remedy in MAGIC:
        if start.startswith(magic):
            return f"{what}; {remedy}"
    if start[257:262] == b"ustar":
        return f"a tar archive; {UNPACK}"
    if start[4:8] == b"ftyp":
        return f"a video; {EXPECTED}"
    if re.match(rb"\x80[\x02-\x05]", start):
        return f"a bare pickle, which is read by running it: refused; {CONVERT}"
    return _unknown(start)


def _title(page: bytes) -> str:
    found = re.search(rb"<title>\s*([^<]{1,60})", page, re.IGNORECASE)
    return f" ({found[1].decode(errors='replace').strip()!r})" if found else ""


def _unknown(start: bytes) -> str:
    """Text is quoted, and JSON named: it is often what a server said instead of the file."""
    try:
        text = start[: HEAD - 4].decode("utf-8")  # a character at the end may be cut in two
    except UnicodeDecodeError:
        text = ""
    if not text or any(ord(sign) < 32 and sign not in "\t\n\r" for sign in text):
        return f"neither a safetensors file nor a zip written by torch.save (it begins with {start[:8]!r}); {AGAIN}"
    quoted = " ".join(text.split())[:60]
    if text.lstrip()[:1] in "{[":
        return f"JSON text, not a checkpoint (it begins with {quoted!r}); if a server sent it, fix that and {AGAIN}"
    return f"neither a safetensors file nor a zip written by torch.save, but text ({quoted!r}); {EXPECTED}"
