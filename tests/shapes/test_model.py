"""What ships is what the card says."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from astrolabe.evaluation.suites import Suite, run_suite
from astrolabe.pretrain.card import as_markdown, failed
from astrolabe.rollout.videos import generate, generate_batches, video_noise
from astrolabe.shapes.captions import split
from astrolabe.shapes.model import SHIPPED, load_shapes_model
from astrolabe.shapes.oracles import judge
from astrolabe.shapes.settings import CLIP_FRAMES, STREAMS, ShapesName
from astrolabe.shapes.world import ALL_SCENES, GOOD, render

CARD = json.loads((SHIPPED / "card.json").read_text(encoding="utf-8"))
PROMPTS = ["a red circle moving left", "a pulsing blue square", "green triangle, up"]


def test_the_shipped_files_are_the_ones_the_card_describes() -> None:
    assert set(CARD["files"]) == {path.name for path in SHIPPED.glob("*.safetensors")}
    for name, digest in CARD["files"].items():
        assert hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest() == digest
    assert set(CARD["files"]) == {f"{name}.safetensors" for name in ("codec", *STREAMS)}
    assert sum((SHIPPED / name).stat().st_size for name in CARD["files"]) < 32e6
    assert 2e6 <= CARD["parameters"]["transformer"] <= 5e6


def test_by_their_card_the_bases_leave_alignment_work_to_do_on_most_prompts() -> None:
    assert failed(CARD) == []
    assert CARD["ground_truth"]["rendered"] == 1.0 and CARD["ground_truth"]["through_codec"] >= 0.97
    assert (SHIPPED / "CARD.md").read_text(encoding="utf-8") == as_markdown(CARD)


def test_the_oracles_read_ground_truth_through_the_shipped_codec() -> None:
    codec = load_shapes_model().codec
    assert codec is not None
    scenes = ALL_SCENES[::4]
    video = render(scenes, 45, torch.Generator().manual_seed(1), looks=GOOD)
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


@pytest.mark.parametrize("name", list(STREAMS))
def test_a_base_is_as_its_card_says(name: ShapesName) -> None:
    measured = run_suite(load_shapes_model(torch.bfloat16, name), Suite("test", (7,), CLIP_FRAMES), (), batch=22)
    for measure in ("joint", "right", "made"):
        told, found = CARD["models"][name]["student"][measure], measured.scores[measure]
        assert found.shape == (len(split("test")), 1)
        # three standard errors of a share among so many scenes, were they all as uncertain as a coin
        assert abs(found.mean() - told) < 3 * 0.5 / len(found) ** 0.5
