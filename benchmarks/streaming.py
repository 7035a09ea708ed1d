"""``python -m benchmarks.streaming``: what training along a stream costs, on a causal Wan of random weights.

    memory   the peak of a training step against the position of its window, and against G at a fixed micro-batch
    rollout  G candidates from one shared history against G made from the beginning, beside the ideal
    phases   the seconds of a step by phase, and what each of three savings saves: the shared history (1), attention by
             segments instead of one masked sequence (3), nothing computed twice (4)

Every measurement of memory has a process of its own; rivals in speed are measured in one process, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astrolabe.data.scripts import parse_script
from astrolabe.models.cache import RollingCache
from astrolabe.models.candidates import ClipContext, span
from astrolabe.models.visibility import visible
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rewards.base import Member, Scorer
from astrolabe.rewards.pixels import ANY_VIDEO
from astrolabe.rl import update as update_module
from astrolabe.rl.forward import Forward, PromptText
from astrolabe.rl.nft import NFT
from astrolabe.rl.policies import Policies
from astrolabe.rl.settings import LoraSettings, NFTSettings, OptimizerSettings
from astrolabe.rl.update import make_optimizer, update
from astrolabe.rollout.live import PlacedNoise, VideoStream
from astrolabe.rollout.settings import RolloutSettings, WindowSettings
from astrolabe.rollout.window import Windows
from astrolabe.runtime.arguments import Parser, run_program, whole
from astrolabe.runtime.clock import Clock
from astrolabe.trainer import Scoring
from astrolabe.types import Experience, Rollout, Scores, TextEmbeddings
from benchmarks import generation
from benchmarks.measuring import GIVE_BACK, at_rest, peak_of_process, reset_peak, resident
from benchmarks.provenance import write_result

RESULT = Path("benchmarks/results/streaming.json")
WINDOW = 21  # latent frames of a clip, and of what a chunk sees
POSITIONS, GROUPS = (21, 84, 336, 1344, 2046), (8, 16, 24, 48)
PREFIX, RATIO_GROUPS, TURNS = 60, (8, 24), 2
ANCHORED = 2  # of 16 samples, where a step is split into phases


class AnyText:
    """Embeddings of 16 words."""

    def check(self, texts: Sequence[str]) -> None:
        """Any text will do."""

    def encode(self, texts: Sequence[str]) -> TextEmbeddings:
        rngs = [torch.Generator().manual_seed(sum(map(ord, text))) for text in texts]
        return torch.stack([torch.randn(16, 64, generator=rng) for rng in rngs])


def model() -> WanGenerator:
    """Four blocks, 32 x 64 pixels, window 21 with a sink of 3, relative positions."""
    args = argparse.Namespace(size="tiny", dtype="float32", device="cpu", window=WINDOW, sink=3)
    made = generation.build(args)
    made.text_encoder = AnyText()
    return made


class Training:
    """One model in training along streams of one prompt or several."""

    def __init__(self, group: int, micro_batch: int, prompts: int = 1):
        self.generator, self.prompts = model(), [f"prompt {i}" for i in range(prompts)]
        self.policies = Policies(self.generator.transformer, LoraSettings(rank=16, alpha=16.0), torch.Generator())
        self.options = OptimizerSettings(lr=1e-4, micro_batch=micro_batch)
        self.optimizer = make_optimizer(self.policies, self.options)
        self.algorithm = NFT(NFTSettings(beta=1.0, behavior_keep=0.9), (1.0,))
        rollout = RolloutSettings(prompts=prompts, group_size=group, micro_batch=micro_batch)
        self.windows = Windows(self.generator, rollout, WindowSettings(frames=WINDOW, video_frames=4098))

    def begin(self, start: int) -> None:
        """New streams, as far as ``start``."""
        with self.policies.using("behavior"):
            self.windows.begin(self.prompts, [parse_script(line) for line in self.prompts], 0, start)

    def step(self, seed: int = 0) -> None:
        """Candidates, scores, an update with credit at random, and on with one of them."""
        with self.policies.using("behavior"):
            scoring = self.scoring()
            with scoring.clock.phase("rollout"):
                rollout = self.windows.candidates(seed, see=scoring.see)
        self.learn(rollout, seed)
        with self.policies.using("behavior"):
            self.windows.go_on(rollout.latents, [0] * len(self.prompts))

    def scoring(self) -> Scoring:
        """One reward that scores candidates as they come."""
        rows = self.windows.rollout.prompts * self.windows.rollout.group_size
        return Scoring(Scorer([Member(ANY_VIDEO["pixel_motion"])], rows), None, Clock())

    def learn(self, rollout: Rollout, seed: int, anchored: int = 0) -> None:
        """The update, some samples anchored; videos of random weights are all alike: their scores say nothing."""
        credit = torch.randn(len(rollout.latents), generator=torch.Generator().manual_seed(seed))
        scores = Scores(("credit",), credit[:, None])
        experience = Experience(
            rollout, scores, credit, self.algorithm.credit(credit), torch.arange(len(credit)) < anchored
        )
        update(self.generator, self.policies, self.algorithm, experience, self.optimizer, self.options, 1e-4,
               torch.Generator().manual_seed(seed))  # fmt: skip


def memory_of_a_step(position: int, group: int) -> int:
    """Bytes at the peak of a step whose window stands at ``position``, after one that did the same elsewhere."""
    run = Training(group, micro_batch=4)
    run.begin(WINDOW)
    run.step()
    run.begin(position)
    at_rest()
    reset_peak()
    run.step()
    return peak_of_process()


def in_a_process(*words: str) -> Any:
    """The last line that this module prints with ``words``, as JSON."""
    child = subprocess.run([sys.executable, "-m", "benchmarks.streaming", *words], env=os.environ | GIVE_BACK,
                           check=True, stdout=subprocess.PIPE, text=True)  # fmt: skip
    return json.loads(child.stdout.splitlines()[-1])


def memory() -> dict[str, Any]:
    """Peaks against position and against G, and by how much each grows."""
    along = {position: in_a_process("--memory", str(position), "8") for position in POSITIONS}
    wide = {group: in_a_process("--memory", "21", str(group)) for group in GROUPS}
    growth = [max(peaks.values()) / min(peaks.values()) - 1 for peaks in (along, wide)]
    print(f"memory grows by {growth[0]:.2%} along the stream, by {growth[1]:.2%} with the group", flush=True)
    return {
        "memory_vs_length": along, "memory_vs_length_growth": round(growth[0], 4),
        "memory_vs_group": wide, "memory_vs_group_growth": round(growth[1], 4), "imports_bytes": resident(),
    }  # fmt: skip


@torch.no_grad()
def rollout_ratio(group: int) -> dict[str, float]:
    """How many times faster candidates of one history are than candidates from the beginning."""
    generator, prompts = model(), ["a", "b"]
    settings = RolloutSettings(prompts=len(prompts), group_size=group, micro_batch=min(group, 8))
    windows = Windows(generator, settings, WindowSettings(frames=WINDOW, video_frames=PREFIX + WINDOW))

    def shared() -> None:
        windows.begin(prompts, [parse_script(line) for line in prompts], 0, PREFIX)
        windows.candidates(1)

    def alone() -> None:
        for part in torch.arange(group).split(settings.micro_batch):
            text = generator.encode_text(prompts).repeat_interleave(len(part), 0)
            stream = VideoStream(generator, text, PlacedNoise(1, range(len(text))))
            for _ in range((PREFIX + WINDOW) // 3):
                stream.step()

    ideal = group * (PREFIX + WINDOW) / (PREFIX + group * WINDOW)
    seconds = in_turns({"shared": shared, "alone": alone})
    measured = seconds["alone"] / seconds["shared"]
    print(f"G = {group}: {measured:.2f} times as fast, ideally {ideal:.2f} ({measured / ideal:.0%})", flush=True)
    return {"measured": round(measured, 3), "ideal": round(ideal, 3), "share": round(measured / ideal, 3), **seconds}


def in_turns(rivals: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each, measured in turns after a first go."""
    found: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(TURNS + 1):
        for name, run in rivals.items():
            began = time.monotonic()
            run()
            if turn:
                found[name].append(time.monotonic() - began)
    return {name: round(statistics.median(seconds), 3) for name, seconds in found.items()}


@contextmanager
def patched(owner: Any, name: str, other: Any) -> Iterator[None]:
    """Within the scope ``owner.name`` is something else."""
    kept = owner.__dict__.get(name, None)
    setattr(owner, name, other)
    try:
        yield
    finally:
        if kept is None:
            delattr(owner, name)
        else:
            setattr(owner, name, kept)


def copies(generator: WanGenerator) -> Callable[..., Any]:
    """``new_candidates`` that copies the history for each candidate first."""

    def new_candidates(history: RollingCache, group: int, frames: int) -> Any:
        return WanGenerator.new_candidates(generator, history.fork(group), 1, frames)

    return new_candidates


class OneMask(ClipContext):
    """Switches saving 3 off: attention over history, clean clip and noisy clip as one sequence under a mask."""

    def facing(self, run: slice = slice(None)) -> ClipContext:
        """See ``ClipContext``."""
        return OneMask(self.stream, self.frames, self.history, self, run)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See ``ClipContext``."""
        history, before = self.history, self.history.frames if self.history else 0
        assert history is not None
        tokens = history.frame_tokens
        held = range(max(0, before - WINDOW), before)  # the mask leaves out what is not visible
        keys, values = [key], [value]
        if self.clean is None:
            self.keys.append(key.unflatten(1, (-1, tokens)))
            self.values.append(value.unflatten(1, (-1, tokens)))
        else:
            keys.insert(0, torch.cat(span(self.clean.keys[layer], slice(0, self.frames)), 1))
            values.insert(0, torch.cat(span(self.clean.values[layer], slice(0, self.frames)), 1))
        filled = min(history.frames, history.slots) * tokens
        keys.insert(0, history.keys[layer][:, :filled].expand(len(key), -1, -1, -1))
        values.insert(0, history.values[layer][:, :filled].expand(len(key), -1, -1, -1))
        mask = self._mask(len(held), filled // tokens).repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        q, k, v = query.transpose(1, 2), torch.cat(keys, 1).transpose(1, 2), torch.cat(values, 1).transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    def _mask(self, held: int, slots: int) -> Tensor:
        """[clip, slots + (clean) + clip] frames: as much is computed as in the true mask; which slot is whose is not
        minded, for only the time counts here."""
        before = self.history.frames if self.history else 0
        mask = torch.zeros(self.frames, slots + (self.frames if self.clean else 0) + self.frames, dtype=torch.bool)
        for first, end in self.stream.chunks(self.frames):
            _, recent = visible(before + first, before + end, self.stream.window_frames, self.stream.sink_frames)
            mask[first:end, max(0, slots - (before - recent.start)) : slots] = recent.start < before
            place = slots + (max(recent.start, before) - before)
            mask[first:end, place : slots + first] = True
            mask[first:end, mask.shape[1] - self.frames + first : mask.shape[1] - self.frames + end] = True
        return mask


class Twice(Forward):
    """Switches saving 4 off: text anew for every forward, behavior even where it equals the learner, a reference for
    every sample."""

    def predict(self, noisy: Tensor, sigma: Tensor, chunks: slice) -> tuple[Tensor, Tensor]:
        """See ``Forward``."""
        self.policies.alike = False
        self.text = PromptText(self.generator, self.policies, self.stretch.text.expand(len(noisy), -1, -1))
        with torch.no_grad(), self.policies.using("reference"):
            text = self.generator.condition(self.stretch.text.expand(len(noisy), -1, -1))
            self.generator.velocity_in_context(noisy, sigma, text, self.context, chunks)
        return super().predict(noisy, sigma, chunks)


def phases() -> dict[str, Any]:
    """Seconds of a step by phase, and of rollout and update with each saving switched off."""
    run = Training(group=8, micro_batch=8, prompts=2)
    run.begin(PREFIX)
    with run.policies.using("behavior"):
        rollout = run.windows.candidates(0)
    generator = run.generator

    def make() -> None:
        blank = torch.zeros(16, 12, 3, 1, 1)  # decoding is the same either way, and takes the most
        with run.policies.using("behavior"), patched(generator, "decode", lambda chunk, state: (blank, None)):
            run.windows.candidates(0)

    def make_copies() -> None:
        with patched(generator, "new_candidates", copies(generator)):
            make()

    def learn_masked() -> None:
        with patched(sys.modules["astrolabe.models.wan.generator"], "ClipContext", OneMask):
            run.learn(rollout, 0)

    def learn_twice() -> None:
        with patched(update_module, "Forward", Twice):
            run.learn(rollout, 0)

    saved = {
        "1 shared history": in_turns({"with": make, "without": make_copies}),
        "3 attention by segments": in_turns({"with": lambda: run.learn(rollout, 0), "without": learn_masked}),
        "4 nothing twice": in_turns({"with": lambda: run.learn(rollout, 0), "without": learn_twice}),
    }
    speedup = {name: round(pair["without"] / pair["with"], 3) for name, pair in saved.items()}
    split = by_phase(run)
    print(json.dumps({"phases": split, "speedup": speedup}), flush=True)
    return {"phases_seconds": split, "savings_seconds": saved, "speedup": speedup}


def by_phase(run: Training) -> dict[str, float]:
    """Seconds of one step: what each part of it takes, of which the others know nothing."""
    spent: defaultdict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began = time.monotonic()
            out = function(*args)
            phase = name
            if name == "learner":
                phase = run.policies.active or "base"
            spent[phase] += time.monotonic() - began
            return out

        return call

    scoring = run.scoring()
    generator, optimizer = run.generator, run.optimizer
    began = time.monotonic()
    with (
        patched(generator, "decode", timed("decode", generator.decode)),
        patched(generator, "context", timed("context", generator.context)),
        patched(generator, "velocity_in_context", timed("learner", generator.velocity_in_context)),
        patched(optimizer, "step", timed("optimizer", optimizer.step)),
        patched(Tensor, "backward", timed("backward", Tensor.backward)),
        patched(Windows, "candidates", timed("rollout", Windows.candidates)),
    ):
        with run.policies.using("behavior"), scoring.clock.phase("rollout"):
            rollout = run.windows.candidates(0, None, scoring.see)
        run.learn(rollout, 0, ANCHORED)
    spent["reward"] = scoring.clock.seconds["rewards"]
    spent["rollout"] -= spent["decode"] + spent["reward"]
    names = ("rollout", "decode", "reward", "context", "behavior", "learner", "backward", "reference", "optimizer")
    return {name: round(spent[name], 3) for name in names} | {"whole step": round(time.monotonic() - began, 3)}


def main(argv: Sequence[str] | None = None) -> None:
    """Every part, then the JSON."""
    parser = Parser(prog="python -m benchmarks.streaming", description=__doc__)
    parser.add_argument("--memory", type=whole(1), nargs=2, help=argparse.SUPPRESS)
    args = parser.read(argv)
    if args.memory:
        print("\n" + json.dumps(memory_of_a_step(*args.memory)))
        return
    content = memory()
    content["rollout_ratio"] = {str(group): rollout_ratio(group) for group in RATIO_GROUPS}
    content |= phases()
    write_result(RESULT, "python -m benchmarks.streaming", content)


if __name__ == "__main__":
    run_program(main)
