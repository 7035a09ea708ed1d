"""Windows of streams: G candidates for the next clip of every prompt, all from one frozen history (method, section 2).

A batch of prompts is streamed once. Where a window stands, G candidates go on from the frozen cache, each with noise of
its own; their decoders start from the history's decoder, so that a clip's first frames look as they would in the whole
video. After the window is trained on, one candidate is committed and the stream goes on to the next. Cost for a prompt:
P + G W frames, instead of the G (P + W) of candidates that are made from the beginning.

Prompts may be scripts. Where the prompt changes inside a window, each candidate goes on as any stream would
(``VideoStream.branch``): what it remembers is run again under the new prompt, or forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from astrolabe.data.scripts import Script, plan
from astrolabe.models.base import Generator
from astrolabe.rollout.live import Numbered, PlacedNoise, VideoStream
from astrolabe.rollout.settings import RolloutSettings, WindowSettings
from astrolabe.rollout.stream import Denoised, denoise_chunk
from astrolabe.runtime.progress import Task, progress
from astrolabe.runtime.world import ALONE, World
from astrolabe.types import Footage, Frames, Latents, Rollout, Stretch, TextEmbeddings, Trajectory, Video, to_frames


@dataclass(frozen=True)
class Piece:
    """Frames [first, end) of a window under shot number ``shot``; ``since``: where in the window its video began, or
    None when it began before it."""

    first: int
    end: int
    shot: int
    since: int | None


@dataclass
class Track:
    """Prompts whose scripts have the same timing, streamed side by side."""

    groups: tuple[int, ...]  # their numbers in the batch
    scripts: tuple[Script, ...]
    ends: tuple[int, ...]  # latent frame at which each shot ends
    texts: list[TextEmbeddings]  # of every shot, a row a prompt
    stream: VideoStream
    shot: int = 0  # in force
    shown: list[Tensor] = field(default_factory=list)  # frames of the shot in force so far, if they are judged

    @property
    def frames(self) -> int:
        """Latent frames made since the script began."""
        return self.stream.index * self.stream.generator.stream.chunk_frames

    def enters(self, shot: int) -> str:
        """How a shot follows the one before: the same for all prompts of a track."""
        return self.scripts[0][shot].enter

    def told(self, prompts: int) -> str:
        """Which prompts these are of so many, for the display."""
        return f"prompt {self.groups[0] + 1} of {prompts}" if len(self.groups) == 1 else f"{len(self.groups)} prompts"

    def captions(self, shot: int) -> tuple[str, ...]:
        """The prompt of every stream."""
        return tuple(script[shot].prompt for script in self.scripts)

    def pieces(self, frames: int) -> list[Piece]:
        """The next ``frames`` frames, shot by shot."""
        start, since, found = self.frames, None, []
        for shot, end in enumerate(self.ends):
            first = max(self.ends[shot - 1] if shot else 0, start)
            if first >= min(end, start + frames):
                continue
            if first > start and self.enters(shot) == "cut":
                since = first - start
            found.append(Piece(first - start, min(end, start + frames) - start, shot, since))
        return found

    def enter(self, shot: int) -> None:
        """Let the stream go on under a shot, unless it does."""
        if shot != self.shot:
            (self.stream.cut if self.enters(shot) == "cut" else self.stream.switch)(self.texts[shot])
            self.shot, self.shown = shot, []

    def show(self, video: Video | None, keep: bool) -> None:
        """Keep pixels of the shot in force."""
        if keep and video is not None:
            self.shown.append(to_frames(video))


class Clips(NamedTuple):
    """Candidates [b f c h w], and the sampler's trajectory to them where it is kept."""

    latents: Latents
    trajectory: Trajectory | None


def trajectory_of(chunks: Sequence[Sequence[Denoised]]) -> Trajectory:
    """The denoising steps of every chunk, put together; nan where a chunk has fewer levels than the others."""
    most = max(map(len, chunks))

    def gathered(name: Literal["noisy", "clean"]) -> Tensor:
        missing = torch.full_like(chunks[0][0].clean, torch.nan)
        return torch.cat([torch.stack([getattr(step, name) for step in steps] + [missing] * (most - len(steps)))
                          for steps in chunks], 2)  # fmt: skip

    return Trajectory(gathered("noisy"), gathered("clean"))


def blank(like: Trajectory, rows: int) -> Trajectory:
    """An empty trajectory (all nan) of ``rows`` candidates, on the device and with the levels of ``like``."""
    noisy, clean = (one.new_full((one.shape[0], rows, *one.shape[2:]), torch.nan) for one in (like.noisy, like.clean))
    return Trajectory(noisy, clean)


def tracks_of(timings: Sequence[Hashable], most: int) -> Iterator[tuple[int, ...]]:
    """Numbers of prompts that are streamed side by side: ``most`` at most, and of one timing."""
    for timing in dict.fromkeys(timings):
        alike = [group for group, other in enumerate(timings) if other == timing]
        yield from (tuple(alike[first : first + most]) for first in range(0, len(alike), most))


class Windows:
    """The streams of a batch of prompts, and the windows along them.

    ``whole``: some reward judges the video so far, so its pixels are kept. ``trajectory``: the sampler's is kept too.
    The processes of a ``world`` share the work and all have every stream: each track is taken further by one of them,
    each micro-batch of candidates is made, and shown, by one of them.
    """

    def __init__(
        self, generator: Generator, rollout: RolloutSettings, window: WindowSettings,
        whole: bool = False, trajectory: bool = False, world: World = ALONE,
    ):  # fmt: skip
        self.generator, self.rollout, self.window = generator, rollout, window
        self.world = world
        self.whole, self.trajectory = whole or window.credit > 0, trajectory
        self.prompts: tuple[str, ...] = ()
        self.tracks: list[Track] = []

    @property
    def position(self) -> int:
        """Latent frame at which the next window stands."""
        return self.tracks[0].frames

    def begin(self, prompts: Sequence[str], scripts: Sequence[Script], seed: int, start: int = 0) -> None:
        """New streams, as far as ``start`` latent frames, under the policy in force."""
        self.open(prompts, scripts, seed)

        def stream(track: Track) -> None:
            with progress(track.told(len(prompts)), start // self.generator.stream.chunk_frames, "chunks") as task:
                for piece in track.pieces(start):
                    track.enter(piece.shot)
                    for _ in self._chunks(piece):
                        track.show(track.stream.step().video, self.whole)
                        task.advance()

        if start:
            self._each(stream)

    def _each(self, move: Callable[[Track], None]) -> None:
        """Let every track go on, in one process; the others take over what became of it."""
        own = self.world.own([len(track.groups) for track in self.tracks])
        for number in own:
            move(self.tracks[number])
        for parts in self.world.others(lambda: self.tensors(own)):
            self.restore(parts)

    def open(self, prompts: Sequence[str], scripts: Sequence[Script], seed: int) -> None:
        """New streams without a frame; UserError when a script does not fit the length of the video."""
        self.prompts, model = tuple(prompts), self.generator.stream
        seconds = model.seconds(self.window.length)
        timings = [(plan(script, seconds, model), tuple(shot.enter for shot in script)) for script in scripts]
        self.tracks = []
        for groups in tracks_of(timings, self.rollout.side_by_side or len(timings)):
            timing = timings[groups[0]]
            own = tuple(scripts[group] for group in groups)
            texts = [self.generator.encode_text([script[shot].prompt for script in own]) for shot in range(len(own[0]))]
            stream = VideoStream(self.generator, texts[0], PlacedNoise(seed, groups))
            self.tracks.append(Track(groups, own, tuple(accumulate(timing[0])), texts, stream))

    @torch.no_grad()
    def candidates(
        self, seed: int, group_size: int | None = None, see: Callable[[Footage], None] | None = None
    ) -> Rollout:
        """Clips of the next window of every stream, ``group_size`` of each (the settings' when not said), under the
        policy in force; the streams stay.

        ``see`` is shown the footage as it comes, a micro-batch at a time, and none is kept; without it the rollout
        keeps all. The noise of candidate j of prompt i belongs to (``seed``, i, j), however the work is split.
        """
        size = group_size or self.rollout.group_size
        footage: list[Footage] = []
        for track in self.tracks:
            track.enter(track.pieces(self.window.frames)[0].shot)
            track.stream.renew()
        batches = [
            (track, [group * size + int(j) for group in track.groups for j in part])
            for track in self.tracks
            for part in torch.arange(size).split(self.rollout.micro_batch)
        ]
        make = partial(self._made, seed=seed, see=see or footage.append)
        made = self.world.shared(batches, make, [len(rows) for _, rows in batches], stops=True)
        latents_of: list[Tensor] = []
        trajectory: Trajectory | None = None
        for (_, rows), clips in zip(batches, made, strict=True):
            latents_of.append(clips.latents.to(self.generator.device))
            if clips.trajectory:
                own = Trajectory(*(part.to(self.generator.device) for part in vars(clips.trajectory).values()))
                trajectory = trajectory or blank(own, len(self.prompts) * size)
                trajectory.noisy[: len(own.noisy), rows] = own.noisy
                trajectory.clean[: len(own.clean), rows] = own.clean
        order = torch.tensor([row for _, rows in batches for row in rows])
        latents = torch.cat(latents_of)[order.argsort()]
        return Rollout(self.prompts, size, latents, tuple(footage), tuple(self._stretches()), trajectory)

    def _made(self, batch: tuple[Track, list[int]], seed: int, see: Callable[[Footage], None]) -> Clips:
        """One micro-batch of candidates of a track, shown."""
        track, rows = batch
        pieces, width = track.pieces(self.window.frames), len(rows) // len(track.groups)
        what, chunks = f"{track.told(len(self.prompts))}, {width} candidates", sum(map(len, map(self._chunks, pieces)))
        with progress(what, chunks, "chunks") as task:
            clips, frames = self._side_by_side(track, pieces, width, PlacedNoise(seed, rows), task)
        self._show(track, pieces, torch.tensor(rows), frames, see)
        return clips

    def _stretches(self) -> Iterator[Stretch]:
        """What there is to learn from the window, prompt by prompt within a track."""
        for track in self.tracks:
            for piece in track.pieces(self.window.frames):
                first = (track.stream.frames if piece.since is None else -piece.since) + piece.first
                for place, (group, text) in enumerate(zip(track.groups, track.texts[piece.shot], strict=True)):
                    past = partial(self._past, track, place, piece)
                    yield Stretch(group, piece.first, piece.end, first, text[None], past)

    def _side_by_side(
        self, track: Track, pieces: Sequence[Piece], width: int, noise: PlacedNoise, task: Task
    ) -> tuple[Clips, list[Frames]]:
        """``width`` candidates of every prompt of a track, in step: their latents, and the frames of every piece."""
        generator, stream = self.generator, track.stream
        rows = torch.arange(len(track.groups), device=generator.device).repeat_interleave(width)
        cache, condition = generator.new_candidates(stream.cache, width, pieces[0].end), stream.condition
        state = generator.decoder_select(stream.state, rows)
        clean: list[Tensor] = []
        steps: list[list[Denoised]] = []
        videos: list[Tensor] = []
        for piece in pieces:
            if piece is not pieces[0]:
                if piece.since == piece.first:
                    state = None
                text = track.texts[piece.shot]
                branch = stream.branch(rows, torch.cat(clean, 1)[:, piece.since or 0 :], text, piece.since is not None)
                cache, condition = branch.cache, branch.condition
            opening = (stream.frames if piece.since is None else -piece.since) + piece.first == 0
            pixels = []
            for first, end, place in self._chunks(piece):
                shape = (len(rows), end - first, *generator.latent_shape)
                fresh = opening and first == piece.first  # the first chunk of a video may have steps of its own
                *before, last = denoise_chunk(
                    generator, condition, cache, Numbered(noise, place), 0 if fresh else 1, shape
                )
                if self.trajectory:
                    steps.append([*before, last])
                chunk = last.clean
                if end < piece.end:  # nothing will look back at a piece's last chunk: a branch runs it again
                    generator.commit(chunk, condition, cache)
                video, state = generator.decode(chunk, state)
                clean.append(chunk)
                pixels.append(to_frames(video))
                task.advance()
            videos.append(torch.cat(pixels, 1))
        return Clips(torch.cat(clean, 1), trajectory_of(steps) if self.trajectory else None), videos

    def _chunks(self, piece: Piece) -> list[tuple[int, int, int]]:
        """(first, end) frame of every chunk of a piece, and its number in the window."""
        size = self.generator.stream.chunk_frames
        return [(first, first + size, first // size) for first in range(piece.first, piece.end, size)]

    def _past(self, track: Track, place: int, piece: Piece, clean: Latents) -> object:
        """See ``types.Stretch``."""
        if piece.first == 0:
            return track.stream.cache.row(place)
        rows = torch.full((len(clean),), place, device=clean.device)
        before = clean[:, piece.since or 0 : piece.first]
        text = track.texts[piece.shot][place : place + 1]
        return track.stream.branch(rows, before, text, piece.since is not None).cache

    def _show(
        self, track: Track, pieces: Sequence[Piece], rows: Tensor, frames: Sequence[Tensor],
        see: Callable[[Footage], None],
    ) -> None:  # fmt: skip
        """Hand over the footage of a micro-batch; a function of its own, so that nothing of it lingers."""
        for piece, own in zip(pieces, frames, strict=True):
            for one in self._footage(track, piece, rows, own):
                see(one)

    def _footage(self, track: Track, piece: Piece, rows: Tensor, frames: Frames) -> Iterator[Footage]:
        """What is judged of a piece: its own pixels, and those of its shot so far, as ``credit`` divides it."""
        size, credit = len(rows) // len(track.groups), self.window.credit
        share = (piece.end - piece.first) / self.window.frames
        captions = tuple(prompt for prompt in track.captions(piece.shot) for _ in range(size))
        before = track.shown if piece.first == 0 else []
        if not before:
            yield Footage(rows, frames, captions, {"clip": share, "video": share, "mixed": share})
            return
        yield Footage(rows, frames, captions, {"clip": share, "video": 0.0, "mixed": share * (1 - credit)})
        whole = torch.cat([torch.cat(before, 1).repeat_interleave(size, 0), frames], 1)
        yield Footage(rows, whole, captions, {"clip": 0.0, "video": share, "mixed": share * credit}, clip=False)

    @torch.no_grad()
    def decoded(self, group: int, clips: Latents) -> Frames:
        """Candidates of prompt number ``group``, decoded again from their latents [g f c h w]; the streams stay."""
        (track,) = (track for track in self.tracks if group in track.groups)
        rows = torch.full((len(clips),), track.groups.index(group), device=self.generator.device)
        state, pixels = self.generator.decoder_select(track.stream.state, rows), []
        for piece in track.pieces(self.window.frames):
            if piece.since == piece.first:
                state = None
            for first, end, _ in self._chunks(piece):
                video, state = self.generator.decode(clips[:, first:end].to(self.generator.device), state)
                pixels.append(to_frames(video))
        return torch.cat(pixels, 1)

    def go_on(self, latents: Latents, chosen: Sequence[int]) -> None:
        """Commit candidate ``chosen[i]`` of every prompt i, under the policy in force: it becomes history."""

        def commit(track: Track) -> None:
            rows = torch.tensor([group * self.rollout.group_size + chosen[group] for group in track.groups])
            clips = latents[rows.to(latents.device)]
            track.stream.renew()
            for piece in track.pieces(self.window.frames):
                track.enter(piece.shot)
                track.show(track.stream.extend(clips[:, piece.first : piece.end]), self.whole)

        self._each(commit)

    def tensors(self, tracks: Sequence[int] | None = None) -> dict[str, Tensor]:
        """All that decides how the streams go on, of some ``tracks`` or of all: for ``restore``, with the same prompts
        and seed."""
        parts: dict[str, Tensor] = {}
        for number in range(len(self.tracks)) if tracks is None else tracks:
            track = self.tracks[number]
            shown = {f"shown.{i}": video for i, video in enumerate(track.shown)}
            own = track.stream.tensors() | shown | {"shot": torch.tensor(track.shot)}
            parts |= {f"{number}.{name}": value for name, value in own.items()}
        return parts

    def restore(self, parts: Mapping[str, Tensor]) -> None:
        """Let newly opened streams go on where ``tensors`` were taken."""
        for number in sorted({int(name.partition(".")[0]) for name in parts}):
            track, prefix = self.tracks[number], f"{number}."
            own = {name.removeprefix(prefix): value for name, value in parts.items() if name.startswith(prefix)}
            track.shot = int(own.pop("shot"))
            kept = [name for name in own if name.startswith("shown.")]
            track.shown = [own.pop(name) for name in sorted(kept, key=lambda name: int(name.split(".")[1]))]
            track.stream.restore(own)
