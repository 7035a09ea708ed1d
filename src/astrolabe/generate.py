"""``astrolabe generate``: videos of any length as they come, from prompts or scripts, with a JSON line each."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from astrolabe.assembly import process_count_for
from astrolabe.data.scripts import Script, plan, prompts_of
from astrolabe.experiment import ModelSettings
from astrolabe.models.adapters import read_adapter
from astrolabe.models.lora import freeze_onto
from astrolabe.models.opening import Files, embed
from astrolabe.models.settings import ReleasedSettings
from astrolabe.models.wan.config import StreamConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rl.policies import Policies
from astrolabe.rollout.live import PlacedNoise, VideoStream
from astrolabe.runs.adapter import adapter_of
from astrolabe.runs.opening import open_run
from astrolabe.runtime.checkpoint import save_tensors
from astrolabe.runtime.errors import UserError, remark, within
from astrolabe.runtime.interrupts import Interrupt, Interrupted, graceful_interrupt
from astrolabe.runtime.processes import PATIENCE, one_thread, processes
from astrolabe.runtime.progress import progress, silence
from astrolabe.runtime.video import Mp4Writer, frame_rate, read_last_frames
from astrolabe.runtime.world import World, launched
from astrolabe.shapes.settings import FPS
from astrolabe.types import Latents, TextEmbeddings, Video

SMALL = 128  # pixels: smaller videos are written larger, to be looked at


@dataclass(frozen=True)
class Job:
    """What is to be made. ``seconds`` or ``frames`` (latent) say how long; with neither, the script, or one clip.

    ``start``: an image, or a video whose end is gone on from; it is the beginning of every video, and counts in its
    length. ``batch`` videos are made side by side. ``places`` says where each script stands, for messages.
    """

    scripts: Sequence[Script]
    model: ModelSettings
    out: Path
    adapter: Path | None = None
    seconds: float | None = None
    frames: int | None = None
    seed: int = 0
    batch: int = 1
    latents: bool = False
    start: Path | None = None
    places: Sequence[str] = ()
    processes: Literal["auto"] | int = "auto"  # that share the videos on the CPU


@dataclass(frozen=True)
class Take:
    """One video of a job: its number, its script, and the latent frames of every shot."""

    number: int
    script: Script
    frames: tuple[int, ...]

    @property
    def timing(self) -> tuple[Any, ...]:
        """Takes of one timing can be made side by side."""
        return self.frames, tuple(shot.enter for shot in self.script)


@runtime_checkable
class Encoder(Protocol):
    """Pixels to latents."""

    def encode(self, video: Video) -> Latents: ...


def generate(job: Job) -> Iterator[Path]:
    """Make the videos; gives the path of each when it is whole: ``out/0000.mp4`` and so on, never overwritten.

    On the CPU several processes share them (``Job.processes``), as those that torchrun starts do, each on its own
    device. Raises UserError for what cannot be made,
    Interrupted after Ctrl-C: what was at work stays, playable, as ``0000.part.mp4``.
    """
    rank, size = launched()
    if rank:
        silence()
    own = adapter_of(job.adapter) if job.adapter else None
    # What is made says which adapter made it, even if its run has gone on since.
    job = replace(job, model=on_own_device(job.model), adapter=Path(str(own)) if own else job.adapter)
    takes = takes_of(job, job.model.stream)[rank::size]
    batches = batches_of(job, takes)
    count = process_count_for(job.model, job.processes, len(batches)) if size == 1 else 1
    if job.start:
        check_start(job.start)
    lines = job.out / (f"videos.rank{rank}.jsonl" if size > 1 else "videos.jsonl")
    check_free([lines, *(file for take in takes for file in files_of(job, take))], job.out)
    alone = job.model.light and job.model.place.startswith("cpu")
    with one_thread(alone), processes(count, follow, job, batches, patience=PATIENCE) as world:
        for made in shares(world, job, batches, None):
            with lines.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in made)
            yield from (job.out / line["file"] for line in made)


def batches_of(job: Job, takes: Sequence[Take]) -> list[list[Take]]:
    """What is made side by side: takes of one timing."""
    found: list[list[Take]] = []
    for _, alike in groupby(sorted(takes, key=lambda take: take.timing), key=lambda take: take.timing):
        row = list(alike)
        found += [row[first : first + job.batch] for first in range(0, len(row), job.batch)]
    return found


def shares(
    world: World, job: Job, batches: Sequence[Sequence[Take]], interrupt: Interrupt | None
) -> Iterator[list[dict[str, Any]]]:
    """Make the batches, every process of a world one at a time; gives the lines of what all of them have made, in
    order. ``interrupt``: what asks to stop, where that is not a signal to this process."""
    generator, policies = open_generator(job)
    takes = [take for batch in batches for take in batch]
    text = {prompt: generator.encode_text([prompt]) for prompt in prompts_of([take.script for take in takes])}
    given = read_start(job.start, generator) if job.start else None
    if given is not None and any(take.frames[0] <= given.shape[1] for take in takes):
        raise UserError(
            f"{job.start} fills {given.shape[1]} latent frames and leaves nothing to make; ask for longer videos"
        )
    job.out.mkdir(parents=True, exist_ok=True)
    with (
        nullcontext(interrupt) if interrupt else graceful_interrupt("chunk") as asked,
        policies.using("learner") if policies else nullcontext(),
    ):
        for first in range(0, len(batches), world.size):
            own = batches[first + world.rank : first + world.rank + 1]
            made = [make(job, generator, batch, text, given, asked, world.check) for batch in own]
            yield [line for part in world.gather(made) for lines in part for line in lines]


def follow(world: World, job: Job, batches: Sequence[Sequence[Take]]) -> None:
    """Make videos as one of several processes, behind the first: it is told by SIGTERM when that one stops."""
    interrupt = Interrupt()
    signal.signal(signal.SIGTERM, lambda *_: setattr(interrupt, "requested", True))
    for _ in shares(world, job, batches, interrupt):
        pass


def on_own_device(settings: ModelSettings) -> ModelSettings:
    """Of several processes on one machine, each has the GPU of its own number."""
    local = os.environ.get("LOCAL_RANK")
    return replace(settings, device=f"cuda:{local}") if settings.place == "cuda" and local else settings


def open_generator(job: Job) -> tuple[WanGenerator, Policies | None]:
    """The model with its adapter: a run's own slot, or any other adapter as part of the base."""
    own = adapter_of(job.adapter) if job.adapter else None
    adapter = read_adapter(job.adapter) if job.adapter and own is None else None
    if isinstance(job.model, ReleasedSettings):
        Files(job.model).transformer()  # what is missing is said before the text encoder works for minutes
        embed(job.model, prompts_of(job.scripts))
    if own:
        _, generator, policies = open_run(own, job.model)
        return generator, policies
    generator = job.model.open()
    if adapter:
        freeze_onto(generator.transformer, adapter, str(job.adapter))
    return generator, None


def takes_of(job: Job, stream: StreamConfig) -> list[Take]:
    """Every video with the lengths of its shots; UserError when a length cannot be had."""
    takes = []
    for number, script in enumerate(job.scripts):
        written = [shot.seconds for shot in script]
        if job.frames is not None:
            stream.chunks(job.frames)
            total = stream.seconds(job.frames)
        elif job.seconds is not None:
            total = job.seconds
        elif None not in written:
            total = sum(seconds for seconds in written if seconds)
        else:
            total = stream.seconds(job.model.clip_frames)
        with within(job.places[number]) if job.places else nullcontext():
            takes.append(Take(number, script, plan(script, total, stream)))
    longest, settings = max(sum(take.frames) for take in takes), job.model
    endless = stream.window_frames is None and stream.rebuild_frames is None
    if endless and longest > settings.clip_frames:
        print(
            f"astrolabe: {settings.name} remembers all {longest} latent frames (trained on {settings.clip_frames}): "
            f"memory grows; --model.window_frames {settings.clip_frames} --model.positions relative bounds it",
            file=sys.stderr,
        )
    return takes


def files_of(job: Job, take: Take) -> list[Path]:
    """What a take leaves on disk."""
    names = [".mp4", ".part.mp4", *([".safetensors"] if job.latents else [])]
    return [job.out / f"{take.number:04d}{name}" for name in names]


def check_free(files: Sequence[Path], out: Path) -> None:
    """UserError when something of the name is there already."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder with --out")
    if taken := [str(path) for path in files if path.exists()]:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise UserError(f"{taken[0]} exists{more}; name a new folder with --out")


def check_start(path: Path) -> None:
    """UserError for a beginning that cannot be read; of a video at another rate it is said how it is seen."""
    rate = frame_rate(path)
    if rate and abs(rate - FPS) > 0.01 * FPS:
        remark(f"{path} comes at {rate:g} frames a second: seen at {FPS}, each frame at its time")


def read_start(path: Path, generator: WanGenerator) -> Latents:
    """The end of a video, in its own time, in whole chunks, or an image that stands still for one, as clean
    latents [1, f, c, h, w]."""
    stream, codec = generator.stream, generator.codec
    assert isinstance(codec, Encoder)
    most = (stream.window_frames or ReleasedSettings.clip_frames) // stream.chunk_frames * stream.chunk_frames
    _, rows, columns = generator.latent_shape
    video = read_last_frames(path, stream.video_frames(most), 8 * rows, 8 * columns, float(stream.fps))
    latent_frames = stream.latent_frames(len(video)) // stream.chunk_frames * stream.chunk_frames
    if len(video) > 1 and not latent_frames:
        least = stream.video_frames(stream.chunk_frames)
        raise UserError(
            f"{path}: has {len(video)} frames at {stream.fps} a second; a chunk is {least}. Name a longer video, or an "
            "image"
        )
    if len(video) == 1:
        video = video.expand(stream.video_frames(stream.chunk_frames), -1, -1, -1)
    else:
        video = video[-stream.video_frames(latent_frames) :]
    return codec.encode(video[None].to(generator.device))


def make(
    job: Job, generator: WanGenerator, takes: Sequence[Take], text: Mapping[str, TextEmbeddings],
    given: Latents | None, interrupt: Interrupt, check: Callable[[], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """Make takes of one timing side by side; gives the line of each. ``check`` raises what should stop it."""
    total = sum(takes[0].frames)
    writers = [Mp4Writer(files_of(job, take)[0], generator.stream.fps, scale_of(generator)) for take in takes]
    kept: list[Latents] = []
    began, first_frame = time.monotonic(), 0.0
    name = f"making {takes[0].number:04d}.mp4" + (f" and {len(takes) - 1} more" if takes[1:] else "")
    try:
        with progress(name, total, "latent frames") as task:
            for video, latents in chunks_of(job, generator, takes, text, given):
                for writer, frames in zip(writers, video, strict=True):
                    writer.write(frames)
                if not bool(latents.isfinite().all()):
                    raise UserError(
                        "the model's numbers are no longer finite, and its video would be black: its weights or the "
                        "adapter are broken, or too large for its precision (--model.dtype)"
                    )
                kept += [latents.cpu()] if job.latents else []
                first_frame = first_frame or time.monotonic() - began
                task.advance(latents.shape[1])
                check()
                if interrupt.requested:
                    raise Interrupted(f"stopped; {writers[0].partial} plays as far as it came")
    finally:
        for writer in writers:
            writer.close()
    seconds = time.monotonic() - began
    lines = []
    for place, (take, writer) in enumerate(zip(takes, writers, strict=True)):
        line: dict[str, Any] = {
            "prompt": take.script[0].prompt if len(take.script) == 1 else None,
            "script": [vars(shot) | {"frames": n} for shot, n in zip(take.script, take.frames, strict=True)],
            "file": writer.path.name, "seed": job.seed, "video": take.number, "model": job.model.name,
            "adapter": str(job.adapter) if job.adapter else None, "start": str(job.start) if job.start else None,
            "frames": writer.frames, "latent_frames": total, "beside": len(takes), "seconds": round(seconds, 3),
            "first_frame_seconds": round(first_frame, 3), "frames_per_second": round(writer.frames / seconds, 1),
        }  # fmt: skip
        if job.latents:
            save_tensors(files_of(job, take)[2], {"latents": torch.cat(kept, 1)[place]}, {"line": json.dumps(line)})
        writer.finish()
        lines.append(line)
    return lines


def chunks_of(
    job: Job, generator: WanGenerator, takes: Sequence[Take], text: Mapping[str, TextEmbeddings], given: Latents | None
) -> Iterator[tuple[Video, Latents]]:
    """Pixels and latents of takes of one timing as they come, the given beginning first."""

    def embeddings(shot: int) -> Tensor:
        return torch.cat([text[take.script[shot].prompt] for take in takes])

    stream = VideoStream(generator, embeddings(0), PlacedNoise(job.seed, [take.number for take in takes]))
    for number, frames in enumerate(takes[0].frames):
        if number:
            enter = takes[0].script[number].enter
            (stream.cut if enter == "cut" else stream.switch)(embeddings(number))
        elif given is not None:
            frames -= given.shape[1]
            video = stream.begin_with(given)
            assert video is not None
            yield video, given.expand(len(takes), *given.shape[1:])
        for _ in range(frames // generator.stream.chunk_frames):
            chunk = stream.step()
            assert chunk.video is not None
            yield chunk.video, chunk.latents


def scale_of(generator: WanGenerator) -> int:
    """How many pixels of the file show one of the video."""
    return 4 if 8 * generator.latent_shape[1] < SMALL else 1
