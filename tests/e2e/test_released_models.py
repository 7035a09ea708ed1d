"""Released models from the command line, on tiny files in the true layouts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from safetensors.torch import load_file, save_file

from astrolabe.cli import main
from astrolabe.models.opening import LiveTextEncoder
from astrolabe.models.released import released
from astrolabe.models.settings import ReleasedSettings
from astrolabe.models.text_cache import TextCache
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.models.wan.vae import load_vae
from astrolabe.models.wan.weights import load_transformer
from astrolabe.rollout.live import PlacedNoise, VideoStream
from astrolabe.runtime.video import read_last_frames, write_mp4
from tests import tiny_release
from tests.e2e.test_commands import fails


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of every tiny model that a test asks for."""
    return tmp_path_factory.mktemp("released")


def make(out: Path, files: Path, *words: str, model: str = "self-forcing") -> list[dict[str, Any]]:
    """``astrolabe generate`` with latents; the lines it wrote."""
    main(["generate", "--model", model, *tiny_release.arguments(files, model), "--latents", "--out", str(out), *words])
    return [json.loads(line) for line in (out / "videos.jsonl").read_text().splitlines()]


def latents(out: Path, number: int = 0) -> torch.Tensor:
    return load_file(out / f"{number:04d}.safetensors")["latents"]


def frames_in(path: Path) -> int:
    with av.open(str(path)) as video:
        return sum(1 for _ in video.decode(video=0))


def test_prompts_become_playable_videos_with_a_line_each(files: Path, tmp_path: Path) -> None:
    lines = make(tmp_path / "out", files, "--prompt", "a cat runs", "--prompt", "the dog sleeps", "--seconds", "1.4")
    assert [line["prompt"] for line in lines] == ["a cat runs", "the dog sleeps"]
    for number, line in enumerate(lines):
        assert line["model"] == "self-forcing" and line["latent_frames"] == 6 and line["frames"] == 21
        assert frames_in(tmp_path / "out" / line["file"]) == 21
        assert line["frames_per_second"] > 0 and 0 < line["first_frame_seconds"] <= line["seconds"]
        assert latents(tmp_path / "out", number).shape == (6, 16, 4, 6)
    assert not list((tmp_path / "out").glob("*.part.mp4"))


def test_a_video_does_not_depend_on_who_is_made_beside_it(files: Path, tmp_path: Path) -> None:
    words = ["--prompt", "a cat runs", "--prompt", "the dog sleeps", "--frames", "6"]
    make(tmp_path / "alone", files, *words)
    lines = make(tmp_path / "beside", files, *words, "--batch", "2")
    assert [line["beside"] for line in lines] == [2, 2]
    for number in (0, 1):
        one, two = (latents(tmp_path / name, number) for name in ("alone", "beside"))
        torch.testing.assert_close(one, two, rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", ["longlive", "causal-forcing-framewise", "causal-forcing-2step"])
def test_a_family_is_one_configuration_of_the_same_network(model: str, files: Path, tmp_path: Path) -> None:
    make(tmp_path / "out", files, "--prompt", "a bird sings", "--frames", "12", "--model.adapter=none", model=model)
    stream = released(model).stream
    text = TextCache.open(files / "text").encode(["a bird sings"])
    transformer = load_transformer(files / model / released(model).file, released(model).containers)
    by_hand = VideoStream(WanGenerator(transformer, stream, (16, 4, 6)), text, PlacedNoise(0, [0]), decode=False)
    expected = torch.cat([by_hand.step().latents for _ in range(12 // stream.chunk_frames)], 1)[0]
    torch.testing.assert_close(latents(tmp_path / "out"), expected, rtol=0, atol=1e-5)


def test_a_flat_file_that_someone_converted_loads_as_well(files: Path, tmp_path: Path) -> None:
    words = ["--prompt", "a bird sings", "--frames", "3"]
    make(tmp_path / "own", files, *words)
    save_file(tiny_release.transformer_weights(), tmp_path / "flat.safetensors")
    make(tmp_path / "flat", files, *words, f"--model.weights={tmp_path / 'flat.safetensors'}")
    assert torch.equal(latents(tmp_path / "own"), latents(tmp_path / "flat"))


def test_longlives_own_adapter_is_part_of_it_unless_told_otherwise(files: Path, tmp_path: Path) -> None:
    words = ["--prompt", "a bird sings", "--frames", "3"]
    make(tmp_path / "with", files, *words, model="longlive")
    make(tmp_path / "without", files, *words, "--model.adapter", "none", model="longlive")
    assert not torch.allclose(latents(tmp_path / "with"), latents(tmp_path / "without"), atol=1e-3)


def test_a_script_switches_and_cuts_and_the_two_differ(files: Path, tmp_path: Path) -> None:
    for name, script in (("switch", "a cat[1s] | a dog"), ("cut", "a cat[1s] || a dog"), ("none", "a cat")):
        make(tmp_path / name, files, "--prompt", script, "--frames", "9", "--model.window_frames", "6")
    whole = {name: latents(tmp_path / name) for name in ("switch", "cut", "none")}
    for name in ("switch", "cut"):
        torch.testing.assert_close(whole[name][:3], whole["none"][:3], rtol=0, atol=1e-5)
        assert not torch.allclose(whole[name][6:], whole["none"][6:], atol=1e-3)
    assert not torch.allclose(whole["switch"][6:], whole["cut"][6:], atol=1e-3)
    assert frames_in(tmp_path / "switch" / "0000.mp4") == 33
    assert frames_in(tmp_path / "cut" / "0000.mp4") == 33 - 3  # after a cut, one latent frame is one video frame again


def test_a_script_file_says_the_same_as_its_line(files: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.yaml"
    script.write_text("- prompt: a cat\n  seconds: 1\n- prompt: a dog\n  seconds: 1\n  enter: cut\n")
    lines = make(tmp_path / "file", files, "--script", str(script))
    make(tmp_path / "line", files, "--prompt", "a cat[1s] || a dog[1s]")
    assert torch.equal(latents(tmp_path / "file"), latents(tmp_path / "line"))
    assert [shot["enter"] for shot in lines[0]["script"]] == ["switch", "cut"]


def test_a_video_goes_on_from_an_image_and_from_a_video(files: Path, tmp_path: Path) -> None:
    picture, clip = tmp_path / "start.png", tmp_path / "start.mp4"
    pixels = torch.rand(1, 3, 40, 60).mul(255).byte()
    av.VideoFrame.from_ndarray(pixels[0].permute(1, 2, 0).contiguous().numpy(), format="rgb24").to_image().save(picture)
    write_mp4(clip, torch.rand(30, 3, 32, 48), fps=16)
    words = ["--prompt", "a cat", "--seed", "3"]
    make(tmp_path / "image", files, *words, "--frames", "3", "--start", str(picture), model="causal-forcing-framewise")
    make(tmp_path / "bare", files, *words, "--frames", "3", model="causal-forcing-framewise")
    assert not torch.allclose(latents(tmp_path / "image"), latents(tmp_path / "bare"), atol=1e-3)
    make(tmp_path / "video", files, *words, "--frames", "9", "--start", str(clip))
    vae = load_vae(files / "wan" / "Wan2.1_VAE.pth")
    end = vae.encode(read_last_frames(clip, 21, 32, 48)[None])[0]  # six latent frames: whole chunks of the 30 frames
    torch.testing.assert_close(latents(tmp_path / "video")[:6], end, rtol=0, atol=1e-4)
    assert latents(tmp_path / "video").shape[0] == 9


def test_a_video_of_another_rate_goes_in_in_its_own_time(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = {}
    for rate in (16, 60):
        shades = torch.arange(2 * rate)[:, None, None, None] / (2 * rate)
        write_mp4(tmp_path / f"{rate}.mp4", shades.expand(2 * rate, 3, 32, 48), rate)
        start = str(tmp_path / f"{rate}.mp4")
        make(tmp_path / f"{rate}", files, "--prompt", "a cat", "--frames", "9", "--start", start)
        ends[rate] = latents(tmp_path / f"{rate}")[:6]
    vae = load_vae(files / "wan" / "Wan2.1_VAE.pth")
    for rate, end in ends.items():  # six latent frames: whole chunks of 32 frames at 16 a second
        seen = read_last_frames(tmp_path / f"{rate}.mp4", 21, 32, 48, 16.0)
        assert seen[0].mean().item() == pytest.approx(11 / 32, abs=0.03)  # 1.3 s before the end
        torch.testing.assert_close(end, vae.encode(seen[None])[0], rtol=0, atol=1e-4)
    said = capsys.readouterr().err
    assert "60.mp4 comes at 60 frames a second: seen at 16" in said and "16.mp4 comes" not in said


@pytest.fixture(scope="module")
def trained(files: Path) -> Path:
    """A run of one step on the tiny Self-Forcing."""
    prompts = files / "prompts.txt"
    prompts.write_text("a cat runs\na dog sleeps\n")
    model = tiny_release.arguments(files, "self-forcing")
    main(["embed", str(prompts), "--model", "self-forcing", *model])
    out = files / "run"
    no_encoder = files / "vae-alone"
    no_encoder.mkdir()
    (no_encoder / "Wan2.1_VAE.pth").symlink_to(files / "wan" / "Wan2.1_VAE.pth")
    model = [f"--model.wan={no_encoder}" if word.startswith("--model.wan=") else word for word in model]
    main(["train", "self_forcing", *model, *tiny_release.judges(files), "--prompts", str(prompts), "--steps", "1",
          "--lora.rank", "4", "--rollout.group_size", "2", "--window.frames", "6", "--optimizer.lr", "0.1",
          "--out", str(out)])  # fmt: skip
    return out


def test_training_needs_no_text_encoder_and_its_adapter_generates_alike_in_every_layout(
    files: Path, trained: Path, tmp_path: Path
) -> None:
    words = ["--prompt", "a cat runs", "--frames", "3"]
    run, bare = tmp_path / "by-run", tmp_path / "bare"
    main(["generate", "--adapter", str(trained), "--latents", "--out", str(run), *words])
    make(bare, files, *words)
    assert not torch.allclose(latents(run), latents(bare), atol=1e-3)
    for form, name in (("peft", "peft"), ("comfyui", "comfy.safetensors"), ("diffusers", "diffusers.safetensors")):
        main(["export", str(trained), "--format", form, "--out", str(tmp_path / name)])
        make(tmp_path / f"by-{form}", files, *words, "--adapter", str(tmp_path / name))
        torch.testing.assert_close(latents(tmp_path / f"by-{form}"), latents(run), rtol=0, atol=1e-4)
    main(["export", str(trained), "--format", "merged", "--out", str(tmp_path / "merged.pt")])
    make(tmp_path / "by-merged", files, *words, f"--model.weights={tmp_path / 'merged.pt'}")
    torch.testing.assert_close(latents(tmp_path / "by-merged"), latents(run), rtol=0, atol=1e-4)


def foreign(path: Path, stem: str, header: dict[str, str], alpha: float | None = None) -> Path:
    """The tiny adapter as another program would keep it, of rank 4."""
    tensors = {}
    for name, value in tiny_release.lora_weights().items():
        layer, _, side = name.removeprefix("base_model.model.model.").partition(".lora_")
        named = stem + (layer.replace(".", "_") if stem.endswith("_") else layer)
        tensors[f"{named}.lora_{side}"] = value
        tensors |= {f"{named}.alpha": torch.tensor(alpha)} if alpha else {}
    save_file(tensors, path, header)
    return path


def test_an_adapter_acts_alike_wherever_its_alpha_stands_and_whoever_named_it(files: Path, tmp_path: Path) -> None:
    words = ["--prompt", "a cat runs", "--frames", "3"]
    header = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 2.0})}
    make(tmp_path / "bare", files, *words)
    made = []
    for stem, said, alpha in (("diffusion_model.", {}, 2.0), ("transformer.", header, None), ("lora_unet_", {}, 2.0)):
        path = foreign(tmp_path / f"{stem}.safetensors", stem, said, alpha)
        make(tmp_path / stem, files, *words, "--adapter", str(path))
        made.append(latents(tmp_path / stem))
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert not torch.allclose(made[0], latents(tmp_path / "bare"), atol=1e-3)


def test_an_export_is_what_its_name_and_its_options_say(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = foreign(tmp_path / "musubi.safetensors", "lora_unet_", {}, 2.0)
    model = ["--model", "self-forcing", *tiny_release.arguments(files, "self-forcing")]
    main(["export", str(adapter), *model, "--format", "merged", "--out", str(tmp_path / "merged.safetensors")])
    main(["export", str(adapter), *model, "--format", "merged", "--out", str(tmp_path / "merged.pt")])
    one, two = load_transformer(tmp_path / "merged.safetensors"), load_transformer(tmp_path / "merged.pt")
    assert load_file(tmp_path / "merged.safetensors").keys() and zipfile.is_zipfile(tmp_path / "merged.pt")
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    half = ["--format", "comfyui", "--dtype", "bfloat16", "--out", str(tmp_path / "half.safetensors")]
    main(["export", str(adapter), *half])
    kept = load_file(tmp_path / "half.safetensors")
    assert {str(kept[name].dtype) for name in kept if "lora" in name} == {"torch.bfloat16"}
    assert "diffusion_model.blocks.0.self_attn.q.lora_A.weight" in kept
    for words, said in (
        (["--format", "merged", *model, "--out", str(tmp_path / "x.gguf")], "should end in .safetensors or .pt"),
        (["--format", "diffusers", "--out", str(tmp_path / "x.pt")], "should end in .safetensors"),
        (
            ["--format", "comfyui", *model, "--out", str(tmp_path / "x.safetensors")],
            "leave it out for --format comfyui",
        ),
    ):
        assert said in fails(["export", str(adapter), *words], capsys)
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.parametrize("name, content, said", [
    ("page.pt", b"<!DOCTYPE html><title>Sign in</title>", "a web page ('Sign in')"),
    ("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "git lfs pull"),
    ("empty.pt", b"", "empty (0 bytes)"),
])  # fmt: skip
def test_weights_that_are_none_are_called_what_they_are(
    name: str, content: bytes, said: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    words = ["generate", "--model", "self-forcing", *tiny_release.arguments(files, "self-forcing"), "--prompt", "a cat",
             "--out", str(tmp_path / "out")]  # fmt: skip
    assert said in fails([*words, f"--model.weights={tmp_path / name}"], capsys)
    assert said in fails([*words, f"--adapter={tmp_path / name}"], capsys)


def test_weights_that_are_not_there_are_missed_before_the_text_encoder_works(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny_release.arguments(files, "self-forcing"), f"--model.text_cache={tmp_path / 'text'}"]
    words += [
        "--model.wan=no/wan",
        "--model.weights=no/weights.pt",
        "--prompt",
        "a cat",
        "--out",
        str(tmp_path / "out"),
    ]
    assert "no/weights.pt: no such file" in fails(["generate", "--model", "self-forcing", *words], capsys)


@pytest.mark.parametrize("size", [float("nan"), 1e37])
def test_numbers_that_no_video_can_have_are_refused_and_never_shown_as_black(
    size: float, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tiny_release.transformer_weights()
    weights["head.head.weight"] = weights["head.head.weight"] * size
    save_file(weights, tmp_path / "broken.safetensors")
    words = [*tiny_release.arguments(files, "self-forcing"), f"--model.weights={tmp_path / 'broken.safetensors'}"]
    command = ["generate", "--model", "self-forcing", *words, "--prompt", "a cat", "--out", str(tmp_path / "out")]
    assert "no longer finite, and its video would be black" in fails(command, capsys)
    assert not list((tmp_path / "out").glob("[0-9]*[0-9].mp4"))


def test_a_run_on_a_released_model_has_a_report_but_no_oracles(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["report", str(trained)])
    assert "videoalign_mq" in (trained / "report.html").read_text(encoding="utf-8")
    assert "those of the shapes world" in fails(["evaluate", str(trained)], capsys)


def test_rewards_that_know_the_shapes_alone_are_refused(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train",
        "self_forcing",
        "--rewards.0.name",
        "joint",
        "--rewards.0.model",
        "none",
        "--out",
        str(tmp_path / "out"),
    ]
    assert "judges the shapes world alone" in fails(words, capsys)


def test_a_merged_checkpoint_says_what_its_precision_loses(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(tiny_release.lora_weights(scale=0.002), tmp_path / "small.pt")
    words = ["export", str(tmp_path / "small.pt"), "--model", "self-forcing", "--format", "merged"]
    words += tiny_release.arguments(files, "self-forcing")
    main([*words, "--dtype", "bfloat16", "--out", str(tmp_path / "half.pt")])
    assert "of the size of the change; --dtype float32 keeps it" in capsys.readouterr().out
    main([*words, "--out", str(tmp_path / "whole.pt")])
    assert "of the size of the change" not in capsys.readouterr().out
    assert "is made from a released model" in fails(
        ["export", str(tmp_path / "small.pt"), "--format", "merged", "--out", str(tmp_path / "x.pt")], capsys
    )


def test_embedding_is_done_once_and_for_one_encoder(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a small cat\na big dog\na small cat[2s] || a big dog\n")
    model = [word for word in tiny_release.arguments(files, "self-forcing") if "text_cache" not in word]
    command = ["embed", str(prompts), *model, f"--model.text_cache={tmp_path / 'text'}"]
    main(command)
    assert "2 prompts" in (said := capsys.readouterr().out) and "2 of them new" in said
    main(command)
    assert "0 of them new" in capsys.readouterr().out
    cache = TextCache.open(tmp_path / "text")
    assert cache.encode(["a small cat"]).shape == (1, 512, 48)
    owner = tmp_path / "text" / "encoder.json"
    owner.write_text(json.dumps({"encoder": "f" * 64, "dim": 48}))
    prompts.write_text("a new cat\n")
    assert "another text encoder" in fails(command, capsys)


def test_the_doctor_lets_start_what_could_start_and_names_what_is_missing(
    files: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_release.arguments(files, "self-forcing")
    command = ["doctor", "self_forcing", *model, *tiny_release.judges(files), "--rollout.group_size", "2",
               "--prompts", str(files / "prompts.txt"), "--window.frames", "6",
               "--lora.rank", "4", "--out", str(tmp_path / "run")]  # fmt: skip
    main(command)
    assert "NO" not in capsys.readouterr().out
    other_size = tmp_path / "other"
    TextCache.create(other_size, "e" * 64, 40)
    for change, words in (
        ("--model.wan=/nowhere", "no such file or folder"),
        ("--rewards.0.model.weights=/nowhere", "reward hpsv3: /nowhere: no such file or folder"),
        (f"--rewards.1.model.weights={files / 'HPSv3.safetensors'}", "rm_head.weight is missing"),
        (f"--model.weights={files / 'prompts.txt'}", "neither a safetensors file"),
        (f"--model.text_cache={tmp_path / 'none'}", "astrolabe embed"),
        ("--window.frames=7", "nearest are 6 and 9"),
        ("--lora.rank=9999999", "lower lora.rank"),
        ("--lora.rank=9999999", "are free; name another --out"),
        (f"--model.text_cache={other_size}", "embeddings of 40 numbers a token"),
        (f"--out={trained}", "another configuration"),
        ("--algorithm.levels_per_sample=9", "choose at most 4"),
        (f"--model.adapter={files / 'prompts.txt'}", "neither a safetensors file"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*command, change])
        said = capsys.readouterr().out
        assert stopped.value.code == 1 and words in " ".join(said.split()), said
    assert not (tmp_path / "run").exists()


def test_the_doctor_lets_a_run_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "shapes_tiny", "--out", str(tmp_path / "run")])
    main(["doctor", "shapes_tiny", "--out", str(tmp_path / "run")])
    assert "NO" not in capsys.readouterr().out


def test_new_prompts_are_embedded_while_a_program_runs(files: Path, tmp_path: Path) -> None:
    tiny_release.arguments(files, "self-forcing")
    settings = ReleasedSettings(name="self-forcing", wan=str(files / "wan"), text_cache=str(tmp_path / "text"))
    encoder = LiveTextEncoder(settings)
    first = encoder.encode(["a cat", "a dog"])
    assert torch.equal(TextCache.open(tmp_path / "text").encode(["a dog"]), first[1:])
    assert torch.equal(encoder.encode(["a bird", "a cat"])[1:], first[:1])


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models"])
    said = capsys.readouterr().out
    for words in ("shapes-2step\n", "krea-realtime-14b", "window   12", "1000/500 (first chunk 1000/750/500/250)"):
        assert words in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "a cat[0s] | a dog"], "above zero"),
        (["--prompt", "a cat[5s] | a dog[5s]", "--seconds", "30"], "lasts 10 s and 30 s were asked for"),
        (["--prompt", "a cat", "--seconds", "-1"], "above zero"),
        (["--prompt", "a cat", "--seconds", "0.1"], "shortest video"),
        (["--prompt", "a cat", "--frames", "7"], "nearest are 6 and 9"),
        (["--prompt", "a cat", "--batch", "0"], "at least one"),
        (["--prompt", "a cat", "--model.window", "3"], "window_frames"),
        (["--prompt", "a cat", "--model.window_frames", "2"], "must be at least 3"),
        (["--prompt", "a cat", "--model.height", "50"], "multiple of 16"),
        (["--prompt", "a cat", "--model.container", "generator"], "no causal Wan in generator"),
        (["--prompt", "a cat", "--start", "nothing.png"], "nothing.png"),
        (["--prompt", "a cat", "--adapter", "nothing"], "nothing"),
        (["--prompt", "a cat", "--model.adapter", "nothing"], "model.adapter=nothing: no such file or folder"),
        (["--prompt", "a cat", "--steps", "3"], "unknown argument --steps"),
    ],
)
def test_a_users_mistake_is_one_line_and_leaves_nothing(
    words: list[str], said: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "--model", "self-forcing", *tiny_release.arguments(files, "self-forcing")]
    assert said in fails([*command, *words, "--out", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()


def test_embeddings_for_another_model_are_refused(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TextCache.create(tmp_path / "text", "e" * 64, 40)
    (tmp_path / "prompts.txt").write_text("a cat\n")
    command = ["train", "self_forcing", *tiny_release.arguments(files, "self-forcing"), *tiny_release.judges(files)]
    command += ["--out", str(tmp_path / "out")]
    command += [f"--model.text_cache={tmp_path / 'text'}", "--prompts", str(tmp_path / "prompts.txt")]
    assert "embeddings of 40 numbers a token, the model takes 48" in fails(command, capsys)


def test_videos_are_never_overwritten(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "out", files, "--prompt", "a cat", "--frames", "3")
    before = (tmp_path / "out" / "0000.mp4").read_bytes()
    command = [
        "generate",
        "--model",
        "self-forcing",
        *tiny_release.arguments(files, "self-forcing"),
        "--prompt",
        "a dog",
    ]
    assert "exists" in fails([*command, "--out", str(tmp_path / "out")], capsys)
    assert (tmp_path / "out" / "0000.mp4").read_bytes() == before
    (tmp_path / "file").write_text("precious")
    assert "is a file" in fails([*command, "--out", str(tmp_path / "file")], capsys)


def test_a_video_that_was_stopped_plays_as_far_as_it_came(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["generate", "--model", "self-forcing", *tiny_release.arguments(files, "self-forcing"),
               "--prompt", "a cat", "--seconds", "3600", "--model.window_frames", "6", "--out", str(out)]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "astrolabe", *command], env=os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    part, deadline = out / "0000.part.mp4", time.monotonic() + 120
    while not (part.exists() and part.stat().st_size > 20_000) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    killed = part.read_bytes()  # as a crash at this moment would leave it
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "plays as far as it came" in error
    assert frames_in(part) > 16 and not (out / "0000.mp4").exists()
    assert not (out / "videos.jsonl").exists()  # it lists what is whole
    (tmp_path / "killed.mp4").write_bytes(killed)
    shown: list[Any] = []
    with av.open(str(tmp_path / "killed.mp4")) as video, suppress(av.FFmpegError):  # its last packet is cut in two
        for frame in video.decode(video=0):
            shown.append(frame)
    assert len(shown) > 1


def on_a_full_disk(*command: str) -> str:
    """Run a command that can write no file of more than 20 kB: exit code 2 and one line, which is returned."""
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); import signal; "
    limit += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from astrolabe.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", limit, *command], env=os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_video_for_a_full_disk_is_one_line_and_never_looks_whole(files: Path, tmp_path: Path) -> None:
    command = ["generate", "--model", "self-forcing", *tiny_release.arguments(files, "self-forcing"),
               "--prompt", "a cat", "--seconds", "30", "--model.window_frames", "6",
               "--out", str(tmp_path / "out")]  # fmt: skip
    assert "0000.part.mp4" in on_a_full_disk(*command)
    assert not (tmp_path / "out" / "0000.mp4").exists()


@pytest.mark.parametrize("form", ["comfyui", "merged"])
def test_an_export_to_a_full_disk_leaves_nothing(form: str, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / f"{form}.safetensors"
    assert str(out) in on_a_full_disk("export", str(trained), "--format", form, "--out", str(out))
    assert list(out.parent.iterdir()) == []


def test_several_processes_share_the_work(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--prompt", "a cat", "--prompt", "a dog", "--prompt", "a bird", "--frames", "3", "--latents"]
    command = ["generate", "--model", "self-forcing", *tiny_release.arguments(files, "self-forcing"), *words]
    main([*command, "--out", str(tmp_path / "one")])
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        main([*command, "--out", str(tmp_path / "two")])
    for number in range(3):
        assert torch.equal(latents(tmp_path / "one", number), latents(tmp_path / "two", number))
    counts = [len((tmp_path / "two" / f"videos.rank{rank}.jsonl").read_text().splitlines()) for rank in (0, 1)]
    assert counts == [2, 1]
