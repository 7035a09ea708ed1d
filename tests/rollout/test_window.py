"""Candidates of a window are what the streams would have become, one by one; and training sees what they saw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from astrolabe.data.scripts import parse_script
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rollout.live import PlacedNoise, VideoStream
from astrolabe.rollout.settings import RolloutSettings, WindowSettings
from astrolabe.rollout.window import Windows
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.progress import Task
from astrolabe.types import Footage, Rollout, to_video
from astrolabe.words import Span
from tests.conftest import tiny_stream, tiny_world


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    """Noise and latents in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


FPS, GROUP, FRAMES = 16, 3, 9
PLAIN = ("a cat", "a dog")
SCRIPTS = ("a cat | a bird", "a dog || a fish", "a cow | a pig || a hen")  # of 18 frames: at 9; at 9; at 6 and 12


def windows_of(
    model: WanGenerator, prompts: Sequence[str], start: int, micro_batch: int = GROUP, frames: int = FRAMES,
    video: int = 18, credit: float = 0.0, group: int = GROUP,
) -> Windows:  # fmt: skip
    """Streams that stand at ``start``."""
    rollout = RolloutSettings(prompts=len(prompts), group_size=group, micro_batch=micro_batch)
    made = Windows(model, rollout, WindowSettings(frames=frames, video_frames=video, credit=credit))
    made.begin(prompts, [parse_script(line) for line in prompts], 1, start)
    return made


class CandidatesNoise(PlacedNoise):
    """Noise of the history, and from chunk ``behind`` on that of one candidate."""

    def __init__(self, prompt: int, candidate: int, behind: int):
        super().__init__(1, [prompt])
        self.own, self.behind = PlacedNoise(7, [candidate]), behind

    def __call__(self, chunk: int, step: int, shape: Sequence[int]) -> Tensor:
        if chunk < self.behind:
            return super().__call__(chunk, step, shape)
        return self.own(chunk - self.behind, step, shape)


def alone(
    model: WanGenerator, line: str, start: int, prompt: int, candidate: int, video: int = 18
) -> tuple[Tensor, Tensor]:
    """Latents and pixels of one candidate, streamed by itself from the beginning as any video is."""
    script, chunk = parse_script(line), model.stream.chunk_frames
    ends = [video * (shot + 1) // len(script) for shot in range(len(script))]
    noise = CandidatesNoise(prompt, candidate, start // chunk)
    stream = VideoStream(model, model.encode_text([script[0].prompt]), noise)
    latents, pixels, shot = [], [], 0
    for frame in range(0, start + FRAMES, chunk):
        if frame == ends[shot]:
            shot += 1
            text = model.encode_text([script[shot].prompt])
            (stream.cut if script[shot].enter == "cut" else stream.switch)(text)
        made = stream.step()
        assert made.video is not None
        if frame >= start:
            latents.append(made.latents[0])
            pixels.append(made.video[0])
    return torch.cat(latents), torch.cat(pixels)


def clips_of(rollout: Rollout, rows: Sequence[int]) -> Tensor:
    """The clips of some candidates, from footage that was kept."""
    found = []
    for row in rows:
        own = [part.frames[part.rows == row] for part in rollout.footage if part.clip]
        found.append(torch.cat([frames for frames in own if len(frames)], 1))
    return torch.cat(found)


STREAMS = (tiny_stream(3, 9), tiny_stream(3, 9, 3, "relative"), tiny_stream(3), tiny_stream(1, 6, 2))


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("prompts", "start"), [(PLAIN, 0), (PLAIN, 9), (SCRIPTS, 0), (SCRIPTS, 6), (SCRIPTS, 9)])
def test_a_candidate_is_what_its_stream_would_have_become(stream: Any, prompts: tuple[str, ...], start: int) -> None:
    model = tiny_world(stream)
    rollout = windows_of(model, prompts, start).candidates(7)
    for row in range(len(prompts) * GROUP):
        latents, pixels = alone(model, prompts[row // GROUP], start, row // GROUP, row)
        torch.testing.assert_close(rollout.latents[row], latents, rtol=0, atol=1e-9)
        torch.testing.assert_close(to_video(clips_of(rollout, [row]))[0].double(), pixels, rtol=0, atol=0.51 / 255)


def test_the_first_chunk_of_a_video_alone_has_steps_of_its_own() -> None:
    stream = replace(tiny_stream(3, 9), denoising_steps=(1000, 500), first_chunk_steps=(1000, 750, 500, 250))
    for start, steps in ((0, [4, 2, 2]), (6, [2, 2, 2])):
        model = tiny_world(stream)
        streams = windows_of(model, ("a cat",), start)
        watch = Watching(model)
        streams.candidates(7)
        assert len(watch.seen) == sum(steps)
    model = tiny_world(stream)
    streams = windows_of(model, ("a cat || a dog",), 3)
    watch = Watching(model)
    streams.candidates(7)
    assert len(watch.seen) == 2 + 2 + 4  # after a cut a video begins anew


def test_candidates_are_made_under_the_policy_in_force_now() -> None:
    """Text keys and values too: a history may be older than the policy, the prompt's are not."""
    model = tiny_world(tiny_stream(3, 9))
    streams = windows_of(model, ("a cat",), 6)
    before = streams.candidates(7).latents
    with torch.no_grad():
        for block in model.transformer.blocks:
            block.cross_attn.v.weight *= 1.5  # type: ignore[union-attr,operator]
    fresh = model.condition(streams.tracks[0].texts[0])
    after = streams.candidates(7).latents
    assert not torch.allclose(after, before, atol=1e-6)
    assert all(torch.equal(mine[1], other[1]) for mine, other in zip(streams.tracks[0].stream.condition, fresh,
                                                                     strict=True))  # fmt: skip


def test_candidates_only_read_the_streams() -> None:
    model = tiny_world(tiny_stream(3, 9, 3))
    streams = windows_of(model, SCRIPTS, 3, group=2, micro_batch=1, frames=6)
    for turn in range(2):
        first = streams.candidates(turn)
        kept = {name: value.clone() for name, value in streams.tensors().items()}
        assert torch.equal(streams.candidates(turn).latents, first.latents)
        assert all(torch.equal(value, kept[name]) for name, value in streams.tensors().items())
        streams.go_on(first.latents, [1, 0, 1])
    assert streams.position == 15


def test_the_chosen_candidates_become_history() -> None:
    model = tiny_world(tiny_stream(3, 9, 3, "relative"))
    streams = windows_of(model, SCRIPTS, 3, frames=6)
    rollout = streams.candidates(7)
    streams.go_on(rollout.latents, [2, 0, 1])
    for prompt, chosen in enumerate((2, 0, 1)):
        track = next(track for track in streams.tracks if prompt in track.groups)
        row = track.groups.index(prompt)
        latents, _ = alone(model, SCRIPTS[prompt], 3, prompt, prompt * GROUP + chosen)
        held = torch.cat([*track.stream.sink, *track.stream.recent], 1)[row]
        torch.testing.assert_close(held[-3:], latents[3:6], rtol=0, atol=1e-9)


@pytest.mark.parametrize("credit", [0.0, 0.5])
def test_streams_go_on_from_their_tensors_exactly(credit: float) -> None:
    model = tiny_world(tiny_stream(3, 9, 3, "relative"))
    streams = windows_of(model, SCRIPTS, 3, frames=6, credit=credit)
    streams.go_on(streams.candidates(7).latents, [1, 0, 2])
    again = windows_of(model, SCRIPTS, 0, frames=6, credit=credit)
    again.restore({name: value.clone() for name, value in streams.tensors().items()})
    one, two = streams.candidates(8), again.candidates(8)
    assert again.position == 9 and torch.equal(one.latents, two.latents)
    assert len(one.footage) == len(two.footage)
    for mine, other in zip(one.footage, two.footage, strict=True):
        assert torch.equal(mine.frames, other.frames)
        assert (mine.captions, mine.shares) == (other.captions, other.shares)


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 5), st.integers(1, 5), st.sampled_from((0, 3, 6)), st.sampled_from((PLAIN, SCRIPTS)))
def test_the_micro_batch_changes_nothing(group: int, size: int, start: int, prompts: tuple[str, ...]) -> None:
    model = tiny_world(tiny_stream(3, 6, 3))
    whole, parts = (
        windows_of(model, prompts, start, micro_batch=n, frames=6, group=group).candidates(7)
        for n in (group, min(size, group))
    )
    torch.testing.assert_close(parts.latents, whole.latents, rtol=0, atol=1e-9)
    for row in range(len(whole.latents)):
        assert (clips_of(parts, [row]).int() - clips_of(whole, [row]).int()).abs().max() <= 1  # a rounding
        mine, other = ([part for part in made.footage if row in part.rows] for made in (parts, whole))
        assert [part.shares for part in mine] == [part.shares for part in other]
        told = ([part.captions[int((part.rows == row).nonzero())] for part in found] for found in (mine, other))
        assert next(told) == next(told)


class Watching:
    """Notes every noisy chunk that the sampler denoises, and the velocity it got."""

    def __init__(self, model: WanGenerator):
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        velocity = model.velocity

        def watched(noisy: Tensor, sigma: Tensor, text: Any, cache: Any) -> Tensor:
            out = velocity(noisy, sigma, text, cache)
            self.seen.append((noisy, sigma, out))
            return out

        model.velocity = watched  # type: ignore[method-assign]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from((*STREAMS, tiny_stream(3, 6, 3, "relative"), tiny_stream(3, 6))),
       st.sampled_from((0, 3, 6, 9)), st.sampled_from((PLAIN, SCRIPTS)), st.integers(0, 3))  # fmt: skip
@example(tiny_stream(3, 9, 3, "relative"), 9, SCRIPTS, 1)
@example(tiny_stream(1, 6, 2), 6, SCRIPTS, 2)
def test_training_sees_what_the_sampler_saw(stream: Any, start: int, prompts: tuple[str, ...], level: int) -> None:
    """Velocities in the training forward, at a sampler level, of the sampler's own noisy chunks: position by position,
    after evictions, with sinks and relative positions, after switches and cuts."""
    model = tiny_world(stream)
    streams = windows_of(model, prompts, start)
    watch = Watching(model)
    rollout = streams.candidates(7)
    chunk, levels = model.stream.chunk_frames, len(model.stream.levels)
    place = 0
    for track in streams.tracks:
        chunks = watch.seen[place : place + FRAMES // chunk * levels]
        place += len(chunks)
        noisy, sigma, velocity = (torch.cat(parts, 1) for parts in zip(*chunks[level::levels], strict=True))
        for index, group in enumerate(track.groups):
            own = slice(index * GROUP, (index + 1) * GROUP)
            for stretch in (stretch for stretch in rollout.stretches if stretch.group == group):
                frames = slice(stretch.first, stretch.end)
                clips = rollout.latents[group * GROUP : (group + 1) * GROUP, : stretch.end]
                with torch.no_grad():
                    text, past = model.condition(stretch.text), stretch.past(clips)
                    context = model.context(clips[:, frames], text, past)
                    seen = model.velocity_in_context(noisy[own, frames], sigma[own, frames], text, context)
                torch.testing.assert_close(seen, velocity[own, frames], rtol=0, atol=1e-9)
    assert place == len(watch.seen)


def shares(rollout: Rollout, span: Span) -> Tensor:
    total = torch.zeros(len(rollout.latents), dtype=torch.float64)
    for part in rollout.footage:
        total[part.rows] += part.shares[span]
    return total


@pytest.mark.parametrize("credit", [0.0, 0.25, 1.0])
def test_all_footage_of_a_candidate_counts_as_one_and_names_the_prompt_in_force(credit: float) -> None:
    model = tiny_world()
    rollout = windows_of(model, SCRIPTS, 3, credit=credit).candidates(7)
    for span in get_args(Span):
        torch.testing.assert_close(shares(rollout, span), torch.ones(9, dtype=torch.float64))
    named = {(part.captions[0], part.clip): part for part in rollout.footage}
    assert {caption for caption, _ in named} == {"a cat", "a bird", "a dog", "a fish", "a cow", "a pig"}
    for caption, share, frames in (
        ("a cat", 6 / 9 * (1 - credit), 24),
        ("a pig", 6 / 9, 24),  # began in the clip: nothing of it is older
        ("a fish", 3 / 9, 9),  # after a cut: its first latent frame is one video frame
    ):
        part = named[caption, True]
        assert part.shares["mixed"] == pytest.approx(share) and part.frames.shape[1] == frames
    if not credit:
        assert all(clip for _, clip in named)
        return
    whole, clip = named["a cat", False].frames, named["a cat", True].frames
    assert named["a cat", False].shares["mixed"] == pytest.approx(6 / 9 * credit) and whole.shape[1] == 33
    torch.testing.assert_close(whole[:, 9:], clip)
    torch.testing.assert_close(whole[0, :9], whole[2, :9])


def test_the_history_is_generated_once_and_kept_once() -> None:
    model = tiny_world(tiny_stream(3, 9))
    streams = windows_of(model, PLAIN, 9)
    watch = Watching(model)
    rollout = streams.candidates(7)
    assert sum(len(noisy) for noisy, _, _ in watch.seen) == 2 * GROUP * 3 * 4  # prompts, G, chunks, levels
    cache: Any = streams.tracks[0].stream.cache
    for stretch in rollout.stretches:
        past: Any = stretch.past(rollout.latents)
        assert past.keys[0].untyped_storage().data_ptr() == cache.keys[0].untyped_storage().data_ptr()


def test_a_start_is_the_same_on_every_rank_and_lies_in_the_video() -> None:
    random = WindowSettings(frames=6, start="random", video_frames=30, per_stream=2)
    starts = [random.start_of(3, stream, 3) for stream in range(60)]
    assert starts == [random.start_of(3, stream, 3) for stream in range(60)]
    assert set(starts) == set(range(0, 19, 3))
    chosen = WindowSettings(frames=6, start="choices", choices=(0, 12))
    assert {chosen.start_of(0, stream, 3) for stream in range(30)} == {0, 12} and chosen.length == 18
    assert WindowSettings(frames=6).start_of(0, 5, 3) == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"start": "choices", "choices": (0, 12), "video_frames": 15}, "the latest start is 9"),
        ({"start": "random"}, "needs window.video_frames"),
        ({"start": "choices"}, "give both, or neither"),
        ({"video_frames": 9, "per_stream": 2}, "must be at least 12"),
    ],
)
def test_windows_beyond_the_video_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        WindowSettings(frames=6, **fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"frames": 7}, r"window.frames=7 .* nearest are 6 and 9"),
        ({"frames": 6, "video_frames": 20}, r"window.video_frames=20 .* nearest are 18 and 21"),
        ({"frames": 6, "start": "choices", "choices": (2,)}, r"window.choices=2 .* nearest are 0 and 3"),
        ({"frames": 2}, r"window.frames=2 .* nearest is 3"),
    ],
)
def test_what_no_chunking_fits_is_refused_with_the_nearest_values(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        WindowSettings(**fields).check(tiny_stream(3))


def test_more_candidates_at_once_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="choose 1 to 4"):
        RolloutSettings(prompts=1, group_size=4, micro_batch=5)


@pytest.mark.parametrize("prompts", [PLAIN, SCRIPTS])
@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_footage_may_be_seen_as_it_comes_and_decoded_again_later(prompts: tuple[str, ...], micro_batch: int) -> None:
    model = tiny_world()
    streams = windows_of(model, prompts, 3, micro_batch=micro_batch)
    kept, seen = streams.candidates(7), list[Footage]()
    passing = streams.candidates(7, see=seen.append)
    assert not passing.footage and torch.equal(passing.latents, kept.latents)
    assert len(seen) == len(kept.footage)
    for mine, other in zip(seen, kept.footage, strict=True):
        assert torch.equal(mine.rows, other.rows) and torch.equal(mine.frames, other.frames)
        assert (mine.captions, mine.shares) == (other.captions, other.shares)
    for group in range(len(prompts)):
        rows = torch.arange(3 * group, 3 * group + 3)
        assert torch.equal(streams.decoded(group, kept.latents[rows]), clips_of(kept, rows.tolist()))


def test_who_watches_sees_the_prompt_and_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Task] = []

    @contextmanager
    def watched(name: str, total: float, unit: str) -> Iterator[Task]:
        seen.append(Task(name, total, unit))
        yield seen[-1]

    monkeypatch.setattr("astrolabe.rollout.window.progress", watched)
    windows_of(tiny_world(tiny_stream(3, 9)), SCRIPTS, 6).candidates(7)
    told = [(task.name, task.amount) for task in seen]
    assert told[:3] == [(f"prompt {number} of 3", "2 of 2 chunks") for number in (1, 2, 3)]  # the history
    assert told[3:] == [(f"prompt {number} of 3, 3 candidates", "3 of 3 chunks") for number in (1, 2, 3)]
