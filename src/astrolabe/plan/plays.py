"""The heavy parts of a training step, each played once by the code that trains, in a few blocks.

All blocks of a transformer are alike but the first, which hands on no gradient. So what a part takes in two blocks and
in three tells what it takes in any number of them, exactly: bytes and work grow by the same amount with every further
block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from astrolabe.assembly import make_algorithm
from astrolabe.experiment import TrainConfig
from astrolabe.models import rope
from astrolabe.models.base import Generator
from astrolabe.models.cache import RollingCache
from astrolabe.models.settings import ReleasedSettings
from astrolabe.models.visibility import visible
from astrolabe.models.wan.config import StreamConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.plan.ledger import Ledger, Number, Work
from astrolabe.plan.stage import Build, Stage, hollow
from astrolabe.rl.algorithm import Samples
from astrolabe.rl.forward import Forward, PromptText
from astrolabe.rl.update import make_optimizer
from astrolabe.rollout.live import PlacedNoise, VideoStream
from astrolabe.types import Stretch, Trajectory, per_frame

BLOCKS = (2, 3)  # a first block and another; and one more
NOTHING = Work()


@dataclass(frozen=True)
class PartCost:
    """What a part of a step takes: the most bytes at one time beyond those that were there before; those that stay
    when it is done; its work."""

    bytes: Number = 0.0
    kept: Number = 0.0
    work: Work = NOTHING

    def grown(self, other: PartCost, times: Number) -> PartCost:
        """This, and so many times what ``other`` has more."""
        return PartCost(
            self.bytes + times * (other.bytes - self.bytes),
            self.kept + times * (other.kept - self.kept),
            self.work + times * (other.work - self.work),
        )


PartCosts = dict[str, PartCost]
Play = Callable[[Stage, TrainConfig], PartCosts]


class Measurer:
    """Measures parts of steps on stages that it keeps, and no part twice that the same settings decide.

    ``build`` makes the generator, ``device`` is the type of device that is planned for; ``heard`` is told the name of
    a play when it begins.
    """

    def __init__(
        self, build: Build = hollow, device: str = "cpu", heard: Callable[[str], None] = lambda name: None
    ) -> None:
        self.build, self.device, self.heard = build, device, heard
        self.stages: dict[Any, Stage] = {}
        self.known: dict[Any, PartCosts] = {}
        self.plays = 0  # how many there were: of parts, each in so many blocks

    def stage(self, cfg: TrainConfig, blocks: int) -> Stage:
        """The networks of a configuration in so many blocks."""
        key = (base(cfg), cfg.lora, blocks)
        if key not in self.stages:
            self.stages[key] = Stage(cfg, self.build, blocks, self.device)
        return self.stages[key]

    def generator(self, cfg: TrainConfig) -> WanGenerator:
        """The generator of a configuration, in a few blocks."""
        return self.stage(cfg, BLOCKS[0]).generator

    def part(self, play: Play, cfg: TrainConfig, *decided_by: Any) -> PartCosts:
        """What a play finds in all blocks; ``decided_by``: the settings that it depends on besides the networks."""
        return self._once((play.__name__, base(cfg), cfg.lora, decided_by), lambda: self._grown(play, cfg))

    def decoded(self, cfg: TrainConfig) -> PartCosts:
        """What ``play_decode`` finds, for which blocks and adapters do not matter."""
        tile = cfg.model.vae_tile if isinstance(cfg.model, ReleasedSettings) else None
        return self._once((play_decode.__name__, base(cfg), tile), lambda: self._play(play_decode, cfg, BLOCKS[0]))

    def _once(self, key: tuple[Any, ...], find: Callable[[], PartCosts]) -> PartCosts:
        if key not in self.known:
            self.heard(key[0].removeprefix("play_"))
            self.known[key] = find()
        return self.known[key]

    def _grown(self, play: Play, cfg: TrainConfig) -> PartCosts:
        few, more = BLOCKS
        whole = self.stage(cfg, few).whole
        found = [self._play(play, cfg, blocks) for blocks in ((few, more) if whole > more else (whole,))]
        if len(found) == 1:
            return found[0]
        return {name: part.grown(found[1][name], (whole - few) / (more - few)) for name, part in found[0].items()}

    def _play(self, play: Play, cfg: TrainConfig, blocks: int) -> PartCosts:
        self.plays += 1
        stage = self.stage(cfg, blocks)
        rope.rotation.cache_clear()  # what it remembers of one play would be missing in the next
        try:
            with stage.playing():
                return play(stage, cfg)
        finally:
            rope.rotation.cache_clear()

    def held(self, cfg: TrainConfig) -> dict[str, Number]:
        """Bytes that are always there, by owner."""
        few, more = BLOCKS
        stage = self.stage(cfg, few)
        if stage.whole <= more:
            return self.stage(cfg, stage.whole).held
        other, times = self.stage(cfg, more), (stage.whole - few) / (more - few)
        return {name: count + times * (other.held[name] - count) for name, count in stage.held.items()}


def base(cfg: TrainConfig) -> object:
    """What decides the networks, and nothing else of the model."""
    return replace(cfg.model, vae_tile=None) if isinstance(cfg.model, ReleasedSettings) else cfg.model


@contextmanager
def counted(ledger: Ledger, parts: PartCosts, name: str) -> Iterator[None]:
    """Count what happens within as a part."""
    ledger.peak = before = ledger.live
    done = ledger.work
    yield
    parts[name] = PartCost(ledger.peak - before, ledger.live - before, ledger.work - done)


def play_optimizer(stage: Stage, cfg: TrainConfig) -> PartCosts:
    """The first step of the optimiser, which makes its moments, and another one."""
    parts: PartCosts = {}
    optimizer = make_optimizer(stage.policies, cfg.optimizer)
    with counted(stage.ledger, parts, "moments"):
        give_gradients(stage)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    with counted(stage.ledger, parts, "optimizer"):
        give_gradients(stage)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return parts


def give_gradients(stage: Stage) -> None:
    """A gradient for all that is trained."""
    for tensor in stage.policies.trainable().values():
        tensor.grad = torch.zeros_like(tensor)


def new_stream(stage: Stage, prompts: int, full: int) -> VideoStream:
    """Streams of so many prompts, without their decoder; their caches hold ``full`` frames."""
    generator = stage.generator
    with stage.fake:
        text = generator.encode_text([""] * prompts)
        stream = VideoStream(generator, text, PlacedNoise(0, range(prompts)), decode=False)
    if full:
        cache = cast(RollingCache, stream.cache)
        cache.make_room(min(full, generator.stream.window_frames or full))
        cache.frames = stream.frames = full
    return stream


def side_by_side(cfg: TrainConfig) -> int:
    """Prompts that are streamed, and whose candidates are made, in one batch."""
    return min(cfg.rollout.side_by_side or cfg.rollout.prompts, cfg.rollout.prompts)


def play_history(stage: Stage, cfg: TrainConfig) -> PartCosts:
    """The first chunk of the history of prompts side by side, the last one, and what stays for the window."""
    parts: PartCosts = {}
    deepest, chunk = cfg.window.length - cfg.window.frames, stage.generator.stream.chunk_frames
    with torch.no_grad(), stage.policies.using("behavior"):
        if deepest:
            with counted(stage.ledger, parts, "first"):
                stream = new_stream(stage, side_by_side(cfg), 0)
                stream.step()
            del stream
            with counted(stage.ledger, parts, "last"):
                stream = new_stream(stage, side_by_side(cfg), deepest - chunk)
                done = stage.ledger.work
                stream.step()
                done = stage.ledger.work - done
            parts["last"] = replace(parts["last"], work=done)
            del stream
        with counted(stage.ledger, parts, "stream"):
            stream = new_stream(stage, side_by_side(cfg), deepest)
        del stream
    return parts


def play_rollout(stage: Stage, cfg: TrainConfig) -> PartCosts:
    """One denoising pass of ``micro_batch`` candidates of prompts side by side: of their first chunk, and of their
    last, which has most to look back at. The context pass that follows a chunk is the same pass."""
    parts: PartCosts = {}
    rollout, frames, generator = cfg.rollout, cfg.window.frames, stage.generator
    chunk = generator.stream.chunk_frames
    with torch.no_grad(), stage.policies.using("behavior"):
        stream = new_stream(stage, side_by_side(cfg), cfg.window.length - frames)
        with counted(stage.ledger, parts, "candidates"):
            cache = generator.new_candidates(cast(RollingCache, stream.cache), rollout.micro_batch, frames)
        for name, place in (("first", 0), ("last", frames - chunk)):
            cache.frames = place
            with counted(stage.ledger, parts, name):
                noisy = stage.blank(side_by_side(cfg) * rollout.micro_batch, chunk, *generator.latent_shape)
                generator.velocity(noisy, per_frame(0.5, noisy), stream.condition, cache)
    return parts


def play_decode(stage: Stage, cfg: TrainConfig) -> PartCosts:
    """The first chunk of one video through the decoder, the state that it leaves, and a later chunk."""
    parts: PartCosts = {}
    generator = stage.generator
    if isinstance(cfg.model, ReleasedSettings):
        generator.codec.tile = cfg.model.vae_tile  # type: ignore[union-attr]
    clean = stage.blank(1, generator.stream.chunk_frames, *generator.latent_shape)
    with counted(stage.ledger, parts, "first"):
        video, state = generator.decode(clean, None)
    with counted(stage.ledger, parts, "later"):  # the pixels before it are not gone yet
        generator.decode(clean, state)
    parts["state"] = PartCost(kept=parts["first"].kept - video.nbytes)
    return parts


def play_update(stage: Stage, cfg: TrainConfig) -> PartCosts:
    """One micro-batch of one prompt, forward and backward: its text, which all of the prompt's share; the rest; and of
    that what anchored samples alone need."""
    parts: PartCosts = {}
    options, window, ledger = cfg.optimizer, cfg.window, stage.ledger
    generator, policies, algorithm = stage.generator, stage.policies, make_algorithm(cfg)
    before = window.length - window.frames
    with torch.no_grad(), policies.using("behavior"):
        stream = new_stream(stage, 1, before)
    policies.alike, generator.transformer.gradient_checkpointing = False, options.gradient_checkpointing
    stretch = Stretch(0, 0, window.frames, before, stream.text[:1], lambda _: stream.cache.row(0))
    with counted(ledger, parts, "update"):
        clean = stage.blank(options.micro_batch, window.frames, *generator.latent_shape)
        with counted(ledger, parts, "text"):
            text = PromptText(generator, policies, stretch.text)
        forward = Forward(generator, policies, stretch, text, clean)
        trajectory = None
        if algorithm.needs_trajectory:
            shape = (len(generator.stream.levels), options.micro_batch, *clean.shape[1:])
            trajectory = Trajectory(stage.blank(*shape), stage.blank(*shape))
        anchored = cfg.regularisation.samples != "none"
        shown = Shown(stage, forward, options.chunks or window.frames)
        some = Samples(clean, torch.zeros(len(clean)), [0] * len(clean), anchored, trajectory)
        began = ledger.work
        for part in algorithm.losses(forward, some, options.chunks or window.frames):
            total = part.loss.sum()
            (total if part.drift_reference is None else total + part.drift_reference.sum()).backward()
            shown.ended()
        losses, pulled = shown.all()
        done = ledger.work
        text.backward()
        parts["text"] = replace(parts["text"], work=parts["text"].work + (ledger.work - done))
        parts["anchored"] = PartCost(work=pulled)
        left_out = losses - (done - began)
        shown.let_go(forward)
        del forward, text, part, total, shown
    parts["update"] = replace(parts["update"], work=parts["update"].work + left_out)
    for tensor in policies.trainable().values():
        tensor.grad = None
    return parts


class Shown:
    """Of the runs of chunks that an update goes through, one after another, the first and the last are played; those
    between do nothing, and their work lies on the line between the two, by the frames that they look back at."""

    def __init__(self, stage: Stage, forward: Forward, chunks: int):
        self.stage, self.stream, self.chunks = stage, stage.generator.stream, chunks
        self.count = math.ceil(forward.stretch.end / self.stream.chunk_frames / chunks)
        self.before = forward.stretch.before
        self.runs: list[Work] = []
        self.pulls: list[Work] = []
        self._ended, self._pull, self._reference = stage.ledger.work, NOTHING, forward.reference
        self._velocity = stage.generator.velocity_in_context
        forward.reference = self.reference  # type: ignore[method-assign]
        forward.generator = cast(Generator, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stage.generator, name)

    def velocity_in_context(self, noisy: Tensor, sigma: Tensor, text: Any, context: Any, chunks: slice) -> Tensor:
        """The generator's, in the runs that are played."""
        if 0 < len(self.runs) % self.count < self.count - 1:
            return self.stage.blank(*noisy.shape).requires_grad_()
        return self._velocity(noisy, sigma, text, context, chunks)

    def reference(self, noisy: Tensor, sigma: Tensor, chunks: slice) -> Tensor:
        """The forward's, whose work is noted."""
        done = self.stage.ledger.work
        found = self._reference(noisy, sigma, chunks)
        self._pull = self.stage.ledger.work - done
        return found

    def ended(self) -> None:
        """A run is done, forward and backward."""
        self.runs.append(self.stage.ledger.work - self._ended)
        self.pulls.append(self._pull)
        self._ended, self._pull = self.stage.ledger.work, NOTHING

    def let_go(self, forward: Forward) -> None:
        """Give the forward its own parts back. The two would hold each other, and with them all of the update's
        memory, until Python happens to look for such rings, in a later play."""
        forward.generator = self.stage.generator
        del forward.reference

    def all(self) -> tuple[Work, Work]:
        """The work of all runs, and of that what anchored samples alone need."""
        size = self.chunks * self.stream.chunk_frames
        seen = [looks(self.stream, self.before + number * size) for number in range(self.count)]
        low, high = seen[0], seen[-1]
        shares = [(one - low) / (high - low) if high > low else 0.0 for one in seen]
        total = [NOTHING, NOTHING]
        for level in range(0, len(self.runs), self.count):
            for place, works in enumerate((self.runs, self.pulls)):
                first, last = works[level], works[level + self.count - 1]
                for share in shares:
                    total[place] += first + share * (last - first)
        return total[0], total[1]


def looks(stream: StreamConfig, first: Number) -> int:
    """Latent frames that the chunk from ``first`` on attends to, its own included."""
    place, size = int(first), stream.chunk_frames
    sink, recent = visible(place, place + size, stream.window_frames, stream.sink_frames)
    return len(sink) + len(recent) + size
