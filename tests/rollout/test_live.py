"""A stream that is steered while it runs."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rollout.live import PlacedNoise, VideoStream, start
from astrolabe.rollout.stream import stream
from astrolabe.runtime.checkpoint import load_tensors, save_tensors
from astrolabe.runtime.errors import UserError
from astrolabe.shapes.model import load_shapes_model
from tests.conftest import LATENT, tiny_stream, tiny_wan, tiny_world
from tests.golden import replay
from tests.tiny_release import GOLDEN


def text(seed: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 5, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Doubled(PlacedNoise):
    """The same noise in float64."""

    def __call__(self, chunk: int, step: int, shape: object) -> Tensor:
        return super().__call__(chunk, step, shape).double()  # type: ignore[arg-type]


def live(model: WanGenerator, seed: int = 1, videos: tuple[int, ...] = (0,)) -> VideoStream:
    return VideoStream(model, text(seed, len(videos)), Doubled(3, videos), decode=False)


def latents(videos: VideoStream, chunks: int) -> Tensor:
    return torch.cat([chunk.latents for chunk in islice(videos, chunks)], 1)


STREAMS = {
    "everything": tiny_stream(2),
    "window and sink": tiny_stream(2, window=6, sink=2),
    "relative": tiny_stream(2, window=6, sink=2, positions="relative"),
    "rebuilt": replace(tiny_stream(2), rebuild_frames=2),
}


@pytest.mark.parametrize("name", ["everything", "window and sink", "relative"])
def test_step_by_step_is_the_stream_of_training(name: str) -> None:
    model = tiny_wan(STREAMS[name])
    with torch.no_grad():
        whole = torch.cat(list(stream(model, model.condition(text(1)), 1, 12, Doubled(3, (0,)))), 1)
    assert torch.equal(latents(live(model), 6), whole)


def test_a_batch_element_is_the_same_video_alone() -> None:
    model = tiny_wan(STREAMS["relative"])
    both = VideoStream(model, text(1, 2), Doubled(3, (4, 7)), decode=False)
    alone = VideoStream(model, text(1, 2)[1:], Doubled(3, (7,)), decode=False)
    torch.testing.assert_close(latents(both, 5)[1:], latents(alone, 5), rtol=0, atol=1e-9)


def told(model: WanGenerator, how: str, prompts: str | list[str] | Tensor) -> Tensor:
    """What two videos show when another prompt comes after two chunks."""
    videos = start(model, ["a red circle", "a green square"], seed=3)
    before = latents(videos, 2)
    getattr(videos, how)(prompts)
    return torch.cat([before, latents(videos, 2)], 1)


@pytest.mark.parametrize("how", ["switch", "cut"])
def test_another_prompt_comes_as_text_for_all_videos_or_for_each(how: str) -> None:
    model = tiny_world(STREAMS["window and sink"])
    embedded = told(model, how, model.encode_text(["a bird", "a bird"]))
    assert torch.equal(told(model, how, "a bird"), embedded)
    assert torch.equal(told(model, how, ["a bird", "a bird"]), embedded)
    assert not torch.equal(told(model, how, ["a bird", "a dog"])[1], embedded[1])


def test_a_stream_of_one_prompt_is_a_stream_of_a_list_of_one() -> None:
    model = tiny_world(STREAMS["everything"])
    assert torch.equal(latents(start(model, "a cat"), 2), latents(start(model, ["a cat"]), 2))


def test_a_stream_of_no_prompts_is_refused() -> None:
    with pytest.raises(UserError, match="no prompts"):
        start(tiny_world(STREAMS["everything"]), [])


def test_prompts_of_another_number_than_videos_are_refused() -> None:
    videos = start(tiny_world(STREAMS["everything"]), ["a cat", "a dog"])
    with pytest.raises(UserError, match="the new prompts have shape"):
        videos.switch(["a bird", "a fish", "a worm"])


@pytest.mark.parametrize("name", STREAMS)
def test_an_interrupted_stream_goes_on_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    model = tiny_wan(STREAMS[name])
    whole, first = live(model), live(model)
    expected = latents(whole, 8)
    begun = latents(first, 5)
    save_tensors(tmp_path / "state.safetensors", first.tensors(), {})
    second = live(model, seed=9)
    second.restore(load_tensors(tmp_path / "state.safetensors")[0])
    assert torch.equal(torch.cat([begun, latents(second, 3)], 1), expected)


@pytest.mark.parametrize("name", STREAMS)
def test_what_was_kept_of_a_stream_is_not_changed_by_its_going_on(name: str) -> None:
    model = tiny_wan(STREAMS[name])
    first = live(model)
    latents(first, 5)
    kept = first.tensors()
    expected = latents(first, 4)
    second = live(model, seed=9)
    second.restore(kept)
    assert torch.equal(latents(second, 4), expected)


@pytest.mark.parametrize("codec", ["shapes", "wan"])
def test_a_continued_stream_decodes_as_if_it_had_not_been_interrupted(codec: str, tmp_path: Path) -> None:
    if codec == "shapes":
        model = load_shapes_model()
        prompts = model.encode_text(["a red circle moving left"])
    else:
        path = str(GOLDEN / "wan_vae.safetensors")
        vae = replay.assemble_vae(*replay.weights_of(path), replay.vae_sizes(replay.read(path)[0]))
        model = tiny_wan(STREAMS["window and sink"], dtype=torch.float32)
        model.codec, prompts = vae, text(1).float()
    first = VideoStream(model, prompts, PlacedNoise(3, [0]))
    for _ in range(2):
        first.step()
    save_tensors(tmp_path / "state.safetensors", first.tensors(), {})
    second = VideoStream(model, prompts, PlacedNoise(3, [0]))
    second.restore(load_tensors(tmp_path / "state.safetensors")[0])
    for _ in range(2):
        one, two = first.step().video, second.step().video
        assert one is not None and two is not None and torch.equal(one, two)


def test_memory_does_not_grow_with_the_video() -> None:
    videos = live(tiny_wan(STREAMS["relative"]))
    latents(videos, 4)
    before = sum(tensor.nbytes for tensor in videos.tensors().values())
    latents(videos, 60)
    assert sum(tensor.nbytes for tensor in videos.tensors().values()) == before


@torch.no_grad()
def test_a_switch_runs_the_cached_frames_again_under_the_new_prompt() -> None:
    model = tiny_wan(STREAMS["everything"])
    videos = live(model)
    history = latents(videos, 3)
    videos.switch(text(2))
    afresh = VideoStream(model, text(2), Doubled(3, (0,)), decode=False)
    afresh.begin_with(history)
    afresh.index = 3
    torch.testing.assert_close(latents(videos, 2), latents(afresh, 2), rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_switch_to_the_same_prompt_changes_nothing_while_all_is_remembered() -> None:
    model = tiny_wan(STREAMS["everything"])
    switched, left = live(model), live(model)
    latents(switched, 3), latents(left, 3)
    switched.switch(text(1))
    torch.testing.assert_close(latents(switched, 2), latents(left, 2), rtol=0, atol=1e-9)


@torch.no_grad()
def test_after_eviction_a_switch_keeps_sink_and_recent_frames_where_they_stand() -> None:
    for name in ("window and sink", "relative"):
        model = tiny_wan(STREAMS[name])
        videos = live(model)
        history = latents(videos, 7)
        videos.switch(text(2))
        assert videos.cache.position == 14 and videos.cache.frames == 6
        condition, cache = model.condition(text(2)), model.new_cache(1, 6)
        model.commit(history[:, :2], condition, cache)
        cache.skip(8)
        for first in (10, 12):
            model.commit(history[:, first : first + 2], condition, cache)
        for mine, theirs in zip(videos.cache.tensors().values(), cache.tensors().values(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


def test_a_switch_a_cut_and_neither_are_three_different_videos() -> None:
    model = tiny_wan(STREAMS["window and sink"])
    ways: list[Tensor] = []
    for change in (lambda v: None, lambda v: v.switch(text(2)), lambda v: v.cut(text(2))):
        videos = live(model)
        latents(videos, 4)
        change(videos)
        ways.append(latents(videos, 1))
    assert all((ways[i] - ways[j]).abs().max() > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_a_cut_remembers_nothing() -> None:
    model = tiny_wan(STREAMS["everything"])
    cut, other = live(model, seed=1), live(model, seed=5)
    for videos in (cut, other):
        latents(videos, 3)
        videos.cut(text(2))
    assert torch.equal(latents(cut, 2), latents(other, 2))


@torch.no_grad()
def test_a_rebuilt_cache_holds_the_last_clean_frames_alone() -> None:
    model = tiny_wan(STREAMS["rebuilt"])
    videos = live(model)
    history = latents(videos, 4)
    next_chunk = latents(videos, 1)
    condition, cache = model.condition(text(1)), model.new_cache(1, 4)
    cache.skip(6)
    model.commit(history[:, 6:8], condition, cache)
    plain = VideoStream(tiny_wan(STREAMS["everything"]), text(1), Doubled(3, (0,)), decode=False)
    plain.cache, plain.condition, plain.index, plain.frames = cache, condition, 4, 8
    torch.testing.assert_close(latents(plain, 1), next_chunk, rtol=0, atol=1e-9)


def test_the_first_chunk_may_take_its_own_steps() -> None:
    model = tiny_wan(replace(tiny_stream(2), denoising_steps=(1000,), first_chunk_steps=(1000, 500)))
    seen: list[tuple[int, int]] = []

    class Counted(Doubled):
        def __call__(self, chunk: int, step: int, shape: object) -> Tensor:
            seen.append((chunk, step))
            return super().__call__(chunk, step, shape)

    videos = VideoStream(model, text(1), Counted(0, (0,)), decode=False)
    latents(videos, 3)
    assert seen == [(0, 0), (0, 1), (1, 0), (2, 0)]


def test_a_stream_can_begin_with_given_frames() -> None:
    model = tiny_wan(STREAMS["window and sink"])
    given = torch.randn(1, 4, *LATENT, dtype=torch.float64)
    videos = live(model)
    videos.begin_with(given)
    assert videos.cache.position == 4
    other = live(model)
    other.begin_with(given + 1)
    assert not torch.allclose(latents(videos, 1), latents(other, 1))


def test_what_does_not_fit_is_refused() -> None:
    videos = live(tiny_wan(tiny_stream(2, window=5, sink=1)))
    with pytest.raises(UserError, match="does not fit"):
        videos.begin_with(torch.zeros(1, 3, *LATENT))
    latents(videos, 1)
    with pytest.raises(UserError, match="only be begun once"):
        videos.begin_with(torch.zeros(1, 2, *LATENT))
    with pytest.raises(UserError, match="not whole chunks"):
        videos.switch(text(2))
    with pytest.raises(UserError, match="rebuild_frames=3"):
        replace(tiny_stream(2), rebuild_frames=3)
    with pytest.raises(UserError, match="sink_frames=2 too: use 0"):
        replace(tiny_stream(2, sink=2), rebuild_frames=2)
