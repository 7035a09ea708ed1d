"""Checkpoints in the layouts that their authors wrote, and files that are not what they seem."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from astrolabe.models.wan.config import WanConfig
from astrolabe.models.wan.text import clean_prompt, embed, load_umt5
from astrolabe.models.wan.transformer import CausalWan
from astrolabe.models.wan.vae import load_vae
from astrolabe.models.wan.weights import load_transformer, original_name, recognise
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.tensorfile import open_tensors
from tests.golden import replay

CONFIG = WanConfig(dim=256, ffn_dim=320, num_heads=2, num_layers=2, freq_dim=32, text_dim=8)
GOLDEN = Path(__file__).parents[1] / "golden"


def weights(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn(tensor.shape) for name, tensor in CausalWan(CONFIG).state_dict().items()}


def wrapped(tensors: dict[str, Tensor], prefix: str = "", middle: str = "") -> dict[str, Tensor]:
    """Names as a training wrapper leaves them: ``prefix`` before all, ``middle`` after each block's number."""
    out = {}
    for name, value in tensors.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            parts[1] += f".{middle.rstrip('.')}" if middle else ""
        out[prefix + ".".join(parts)] = value
    return out


FSDP = "_fsdp_wrapped_module."
LAYOUTS: dict[str, Any] = {
    "Self-Forcing": lambda w: {"generator": wrapped(weights(1), "model."), "generator_ema": wrapped(w, "model.")},
    "Self-Forcing under FSDP": lambda w: {"generator_ema": wrapped(w, f"model.{FSDP}", FSDP)},
    "Causal-Forcing, chunk-wise": lambda w: {"generator": wrapped(w, "model.")},
    "checkpointed and compiled": lambda w: {"generator": wrapped(w, "_orig_mod.model.", "_checkpoint_wrapped_module.")},
    "LongLive base": lambda w: {"generator": wrapped(w, "model."), "step": 3, "critic": {"x": torch.zeros(2)}},
    "bare": lambda w: w,
    "DDP": lambda w: {"state_dict": wrapped(w, "module."), "epoch": 3},
    "compiled under DDP": lambda w: {"model": wrapped(w, "_orig_mod.module."), "optimizer": {"state": {}}},
    "an average beside what it averages": lambda w: {"model": wrapped(weights(1)), "ema": wrapped(w, "module.model.")},
    "DeepSpeed": lambda w: {"module": wrapped(w, "module."), "ds_version": "1"},
    "ComfyUI's checkpoints": lambda w: wrapped(w, "model.diffusion_model."),
    "ComfyUI": lambda w: wrapped(w, "diffusion_model."),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_loads_to_the_same_network(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(LAYOUTS[name](weights()), path)
    model = load_transformer(path)
    assert model.config == CONFIG
    assert all(torch.equal(value, weights()[key]) for key, value in model.state_dict().items())


def test_a_flat_safetensors_file_loads_in_the_wanted_precision(tmp_path: Path) -> None:
    save_file({f"model.{name}": value for name, value in weights().items()}, tmp_path / "krea.safetensors")
    model = load_transformer(tmp_path / "krea.safetensors", dtype=torch.bfloat16)
    assert all(torch.equal(value, weights()[key].bfloat16()) for key, value in model.state_dict().items())


def test_raw_weights_can_be_asked_for_instead_of_the_average(tmp_path: Path) -> None:
    torch.save({"generator": weights(1), "generator_ema": weights(2)}, tmp_path / "model.pt")
    for container, seed in (("generator", 1), ("generator_ema", 2)):
        model = load_transformer(tmp_path / "model.pt", (container,))
        assert torch.equal(model.head.head.weight, weights(seed)["head.head.weight"])


def test_tensors_that_are_views_are_read_right(tmp_path: Path) -> None:
    whole = torch.randn(6, 10)
    torch.save({"a": whole[1:4, 2:].t(), "b": whole[2], "empty": torch.zeros(0, 3)}, tmp_path / "views.pt")
    file = open_tensors(tmp_path / "views.pt")
    with file.reader() as reader:
        read = {name: reader.read(entry) for name, entry in file.containers[""].items()}
    assert torch.equal(read["a"], whole[1:4, 2:].t()) and torch.equal(read["b"], whole[2])
    assert read["empty"].shape == (0, 3)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64])
def test_tensors_of_one_reader_share_no_memory(dtype: torch.dtype | None, tmp_path: Path) -> None:
    tensors = {f"{n}": torch.full((3, 2), float(n)) for n in range(3)} | {"turned": torch.arange(6.0).view(2, 3).t()}
    torch.save(tensors, tmp_path / "several.pt")
    file = open_tensors(tmp_path / "several.pt")
    with file.reader() as reader:
        read = {name: reader.read(entry, dtype=dtype) for name, entry in file.containers[""].items()}
    assert all(torch.equal(read[name], value.to(dtype)) for name, value in tensors.items())
    assert len({value.untyped_storage().data_ptr() for value in read.values()}) == len(tensors)


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda w: w.pop("blocks.1.ffn.0.bias"), "1 missing: blocks.1.ffn.0.bias"),
        (lambda w: w.pop("head.head.weight"), r"model\.pt .*head\.head\.weight is missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "1 unknown: extra"),
        (
            lambda w: w.update({"head.modulation": torch.zeros(1, 2, 9)}),
            r"modulation \[1, 2, 9\] instead of \[1, 2, 256\]",
        ),
        (lambda w: [w.pop(f"blocks.0.self_attn.{x}.bias") for x in "qkvo"], "4 missing: .* and 1 more"),
    ],
)
def test_anything_missing_unknown_or_of_another_shape_is_refused_with_the_layout(
    change: Any, complaint: str, tmp_path: Path
) -> None:
    changed = weights()
    change(changed)
    torch.save({"generator_ema": changed}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=complaint) as caught:
        load_transformer(tmp_path / "model.pt")
    assert "torch zip, container 'generator_ema'" in str(caught.value)


def test_a_file_without_a_transformer_says_what_it_has(tmp_path: Path) -> None:
    torch.save({"critic": {"w": torch.zeros(3)}}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"no causal Wan in .*the file has: critic \(1 tensors\)"):
        recognise(tmp_path / "model.pt")


class Evil:
    """Code in a pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must never be printed",)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"generator": Evil()}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="refused, because loading it would run code"):
        open_tensors(tmp_path / "model.pt")
    assert "never be printed" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"model.{suffix}"
    if suffix == "pt":
        torch.save({"generator": weights()}, path)
    else:
        save_file(weights(), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=str(path)):
        load_transformer(path)


@settings(deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_damaged_file_is_refused_or_harmless(
    place: float, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "model.pt"
    records, damaged = io.BytesIO(), io.BytesIO()
    torch.save({"generator": {"a": torch.ones(2, 3), "b": torch.ones(4)[1:]}}, records)
    with zipfile.ZipFile(records) as source, zipfile.ZipFile(damaged, "w") as target:
        for name in source.namelist():  # a new zip, so that its checksums fit what is in it
            content = bytearray(source.read(name))
            if name.endswith("data.pkl"):
                content[int(place * len(content))] = value
            target.writestr(name, bytes(content))
    path.write_bytes(damaged.getvalue())
    try:
        open_tensors(path)
    except UserError as error:
        assert str(path) in str(error)


def archive(of: str, write: Any) -> bytes:
    """A zip or tar with whatever ``write`` puts into it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") if of == "zip" else tarfile.open(fileobj=content, mode="w") as made:
        write(made)
    return content.getvalue()


def saved(**options: Any) -> bytes:
    """A small checkpoint as ``torch.save`` writes it."""
    content = io.BytesIO()
    torch.save({"w": torch.ones(3)}, content, **options)
    return content.getvalue()


def packed_again() -> bytes:
    """A checkpoint whose zip was made anew, compressed: its records no longer lie there as numbers."""
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved())) as source, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return content.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5676\n"
KINDS: dict[str, tuple[bytes, str]] = {
    "text": (b"hello, this is no checkpoint", r"neither a safetensors file nor a zip .* but text \('hello, this is no"),
    "bytes": (b"\x07\x99\xfe\x01 noise", "neither a safetensors file nor a zip"),
    "nothing": (b"", r"empty \(0 bytes\); copy or download it again"),
    "zeros": (bytes(4096), "unfinished download"),
    "git-lfs": (LFS, r"a git-lfs pointer to a file of 5,676 bytes.*git lfs pull"),
    "git-annex": (b"/annex/objects/SHA256E-s5--0.pt\n", "git annex get"),
    "page": (b"\n<!DOCTYPE HTML><html><title>Sign in</title>", r"a web page \('Sign in'\).*log in"),
    "page without a type": (b"<html><head></head>", "a web page, not the file itself"),
    "error in XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "a web page"),
    "error in JSON": (b'{"error":"Repository not found"}', r"JSON text.*Repository not found"),
    "JSON that looks like a header": (b'{"data":{"error": "Invalid credentials"}}', r"JSON text.*Invalid credentials"),
    "gguf": (b"GGUF\x03" + bytes(99), "a GGUF file"),
    "torch of before 2020": (saved(_use_new_zipfile_serialization=False), "format of before 2020.*weights_only"),
    "pickle": (pickle.dumps({"w": [1.0]}), "a bare pickle, which is read by running it: refused"),
    "gzip": (gzip.compress(saved()), "packed with gzip; unpack it"),
    "tar": (archive("tar", lambda made: made.addfile(tarfile.TarInfo("model.pt"))), "a tar archive; unpack it"),
    "another zip": (archive("zip", lambda made: made.writestr("notes.txt", "x")), r"a zip archive \(notes\.txt"),
    "packed again": (packed_again(), "packed again, compressed"),
    "half a zip": (saved()[:-99], "not a whole zip file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "video": (b"\x00\x00\x00\x20ftypisom", "a video"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_called_what_it_is(kind: str, suffix: str, tmp_path: Path) -> None:
    content, said = KINDS[kind]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path}: .*{said}") as caught:
        open_tensors(path)
    assert "\n" not in str(caught.value)


@given(content=st.binary(max_size=600))
def test_no_bytes_are_read_as_tensors_or_end_in_another_error(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.pt"
    path.write_bytes(content)
    with pytest.raises(UserError):
        open_tensors(path)


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "model.pt")
    with pytest.raises(UserError, match="a TorchScript program, which would be run: refused"):
        open_tensors(tmp_path / "model.pt")


def test_no_file_and_a_folder_of_other_things_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        open_tensors(tmp_path / "absent.pt")
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"a folder without an index of shards \(a\.txt\); name a file"):
        open_tensors(tmp_path)
    (tmp_path / "__0_0.distcp").touch()
    with pytest.raises(UserError, match="dcp_to_torch"):
        open_tensors(tmp_path)


def write_shards(folder: Path, kind: str) -> dict[str, Tensor]:
    """The network in two shards with their index; gives its tensors."""
    whole = weights()
    names = sorted(whole)
    listed: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number}.{kind}"
        tensors = {name: whole[name] for name in part}
        write: Any = save_file if kind == "safetensors" else torch.save
        write(tensors, folder / file)
        listed |= dict.fromkeys(part, file)
    (folder / f"model.{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return whole


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_one_checkpoint_named_by_folder_or_index(kind: str, tmp_path: Path) -> None:
    whole = write_shards(tmp_path, kind)
    for path in (tmp_path, tmp_path / f"model.{kind}.index.json"):
        model = load_transformer(path)
        assert all(torch.equal(value, whole[name]) for name, value in model.state_dict().items())


def test_shards_that_are_not_what_their_index_lists_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, "safetensors")
    index = tmp_path / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    name = next(iter(listed["weight_map"]))
    for changed, said in (
        ({name: "../elsewhere.safetensors"}, "shards lie beside their index"),
        ({name: "model-7.safetensors"}, r"model-7\.safetensors of 3 shards is not there"),
        ({"extra": "model-0.safetensors"}, r"differ \(1 tensors, extra first\)"),
    ):
        index.write_text(json.dumps({"weight_map": listed["weight_map"] | changed}))
        with pytest.raises(UserError, match=said):
            open_tensors(tmp_path)
    listed["weight_map"].pop(name)
    index.write_text(json.dumps(listed))
    with pytest.raises(UserError, match=rf"differ \(1 tensors, {name} first\)"):
        open_tensors(tmp_path)
    for text in ("{", "[]", '{"weight_map": 3}'):
        index.write_text(text)
        with pytest.raises(UserError, match="no index of shards"):
            open_tensors(tmp_path)


def test_names_lose_wrappers_anywhere_and_one_prefix() -> None:
    assert original_name(f"model.{FSDP}blocks.3._checkpoint_wrapped_module.ffn.0.bias") == "blocks.3.ffn.0.bias"
    assert original_name("model.model.head.head.weight") == "model.head.head.weight"
    assert original_name("module._orig_mod.module.model.diffusion_model.head.head.bias") == "head.head.bias"
    assert original_name("submodule.x") == "submodule.x"


@pytest.mark.parametrize("wrap", [lambda w: {"state_dict": w}, lambda w: {f"module.{k}": v for k, v in w.items()}])
def test_text_encoder_and_vae_are_found_under_wrappers_too(wrap: Any, tmp_path: Path) -> None:
    for name, load in (("umt5_encoder", load_umt5), ("wan_vae", load_vae)):
        own, _ = golden_weights(name)
        torch.save(wrap(own), tmp_path / "wrapped.pth")
        load(tmp_path / "wrapped.pth")


def golden_weights(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    _, tensors = replay.read(str(GOLDEN / f"{name}.safetensors"))
    return {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}, tensors


def test_wans_own_text_encoder_file_loads_strictly(tmp_path: Path) -> None:
    own, tensors = golden_weights("umt5_encoder")
    torch.save(own, tmp_path / "models_t5.pth")
    encoder = load_umt5(tmp_path / "models_t5.pth")
    torch.testing.assert_close(embed(encoder, tensors["ids"], tensors["mask"]), tensors["embeds"], rtol=0, atol=2e-5)
    assert encoder.encoder.embed_tokens.weight is encoder.shared.weight
    lacking = {name: value for name, value in own.items() if name != "norm.weight"}
    for changed, complaint in ((lacking, "missing"), (own | {"x": torch.ones(1)}, "unknown")):
        torch.save(changed, tmp_path / "changed.pth")
        with pytest.raises(UserError, match=complaint):
            load_umt5(tmp_path / "changed.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not a UMT5 encoder"):
        load_umt5(tmp_path / "other.pth")


def test_rows_of_padding_are_zero() -> None:
    encoder = replay.assemble_umt5(*replay.weights_of(str(GOLDEN / "umt5_encoder.safetensors")))
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    rows = embed(encoder, torch.tensor([[5, 6, 1, 0, 0]]), mask)
    assert (rows[0, :3].abs().sum(1) > 0).all() and (rows[0, 3:] == 0).all()


@pytest.mark.parametrize(
    "text, cleaned",
    [
        ("  a  cat\n on a\tmat ", "a cat on a mat"),
        ("fish &amp;amp; chips", "fish & chips"),
        ("cafÃ© &lt;3", "café <3"),
    ],
)
def test_prompts_are_cleaned(text: str, cleaned: str) -> None:
    assert clean_prompt(text) == cleaned


def test_wans_own_vae_file_loads_strictly_and_holds_each_streams_state(tmp_path: Path) -> None:
    own, tensors = golden_weights("wan_vae")
    torch.save(own, tmp_path / "vae.pth")
    vae = load_vae(tmp_path / "vae.pth")
    latents = tensors["latents"]
    other = torch.randn_like(latents)
    whole = [vae.decode(part)[0] for part in (latents, other)]
    states: list[Any] = [None, None]
    parts: list[list[Tensor]] = [[], []]
    for first in range(0, latents.shape[1], 2):  # two streams in turn
        for stream, source in enumerate((latents, other)):
            video, states[stream] = vae.decode(source[:, first : first + 2], states[stream])
            parts[stream].append(video)
    assert all(torch.equal(torch.cat(mine, 1), theirs) for mine, theirs in zip(parts, whole, strict=True))
    changed = dict(own)
    changed["conv3.weight"] = changed.pop("conv2.weight")
    torch.save(changed, tmp_path / "changed.pth")
    with pytest.raises(UserError, match="not a Wan VAE"):
        load_vae(tmp_path / "changed.pth")


def test_a_state_can_be_gone_on_from_twice() -> None:
    _, tensors = golden_weights("wan_vae")
    config, _ = replay.read(str(GOLDEN / "wan_vae.safetensors"))
    vae = load_golden_vae(config)
    _, state = vae.decode(tensors["latents"][:, :2])
    once, _ = vae.decode(tensors["latents"][:, 2:], state)
    twice, _ = vae.decode(tensors["latents"][:, 2:], state)
    assert torch.equal(once, twice)


def load_golden_vae(config: dict[str, Any], tile: int | None = None) -> Any:
    path = str(GOLDEN / "wan_vae.safetensors")
    return replay.assemble_vae(*replay.weights_of(path), replay.vae_sizes(config), tile=tile)


def test_tiles_stream_as_they_decode_at_once_and_come_near_to_whole_frames() -> None:
    config, _ = replay.read(str(GOLDEN / "wan_vae.safetensors"))
    plain, tiled = load_golden_vae(config), load_golden_vae(config, tile=8)
    latents = torch.randn(1, 3, 16, 12, 18, generator=torch.Generator().manual_seed(0))
    whole, (at_once, _) = plain.decode(latents)[0], tiled.decode(latents)
    first, state = tiled.decode(latents[:, :1])
    rest, _ = tiled.decode(latents[:, 1:], state)
    assert torch.equal(torch.cat([first, rest], 1), at_once)
    assert at_once.shape == whole.shape
    assert (at_once - whole).abs().mean() < 0.25 * whole.std()
    with pytest.raises(UserError, match="at least 8"):
        load_golden_vae(config, tile=4)


def test_a_video_that_cannot_be_encoded_is_refused_with_the_nearest_lengths() -> None:
    config, _ = replay.read(str(GOLDEN / "wan_vae.safetensors"))
    with pytest.raises(UserError, match="the nearest are 5 and 9"):
        load_golden_vae(config).encode(torch.rand(1, 7, 3, 32, 48))
