"""Candidates from one frozen history equal candidates that each have it to themselves."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import Tensor

from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rollout.live import PlacedNoise, VideoStream
from astrolabe.rollout.window import candidates, go_on_with
from astrolabe.runtime.errors import UserError
from astrolabe.shapes.model import load_shapes_model
from tests.conftest import tiny_stream

PROMPTS = ["a red circle moving left", "a blue square bouncing"]


@pytest.fixture(scope="module")
def model() -> WanGenerator:
    """The embedded model with a sink and relative positions, and a window that a clip outgrows."""
    shapes = load_shapes_model()
    shapes.stream = tiny_stream(3, window=9, sink=3, positions="relative")
    return shapes


def history(model: WanGenerator, chunks: int) -> VideoStream:
    stream = VideoStream(model, model.encode_text(PROMPTS), PlacedNoise(1, [0, 1]))
    for _ in islice(stream, chunks):
        pass
    return stream


class Rows(PlacedNoise):
    """The noise of one video of a group of candidates, chunk 0 being the first of the clip."""

    def __init__(self, seed: int, video: int, behind: int):
        super().__init__(seed, [video])
        self.behind = behind

    def __call__(self, chunk: int, step: int, shape: object) -> Tensor:
        return super().__call__(chunk - self.behind, step, shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunks", [0, 1, 4])
def test_a_candidate_equals_the_same_stream_gone_on_alone(model: WanGenerator, chunks: int) -> None:
    clips = candidates(history(model, chunks), 3, 9, seed=7, micro_batch=3)
    for prompt, number in ((0, 1), (1, 2)):
        row = prompt * 3 + number
        alone = VideoStream(model, model.encode_text([PROMPTS[prompt]]), PlacedNoise(1, [prompt]))
        for _ in islice(alone, chunks):
            pass
        alone.noise = Rows(7, row, behind=chunks)
        steps = list(islice(alone, 3))
        expected = torch.cat([step.latents for step in steps], 1)[0]
        torch.testing.assert_close(clips.latents[row], expected, rtol=0, atol=1e-3)
        pixels = torch.cat([step.video for step in steps if step.video is not None], 1)[0]
        torch.testing.assert_close(clips.video[row], pixels, rtol=0, atol=1e-3)


def test_the_micro_batch_changes_nothing(model: WanGenerator) -> None:
    stream = history(model, 2)
    whole = candidates(stream, 4, 6, seed=7, micro_batch=4)
    for size in (1, 3):
        parts = candidates(stream, 4, 6, seed=7, micro_batch=size)
        torch.testing.assert_close(parts.latents, whole.latents, rtol=0, atol=1e-3)
        torch.testing.assert_close(parts.video, whole.video, rtol=0, atol=1e-3)


def test_the_stream_goes_on_with_the_chosen_candidates(model: WanGenerator) -> None:
    stream = history(model, 2)
    kept = {name: value.clone() for name, value in stream.tensors().items()}
    clips = candidates(stream, 3, 6, seed=7, micro_batch=3)
    assert all(torch.equal(value, kept[name]) for name, value in stream.tensors().items()), "the history is only read"
    go_on_with(stream, clips, [2, 0])
    assert stream.frames == 12 and stream.index == 4
    again = history(model, 2)
    again.extend(clips.latents[[2, 3]])
    one, two = stream.step(), again.step()
    assert torch.equal(one.latents, two.latents) and one.video is not None and two.video is not None
    assert torch.equal(one.video, two.video) and one.video.shape[1] == 12


def test_what_cannot_be_split_is_refused(model: WanGenerator) -> None:
    stream = history(model, 1)
    with pytest.raises(UserError, match="nearest are 3 and 6"):
        candidates(stream, 2, 4, seed=7, micro_batch=2)
    for size in (0, 3):
        with pytest.raises(UserError, match="from 1 to group_size=2"):
            candidates(stream, 2, 6, seed=7, micro_batch=size)
