"""``astrolabe plan``: the memory and the time that a step of a recipe takes, before it is run anywhere.

The heavy parts of a step are played by the code that trains, on tensors that have shapes but no numbers
(``plan.plays``), and put together here: what is held while each part is at work, and how often each is. Of chunks the
first and the last are played, and those between lie on the line through them, for they differ in how many frames they
look back at. Seconds are work over rates, kind by kind (``plan.cards``). Nothing is loaded and no device is needed: a
laptop plans for a card that it does not have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from astrolabe.assembly import make_algorithm, make_watch
from astrolabe.experiment import TrainConfig
from astrolabe.models.wan.config import StreamConfig
from astrolabe.plan.cards import BUS, HOST, Rates
from astrolabe.plan.ledger import Number, Work
from astrolabe.plan.plays import (
    NOTHING,
    Measurer,
    PartCost,
    looks,
    play_history,
    play_optimizer,
    play_rollout,
    play_update,
    side_by_side,
)
from astrolabe.rewards.base import at_once
from astrolabe.rewards.costs import Cost, Seen, costs
from astrolabe.rl.guards import BASE_CLIPS
from astrolabe.shapes.settings import FPS

SIDE = 8  # pixels of a latent's side


@dataclass(frozen=True)
class Phase:
    """What one phase of a step takes: bytes at most, work on the device, work of the host's processor, bytes between
    the two memories. ``beside``: processes of their own do it while candidates are made."""

    bytes: Number
    work: Work = NOTHING
    hosted: Work = NOTHING
    moved: Number = 0.0
    beside: bool = False

    def seconds(self, rates: Rates) -> Number:
        """Seconds, one kind of work after another."""
        return rates.seconds(self.work) + HOST.seconds(self.hosted) + self.moved / BUS


@dataclass(frozen=True)
class Plan:
    """What a step takes: bytes that are held, by owner, and which owners rest in the host's memory for part of it;
    phases; and what the host keeps for a GPU."""

    held: dict[str, Number]
    resting: frozenset[str]
    phases: dict[str, Phase]
    host: dict[str, Number] = field(default_factory=dict)
    frames: Number = 0.0  # bytes of the frames of a micro-batch, in the host's memory
    judging: Number = 0.0  # bytes of those that are judged at once

    @property
    def peak(self) -> Number:
        """The most bytes at one time on the device."""
        return max(phase.bytes for phase in self.phases.values())

    def total(self, on_host: bool) -> Number:
        """The most bytes at one time, with the frames when device and host share their memory."""
        if not on_host:
            return self.peak
        # Frames are judged as they come, and given back.
        filming = max(self.phases[name].bytes for name in ("rollout", "decode"))
        return max(self.peak, self.frames + filming, self.frames + sum(self.held.values()) + self.judging)

    def seconds(self, rates: Rates) -> dict[str, Number]:
        """Seconds of every phase."""
        return {name: phase.seconds(rates) for name, phase in self.phases.items()}

    def step(self, rates: Rates) -> Number:
        """Seconds of a step: of its phases one after another, but for what is done beside them."""
        seconds = self.seconds(rates)
        beside = sum(seconds[name] for name, phase in self.phases.items() if phase.beside)
        hidden = min(beside, seconds["rollout"] + seconds["decode"])
        return sum(seconds.values()) - hidden


@dataclass(frozen=True)
class Sizes:
    """Numbers of a step that its phases share."""

    cfg: TrainConfig
    stream: StreamConfig
    shape: tuple[int, int, int]

    @property
    def rows(self) -> int:
        """Candidates that are made at once."""
        return side_by_side(self.cfg) * self.cfg.rollout.micro_batch

    @property
    def batches(self) -> Number:
        """Times that so many are made in a step; the base makes some too where it is compared with."""
        rollout = self.cfg.rollout
        some = BASE_CLIPS / rollout.micro_batch if make_watch(self.cfg).wanted else 0
        return self.tracks * (math.ceil(rollout.group_size / rollout.micro_batch) + some)

    @property
    def tracks(self) -> float:
        """Batches of streams, one after another."""
        return self.cfg.rollout.prompts / side_by_side(self.cfg)

    @property
    def chunks(self) -> int:
        """Of a clip."""
        return self.cfg.window.frames // self.stream.chunk_frames

    @property
    def start(self) -> Number:
        """Latent frames before the first window of a stream, on average."""
        window = self.cfg.window
        if window.start == "first":
            return 0.0
        return sum(window.choices) / len(window.choices) if window.choices else (window.length - window.along) / 2

    @property
    def deepest(self) -> int:
        """Latent frames before the last window of a stream, where it stands latest."""
        return self.cfg.window.length - self.cfg.window.frames

    @property
    def clips(self) -> Number:
        """Bytes of the clips of all candidates; where the algorithm needs them, also of their trajectories."""
        steps = 2 * len(self.stream.levels) if make_algorithm(self.cfg).needs_trajectory else 0
        clip = 4 * self.cfg.window.frames * math.prod(self.shape)
        return clip * self.cfg.rollout.prompts * self.cfg.rollout.group_size * (1 + steps)

    @property
    def trajectory(self) -> Number:
        """Bytes of the trajectories of a micro-batch."""
        steps = 2 * len(self.stream.levels) if make_algorithm(self.cfg).needs_trajectory else 0
        return 4 * self.cfg.window.frames * math.prod(self.shape) * self.rows * steps

    @property
    def seen(self) -> Seen:
        """A candidate's video."""
        frames = 4 * self.cfg.window.frames - (3 if self.deepest == 0 else 0)
        return Seen(frames, SIDE * self.shape[1], SIDE * self.shape[2], float(FPS))

    def between(self, one: PartCost, other: PartCost, ends: tuple[Number, Number], first: Number) -> Work:
        """The work of a pass over the chunk from ``first`` on, by those over the chunks at ``ends``."""
        low, high = (looks(self.stream, end) for end in ends)
        share = (looks(self.stream, first) - low) / (high - low) if high > low else 0.0
        return one.work + share * (other.work - one.work)

    def levels(self, first: Number) -> int:
        """Denoising steps of the chunk from ``first`` on."""
        return len(self.stream.levels_of(0 if first < self.stream.chunk_frames else 1))


def make_plan(cfg: TrainConfig, measurer: Measurer | None = None, on_host: bool = True) -> Plan:
    """The plan of a step of ``cfg``; ``on_host``: the model's device is the host, and nothing can rest elsewhere."""
    measurer = measurer or Measurer()
    generator = measurer.generator(cfg)
    sizes = Sizes(cfg, generator.stream, generator.latent_shape)
    held = measurer.held(cfg)
    moments = measurer.part(play_optimizer, cfg, cfg.optimizer.minibatches)
    held["optimizer"] = moments["moments"].kept
    suite = list(costs(cfg.rewards, sizes.seen, videos_at_once(sizes)))
    pooled = cfg.pool.backend == "ray" and not on_host
    here = [] if pooled else [one for one in suite if one.model.place == cfg.model.place]
    held["rewards"] = sum(one.held for one in here)
    asked = cfg.regularisation.samples != "none"
    resting = frozenset(("decoder", "reference", "optimizer", "rewards") if cfg.offload and not on_host else ())
    away = {"rollout": resting - {"decoder"}, "update": resting - {"optimizer"} - ({"reference"} if asked else set())}
    standing = {name: sum(count for owner, count in held.items() if owner not in gone) for name, gone in away.items()}
    phases = filmed(measurer, sizes, standing["rollout"])
    phases["rewards"] = judged(sizes, suite, here, standing["rollout"] + kept(measurer, sizes), resting, pooled)
    phases |= learned(measurer, sizes, standing["update"])
    travels = [held[name] for name in resting if name not in ("rewards", "" if asked else "reference")]
    phases["update"] = replace(phases["update"], moved=2 * sum(travels))
    video = 3 * sizes.seen.frames * sizes.seen.height * sizes.seen.width
    host = {"what rests there": sum(held[name] for name in resting)}
    host["rewards on the processor"] = sum(one.held for one in suite if one.model.place == "cpu" and one not in here)
    return Plan(
        held, resting, phases, {name: count for name, count in host.items() if count and not on_host},
        sizes.rows * video, (1 + 3 * 4) * videos_at_once(sizes) * video,  # bytes, and what a reward makes of them
    )  # fmt: skip


def videos_at_once(sizes: Sizes) -> int:
    """Videos that are judged together."""
    return min(sizes.rows, at_once(3 * sizes.seen.frames * sizes.seen.height * sizes.seen.width))


def kept(measurer: Measurer, sizes: Sizes) -> Number:
    """Bytes that streams and candidates keep, in whichever phase."""
    cfg = sizes.cfg
    history = measurer.part(play_history, cfg, cfg.window, side_by_side(cfg))
    state = measurer.decoded(cfg)["state"].kept * cfg.rollout.prompts if sizes.deepest else 0.0
    return sizes.tracks * history["stream"].kept + state + sizes.clips


def filmed(measurer: Measurer, sizes: Sizes, standing: Number) -> dict[str, Phase]:
    """The phases in which videos are made."""
    cfg, size = sizes.cfg, sizes.stream.chunk_frames
    made = measurer.part(play_rollout, cfg, cfg.window, side_by_side(cfg), cfg.rollout.micro_batch)
    decoding, chunks = measurer.decoded(cfg), sizes.chunks
    there = standing + kept(measurer, sizes) + sizes.trajectory + made["candidates"].kept
    ends = (sizes.deepest, sizes.deepest + (chunks - 1) * size)
    work = NOTHING
    for place in (sizes.start + chunk * size for chunk in range(chunks)):
        commit = place < sizes.start + (chunks - 1) * size  # nothing looks back at the last
        passes = sizes.levels(place) + commit
        work += passes * sizes.between(made["first"], made["last"], ends, place + sizes.deepest - sizes.start)
    opening = sizes.deepest == 0
    pixels = opening * decoding["first"].work + (chunks - opening) * decoding["later"].work
    most = max(decoding["first"].bytes, decoding["first"].kept + decoding["later"].bytes)
    phases = {"history": remembered(measurer, sizes, standing)} if sizes.deepest else {}
    return phases | {
        "rollout": Phase(there + max(made["first"].bytes, made["last"].bytes), sizes.batches * work),
        "decode": Phase(there + sizes.rows * most, sizes.batches * sizes.rows * pixels),
    }


def remembered(measurer: Measurer, sizes: Sizes, standing: Number) -> Phase:
    """The phase in which the streams come to where their windows stand: denoised up to the first, and then a candidate
    of every window committed and decoded."""
    cfg, size = sizes.cfg, sizes.stream.chunk_frames
    found = measurer.part(play_history, cfg, cfg.window, side_by_side(cfg))
    decoding, ends = measurer.decoded(cfg), (0, sizes.deepest - size)
    first, last = (replace(found[name], work=(1 / (sizes.levels(end) + 1)) * found[name].work)
                   for name, end in zip(("first", "last"), ends, strict=True))  # fmt: skip
    each = 1 / cfg.window.per_stream  # a step is one window of a stream
    work, chunks = NOTHING, sizes.start / size
    for chunk in range(math.ceil(chunks)):
        share = each * min(1.0, chunks - chunk)
        work += share * (sizes.levels(chunk * size) + 1) * sizes.between(first, last, ends, chunk * size)
    commits = (1 - each) * sizes.chunks
    work += commits * last.work
    frames = cfg.rollout.prompts * (each * chunks + commits) * decoding["later"].work
    most = side_by_side(cfg) * (decoding["first"].kept + decoding["later"].bytes)
    peak = max(found["first"].bytes, found["last"].bytes, found["stream"].kept + most)
    # The streams of the batches before it are there already.
    before = (sizes.tracks - 1) * (found["stream"].kept + side_by_side(cfg) * decoding["state"].kept)
    return Phase(standing + before + peak, sizes.tracks * work + frames)


def judged(
    sizes: Sizes, suite: list[Cost], here: list[Cost], there: Number, resting: frozenset[str], pooled: bool
) -> Phase:
    """The phase of the rewards. What rests comes to the device for every judgement, one network at a time."""
    rollout = sizes.cfg.rollout
    videos = rollout.prompts * (rollout.group_size + (BASE_CLIPS if make_watch(sizes.cfg).wanted else 0))
    work, hosted = NOTHING, NOTHING
    for one in suite:
        tensor, exact = (0, one.operations) if one.exact else (one.operations, 0)
        done = videos * Work(tensor, exact, one.traffic)
        if one.model.place == "cpu" and one not in here:
            hosted += done
        else:
            work += done
    visits = sizes.batches * math.ceil(sizes.rows / videos_at_once(sizes)) if "rewards" in resting else 0
    needs = [one.judging + (one.held if "rewards" in resting else 0.0) for one in here]
    moved = visits * sum(one.held for one in here)
    return Phase(there + max(needs, default=0.0), work, hosted, moved, pooled)


def learned(measurer: Measurer, sizes: Sizes, standing: Number) -> dict[str, Phase]:
    """The phases of the update."""
    cfg, rollout, options = sizes.cfg, sizes.cfg.rollout, sizes.cfg.optimizer
    found = measurer.part(play_update, cfg, cfg.window, options, cfg.algorithm, cfg.regularisation.samples)
    stepped = measurer.part(play_optimizer, cfg, options.minibatches)["optimizer"]
    samples = rollout.prompts * math.ceil(options.share * rollout.group_size)
    pull = cfg.regularisation
    free = {"none": 0.0, "uniform": 0.0}.get(pull.samples, 1 - pull.share_bounds[1])  # samples that none pulls
    rest = found["update"].work - found["text"].work - free * found["anchored"].work
    there = standing + kept(measurer, sizes)
    return {
        "update": Phase(
            there + found["update"].bytes, rollout.prompts * found["text"].work + samples / options.micro_batch * rest
        ),
        "optimizer": Phase(there + stepped.bytes, options.minibatches * stepped.work),
    }
