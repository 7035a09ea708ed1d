"""One step of training: rollout, scores, credit, update. It reads as the method."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NoReturn

import torch

from astrolabe.data.prompts import PromptList
from astrolabe.data.scripts import parse_script
from astrolabe.experiment import TrainConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rewards.base import Member, Scorer
from astrolabe.rl.algorithm import Algorithm
from astrolabe.rl.guards import BASE_CLIPS, Alarm, Meter, Watch, compared
from astrolabe.rl.policies import SLOTS, Policies
from astrolabe.rl.update import learning_rate, move_moments, update
from astrolabe.rollout.shown import Shown, kept_group
from astrolabe.rollout.window import Windows
from astrolabe.runtime.checkpoint import flatten_optimizer, restore_optimizer
from astrolabe.runtime.clock import Clock, Listener, unheard
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.random import rng_for
from astrolabe.runtime.world import ALONE, Stopped, World
from astrolabe.types import Experience, Footage, Latents, Metrics, Rollout, Scores


@dataclass(frozen=True)
class Trainer:
    """Everything that one step reads or changes."""

    cfg: TrainConfig
    generator: WanGenerator
    prompts: PromptList
    suite: list[Member]
    scorer: Callable[[int], Scorer]
    policies: Policies
    algorithm: Algorithm[Any]
    optimizer: torch.optim.Optimizer
    windows: Windows
    watch: Watch
    on_change: Listener = unheard  # hears the phases of a step
    world: World = ALONE  # the processes that share the work

    def step(self, step: int) -> StepResult:
        """One step, by all processes: what came of it. Stopped when one of them is asked to stop in time: then nothing
        has been learned yet, and all is as it was before."""
        self.world.first(step)
        return self.perform(step)

    def begin(self, start: int) -> None:
        """Let all processes begin where this one stands, before step ``start``."""
        self.world.first((start, self.state(start) if self.world.size > 1 else {}))

    def follow(self) -> NoReturn:
        """What the other processes do, until the first needs them no more."""
        nothing: tuple[int, dict[str, torch.Tensor]] = 0, {}
        start, state = self.world.first(nothing)
        self.restore(state, start)
        while True:
            with suppress(Stopped):  # all have given the step up, and the first knows what comes next
                self.perform(self.world.first(0))

    def perform(self, step: int) -> StepResult:
        """Rollout, scores, credit, update: one step of the method, on one window of the streams."""
        cfg, clock = self.cfg, Clock(partial(self.heard, step))
        number, window = divmod(step, cfg.window.per_stream)
        self.make_room("rollout")
        with clock.phase("history"), self.policies.using("behavior"):
            if window == 0:
                batch, seed, start = self.streams(number)
                self.windows.begin(batch, [parse_script(line) for line in batch], seed, start)
            place = self.windows.position
        scoring = self.scoring(cfg.rollout.group_size, clock)
        with clock.phase("rollout", cfg.rollout.prompts * cfg.rollout.group_size), self.policies.using("behavior"):
            rollout = self.windows.candidates(draw(cfg.seed, step, "rollout"), see=scoring.see)
        with clock.phase("rewards"):
            scores = scoring.scores(rollout.latents, cfg.max_dropped)
            alarms, metrics, better = self.compare_with_base(rollout, scores, scoring, step)
            best = self.policies.copy("behavior") if better else None
        with clock.phase("update"):
            experience, credit = self.algorithm.prepare(rollout, scores, rng_for(cfg.seed, step, "anchor"))
            shown = kept_group(experience, self.windows) if self.world.leads and self.shows(step) else None
            metrics |= credit | self.learn(experience, step, clock.reach)
            metrics |= self.algorithm.after_step(self.policies, step, metrics)
            if any(alarm.action == "refresh" for alarm in alarms):
                self.algorithm.regulariser.refresh(self.policies)
                metrics["reference_age"] = 0.0
        with clock.phase("commit"):
            if window + 1 < cfg.window.per_stream:
                self.make_room("rollout")
                with self.policies.using("behavior"):
                    self.windows.go_on(rollout.latents, self.chosen(experience, step))
        seconds = {f"seconds/{name}": spent for name, spent in clock.seconds.items()}
        metrics |= {"window": float(place)} | credit_metrics(experience) | seconds
        return StepResult(metrics, alarms, best, shown, scoring.scorer.refusals)

    def heard(self, step: int, phase: str, done: int, total: int) -> None:
        """A phase begins or goes on: for those who watch, and for the other processes."""
        if not done:
            self.world.at(f"step {step + 1}, {phase}")
        self.on_change(phase, done, total)

    def learn(self, experience: Experience, step: int, reach: Callable[[int, int], None]) -> Metrics:
        """One update, at the rate of the step."""
        cfg = self.cfg
        lr = self.watch.rate * learning_rate(cfg.optimizer, step, cfg.steps)
        self.make_room("update")
        rng = rng_for(cfg.seed, step, "update")
        found = update(
            self.generator, self.policies, self.algorithm, experience, self.optimizer, cfg.optimizer, lr, rng,
            self.world, reach,
        )  # fmt: skip
        return found | {"lr": lr}

    def shows(self, step: int) -> bool:
        """Whether a group of this step is kept for the report: now and then, and of the last."""
        return step % self.cfg.sample_every == 0 or step + 1 == self.cfg.steps or self.watch.stopped

    def scoring(self, group_size: int, clock: Clock) -> Scoring:
        """What scores candidates while they are made."""
        scorer = self.scorer(self.cfg.rollout.prompts * group_size)
        return Scoring(
            scorer, Meter(self.generator.stream.chunk_frames) if self.watch.wanted else None, clock, self.world
        )

    def compare_with_base(
        self, rollout: Rollout, scores: Scores, scoring: Scoring, step: int
    ) -> tuple[list[Alarm], Metrics, bool]:
        """What guards and judges see: this rollout, and a few clips that the base makes in the same place and history.
        Last, whether the judges rate it higher above the base than ever before."""
        other = self.scoring(BASE_CLIPS, scoring.clock)
        if scoring.meter is None or other.meter is None:
            return [], {}, False
        with self.policies.using(None):
            base = self.windows.candidates(draw(self.cfg.seed, step, "base"), BASE_CLIPS, other.see)
        normal = other.scores(base.latents, max_dropped=1.0)
        own, usual = compared((scoring.meter, rollout), (other.meter, base))
        means = [{n: s.column(n).nanmean().item() for n in s.names} for s in (scores, normal)]
        alarms, metrics = self.watch.see(own | means[0], usual | means[1])
        better = self.watch.judge(means[0], means[1])
        metrics |= {"judgement": self.watch.judgement} if self.watch.judges else {}
        return alarms, metrics | {f"alarm/{alarm.watch}/{alarm.action}": 1.0 for alarm in alarms}, better

    def streams(self, number: int) -> tuple[tuple[str, ...], int, int]:
        """Prompts, seed and first window of batch number ``number`` of streams: a function of the number alone."""
        start = self.cfg.window.start_of(self.cfg.seed, number, self.generator.stream.chunk_frames)
        return self.prompts.batch(number), draw(self.cfg.seed, number, "history"), start

    def chosen(self, experience: Experience, step: int) -> list[int]:
        """Which candidate of every prompt its stream goes on with."""
        size = experience.rollout.group_size
        if self.cfg.window.continue_with == "best":
            wish = experience.advantages
        else:
            wish = torch.rand(len(experience.advantages), generator=rng_for(self.cfg.seed, step, "continue"))
        # A candidate without a score may be broken: it becomes history only where there is no other.
        return wish.where(experience.scores.valid, -torch.inf).view(-1, size).argmax(1).tolist()

    def make_room(self, phase: Literal["rollout", "update"]) -> None:
        """With ``offload``, keep in the host's memory what the phase does not use."""
        if self.cfg.offload:
            home, away = self.generator.device, torch.device("cpu")
            asked = phase == "update" and self.cfg.regularisation.samples != "none"
            self.policies.move("reference", home if asked else away)
            self.generator.move_decoder(home if phase == "rollout" else away)
            move_moments(self.optimizer, home if phase == "update" else away)

    def state(self, step: int) -> dict[str, torch.Tensor]:
        """Every tensor that decides the future of a run that has done ``step`` steps: the slots, the optimiser, what
        algorithm and guards remember, and in the middle of a stream the streams. All else is a function of the step."""
        tensors = {f"{slot}/{key}": value for slot in SLOTS for key, value in self.policies.tensors(slot).items()}
        parts = {"optimizer": flatten_optimizer(self.optimizer, self.policies.trainable())}
        parts |= {"algorithm": self.algorithm.tensors(), "watch": self.watch.tensors()}
        if step % self.cfg.window.per_stream:
            parts["windows"] = self.windows.tensors()
        return tensors | {f"{part}/{key}": value for part, own in parts.items() for key, value in own.items()}

    def restore(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """The inverse of ``state``, strictly."""
        names = (*SLOTS, "optimizer", "algorithm", "watch", "windows")
        parts: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
        for key, value in tensors.items():
            owner, _, rest = key.partition("/")
            if owner not in parts:
                raise UserError(f"the checkpoint has an unknown part {owner!r}; it was written by another version")
            parts[owner][rest] = value
        if not parts["algorithm"] or not parts["watch"]:
            raise UserError("the checkpoint does not know its regularisation; it was written by another version")
        for slot in SLOTS:
            self.policies.load(slot, parts[slot])
        restore_optimizer(self.optimizer, self.policies.trainable(), parts["optimizer"])
        self.algorithm.restore(parts["algorithm"])
        self.watch.restore(parts["watch"])
        if step % self.cfg.window.per_stream:
            batch, seed, _ = self.streams(step // self.cfg.window.per_stream)
            with self.policies.using("behavior"):
                self.windows.open(batch, [parse_script(line) for line in batch], seed)
                self.windows.restore(parts["windows"])


@dataclass
class Scoring:
    """Judges and measures candidates as they come, in a phase of its own within the rollout."""

    scorer: Scorer
    meter: Meter | None
    clock: Clock
    world: World = ALONE
    seen: set[int] = field(default_factory=set)

    def see(self, part: Footage) -> None:
        """Score some of them."""
        with self.clock.phase("rewards"):
            self.scorer.see(part)
            if self.meter:
                self.meter.see(part)
        self.seen.update(part.rows.tolist())
        self.clock.reach(min(len(self.seen) * self.world.size, len(self.scorer.values)))  # the others are as far

    def scores(self, latents: Latents, max_dropped: float) -> Scores:
        """``Scorer.scores`` of all candidates, whichever process saw them."""
        scorer, own, measured = self.scorer, sorted(self.seen), self.meter.parts if self.meter else []
        found = self.world.others(lambda: (own, scorer.values[own], scorer.doubts[own], scorer.refusals, measured))
        for rows, values, doubts, refusals, parts in found:
            scorer.values[rows], scorer.doubts[rows] = values, doubts
            scorer.refusals.update({name: said for name, said in refusals.items() if name not in scorer.refusals})
            measured += parts
        return scorer.scores(latents, max_dropped)


@dataclass(frozen=True)
class StepResult:
    """The result of one step. ``best``: the behavior policy's adapter, if the judges rate it higher than ever before;
    ``shown``: a group for the report; ``refusals``: what rewards could not judge."""

    metrics: Metrics
    alarms: list[Alarm]
    best: dict[str, torch.Tensor] | None
    shown: Shown | None
    refusals: dict[str, str]


def draw(seed: int, step: int, purpose: str) -> int:
    """A seed for noise that belongs to (run, step, purpose)."""
    return int(torch.randint(2**62, (), generator=rng_for(seed, step, purpose)))


def credit_metrics(experience: Experience) -> Metrics:
    """Mean of every reward, its spread within groups, and the share of samples that teach anything."""
    scores, size = experience.scores, experience.rollout.group_size
    metrics: dict[str, Any] = {}
    for name in scores.names:
        column = scores.column(name)
        groups = column.view(-1, size)
        spread = (groups - groups.nanmean(1, keepdim=True)).square().nanmean(1).sqrt()
        metrics[f"reward/{name}"] = column.nanmean().item()
        metrics[f"group_std/{name}"] = spread.nanmean().item()
    metrics["latents_rms"] = experience.rollout.latents.square().mean().sqrt().item()  # grows when a policy runs away
    return metrics | {"useful_samples": (experience.advantages != 0).float().mean().item()}
