"""What ships is what the card says."""

from __future__ import annotations

import hashlib
import json

import torch

from astrolabe.evaluation.suites import Suite, run_suite
from astrolabe.rollout.videos import generate, generate_batches, video_noise
from astrolabe.shapes.captions import split
from astrolabe.shapes.model import SHIPPED, load_shapes_model
from astrolabe.shapes.oracles import judge
from astrolabe.shapes.settings import CLIP_FRAMES
from astrolabe.shapes.world import ALL_SCENES, render

CARD = json.loads((SHIPPED / "card.json").read_text(encoding="utf-8"))
PROMPTS = ["a red circle moving left", "a pulsing blue square", "green triangle, up"]


def test_the_shipped_files_are_the_ones_the_card_describes() -> None:
    assert set(CARD["files"]) == {path.name for path in SHIPPED.glob("*.safetensors")}
    for name, digest in CARD["files"].items():
        assert hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest() == digest
    assert sum((SHIPPED / name).stat().st_size for name in CARD["files"]) < 16e6
    assert 2e6 <= CARD["parameters"]["transformer."] <= 5e6


def test_by_its_card_the_student_is_distilled() -> None:
    scores = CARD["held_out"]["scores"]
    assert scores["student, 4 steps"]["joint"] > scores["teacher, 4 steps (undistilled)"]["joint"]
    assert CARD["ground_truth"]["rendered"] == 1.0 and CARD["ground_truth"]["through_codec"] >= 0.97
    assert sum(CARD["seconds"].values()) < 90 * 60


def test_the_oracles_read_ground_truth_through_the_shipped_codec() -> None:
    codec = load_shapes_model().codec
    assert codec is not None
    scenes = ALL_SCENES[::4]
    video = render(scenes, 45, torch.Generator().manual_seed(1))
    assert judge(video, scenes)["joint"].mean() == 1.0
    with torch.no_grad():
        decoded = torch.cat([codec.decode(codec.encode(part))[0] for part in video.split(16)])  # type: ignore[attr-defined]
    assert judge(decoded, scenes)["joint"].mean() >= 0.97


def test_a_video_is_the_same_alone_and_in_any_batch() -> None:
    model = load_shapes_model()
    text = model.encode_text(PROMPTS)
    latents, video = generate_batches(model, text, 6, seed=5, micro_batch=2)
    alone = generate(model, text[2:], 6, video_noise(5, [2]))
    torch.testing.assert_close(latents[2:], alone[0], rtol=0, atol=2e-4)
    torch.testing.assert_close(video[2:], alone[1], rtol=0, atol=2e-4)


def test_the_shipped_student_makes_what_it_is_asked_for_more_often_than_not() -> None:
    model = load_shapes_model(torch.bfloat16)
    measured = run_suite(model, Suite("validation", (7,), CLIP_FRAMES), keep=(0, 3), batch=28)
    assert measured.scores["joint"].shape == (len(split("validation")), 1)
    assert 0.3 < measured.scores["joint"].mean() < 0.95
    assert measured.videos.shape == (2, 45, 3, 64, 64) and len(measured.kept_prompts) == 2
