"""The training loop: it reads as the method."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from astrolabe.assembly import check_windows, make_algorithm, make_prompts, make_scorers, make_watch
from astrolabe.data.prompts import PromptList
from astrolabe.data.scripts import parse_script
from astrolabe.experiment import TrainConfig, resolved
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.rewards.base import Member, Scorer, ScoringError
from astrolabe.rl.algorithm import Algorithm
from astrolabe.rl.guards import BASE_CLIPS, Alarm, Meter, Watch, compared
from astrolabe.rl.policies import SLOTS, Policies
from astrolabe.rl.update import learning_rate, make_optimizer, update
from astrolabe.rollout.shown import Shown, kept_group
from astrolabe.rollout.window import Windows
from astrolabe.runs.disk import check_disk
from astrolabe.runs.folder import ADAPTER, BEST, RunFolder
from astrolabe.runs.history import Origin, record
from astrolabe.runs.opening import base_fingerprint, check_init, initial, make_policies, save_adapter
from astrolabe.runs.session import announce, chronicled, ending
from astrolabe.runtime.checkpoint import fingerprint, flatten_optimizer, load_tensors, restore_optimizer, save_tensors
from astrolabe.runtime.clock import Clock, Listener, nobody
from astrolabe.runtime.display import training_display
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import claimed
from astrolabe.runtime.interrupts import Interrupted, graceful_interrupt
from astrolabe.runtime.random import rng_for
from astrolabe.runtime.tracking import MetricsLog, TensorBoardLog, summary_writer
from astrolabe.shapes.settings import FPS
from astrolabe.types import Experience, Footage, Metrics, Rollout, Scores


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
    on_change: Listener = nobody  # hears the phases of a step

    def step(self, step: int) -> Turn:
        """Rollout, scores, credit, update: one turn of the method, on one window of the streams."""
        cfg, clock = self.cfg, Clock(self.on_change)
        number, turn = divmod(step, cfg.window.per_stream)
        self.make_room("rollout")
        with clock.phase("history"), self.policies.using("behavior"):
            if turn == 0:
                batch, seed, start = self.streams(number)
                self.windows.begin(batch, [parse_script(line) for line in batch], seed, start)
            place = self.windows.position
        eye = self.eye(cfg.rollout.group_size, clock)
        with clock.phase("rollout", cfg.rollout.prompts * cfg.rollout.group_size), self.policies.using("behavior"):
            rollout = self.windows.candidates(draw(cfg.seed, step, "rollout"), see=eye.see)
        with clock.phase("rewards"):
            scores = eye.scorer.scores(rollout.latents, cfg.max_dropped)
            alarms, metrics, better = self.compare_with_base(rollout, scores, eye, step)
            best = self.policies.copy("behavior") if better else None
        with clock.phase("update"):
            experience, credit = self.algorithm.prepare(rollout, scores, rng_for(cfg.seed, step, "anchor"))
            shown = kept_group(experience, self.windows) if self.shows(step) else None
            metrics |= credit | self.learn(experience, step)
            metrics |= self.algorithm.after_step(self.policies, step, metrics)
            if any(alarm.action == "refresh" for alarm in alarms):
                self.algorithm.regulariser.refresh(self.policies)
                metrics["reference_age"] = 0.0
        with clock.phase("commit"):
            if turn + 1 < cfg.window.per_stream:
                self.make_room("rollout")
                with self.policies.using("behavior"):
                    self.windows.go_on(rollout.latents, self.chosen(experience, step))
        seconds = {f"seconds/{name}": spent for name, spent in clock.seconds.items()}
        metrics |= {"window": float(place)} | credit_metrics(experience) | seconds
        return Turn(metrics, alarms, best, shown, eye.scorer.refusals)

    def learn(self, experience: Experience, step: int) -> Metrics:
        """One update, at the rate of the step."""
        cfg = self.cfg
        lr = self.watch.rate * learning_rate(cfg.optimizer, step, cfg.steps)
        self.make_room("update")
        rng = rng_for(cfg.seed, step, "update")
        found = update(
            self.generator, self.policies, self.algorithm, experience, self.optimizer, cfg.optimizer, lr, rng
        )
        return found | {"lr": lr}

    def shows(self, step: int) -> bool:
        """Whether a group of this step is kept for the report: now and then, and of the last."""
        return step % self.cfg.sample_every == 0 or step + 1 == self.cfg.steps or self.watch.stopped

    def eye(self, group_size: int, clock: Clock) -> Eye:
        """What looks at candidates while they are made."""
        scorer = self.scorer(self.cfg.rollout.prompts * group_size)
        return Eye(scorer, Meter(self.generator.stream.chunk_frames) if self.watch.wanted else None, clock)

    def compare_with_base(
        self, rollout: Rollout, scores: Scores, eye: Eye, step: int
    ) -> tuple[list[Alarm], Metrics, bool]:
        """What guards and judges see: this rollout, and a few clips that the base makes in the same place and history.
        Last, whether the judges have never found it as much better."""
        other = self.eye(BASE_CLIPS, eye.clock)
        if eye.meter is None or other.meter is None:
            return [], {}, False
        with self.policies.using(None):
            base = self.windows.candidates(draw(self.cfg.seed, step, "base"), BASE_CLIPS, other.see)
        normal = other.scorer.scores(base.latents, max_dropped=1.0)
        own, usual = compared((eye.meter, rollout), (other.meter, base))
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
        # What no reward could score may be broken: it never becomes history while there is another.
        return wish.where(experience.scores.valid, -torch.inf).view(-1, size).argmax(1).tolist()

    def make_room(self, phase: Literal["rollout", "update"]) -> None:
        """With ``offload``, keep in the host's memory what the phase does not use."""
        if self.cfg.offload:
            home, away = self.generator.device, torch.device("cpu")
            asked = phase == "update" and self.cfg.regularisation.samples != "none"
            self.policies.move("reference", home if asked else away)
            self.generator.move_decoder(home if phase == "rollout" else away)

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
class Eye:
    """Judges and measures candidates as they come, in a phase of its own within theirs."""

    scorer: Scorer
    meter: Meter | None
    clock: Clock
    seen: set[int] = field(default_factory=set)

    def see(self, part: Footage) -> None:
        """Look at some of them."""
        with self.clock.phase("rewards"):
            self.scorer.see(part)
            if self.meter:
                self.meter.see(part)
        self.seen.update(part.rows.tolist())
        self.clock.reach(len(self.seen))


@dataclass(frozen=True)
class Turn:
    """What came of a step; ``best``: the acting adapter, if the judges were never as content with it as now; ``shown``:
    a group for the report; ``refusals``: what rewards could not judge."""

    metrics: Metrics
    alarms: list[Alarm]
    best: dict[str, torch.Tensor] | None
    shown: Shown | None
    refusals: dict[str, str]


def draw(seed: int, step: int, purpose: str) -> int:
    """A seed for noise that belongs to (run, step, purpose)."""
    return int(torch.randint(2**62, (), generator=rng_for(seed, step, purpose)))


def train(cfg: TrainConfig, out: Path, origin: Origin | None = None) -> Path:
    """Align a model: new, or on from the last checkpoint in ``out``. Returns the run's folder, and says how it ended.

    ``origin`` is for the run's history. Raises UserError for a folder that is not this run's, Interrupted after Ctrl-C.
    """
    cfg, folder, origin = resolved(cfg), RunFolder(out), origin or Origin()
    with ExitStack() as stack:
        if folder.exists:
            stack.enter_context(claimed(out))
            if folder.already_done(cfg):
                print(ending(folder, already=True))
                return out
        changed = folder.examine(cfg)
        trainer = stack.enter_context(opened(cfg, folder))
        identity = {"base": base_fingerprint(trainer.generator), "prompts": digest(trainer.prompts)}
        start, identity = resume(trainer, folder, identity)
        if folder.exists:
            announce(folder, changed, cfg)
            folder.go_on(changed, origin)
        else:  # a folder is made only when all that can be wrong has been looked at
            stack.enter_context(claimed(out))
            if folder.exists:
                raise UserError(
                    f"{out}: another process has begun a run here meanwhile; wait for it, or name another folder"
                )
            folder.begin(cfg, origin, init=identity.get("init", ""))
        with chronicled(folder):
            loop(trainer, folder, start, identity)
            finish(trainer, folder, identity["base"])
    print(ending(folder))
    return out


@contextmanager
def opened(cfg: TrainConfig, folder: RunFolder) -> Iterator[Trainer]:
    """Everything that a configuration names. UserError for what cannot work: first what costs nothing to see."""
    prompts, algorithm = make_prompts(cfg), make_algorithm(cfg)
    make_watch(cfg)
    check_windows(cfg, prompts, algorithm)
    if cfg.tensorboard:
        summary_writer()
    if not folder.steps:
        check_init(cfg)
    with make_scorers(cfg) as (suite, scorer):
        watch = make_watch(cfg, suite)
        generator = cfg.model.open()
        generator.check_prompts(prompts.texts)
        check_disk(cfg, generator.transformer.config, folder)
        generator.transformer.gradient_checkpointing = cfg.optimizer.gradient_checkpointing
        policies = make_policies(cfg, generator)
        optimizer = make_optimizer(policies, cfg.optimizer)
        whole = any(member.span == "video" for member in suite)
        windows = Windows(generator, cfg.rollout, cfg.window, FPS, whole, algorithm.needs_trajectory)
        yield Trainer(cfg, generator, prompts, suite, scorer, policies, algorithm, optimizer, windows, watch)


def finish(trainer: Trainer, folder: RunFolder, base: str) -> None:
    """Write the adapter of the end: the learner, or the best where a guard stopped the run."""
    out, stopped = folder.path, trainer.watch.stopped
    adapter, step = trainer.policies.tensors("learner"), folder.done
    if stopped and (out / BEST).exists():
        adapter, metadata = load_tensors(out / BEST)
        step = int(metadata.get("step", step))
    save_adapter(out / ADAPTER, adapter, trainer.cfg, base, step)
    record(out, "stopped" if stopped else "finished", folder.done)


def loop(trainer: Trainer, folder: RunFolder, start: int, identity: dict[str, str]) -> None:
    """The steps from ``start`` on, each with its metrics; checkpoints and samples as often as configured."""
    cfg, out = trainer.cfg, folder.path
    store = replace(folder.checkpoints, keep=cfg.checkpoints_kept)
    log = MetricsLog(out / "metrics.jsonl")
    log.truncate_after(start - 1)
    shown = (*[f"reward/{member.reward.name}" for member in trainer.suite], "loss")
    with ExitStack() as stack:
        board = stack.enter_context(TensorBoardLog(out / "tensorboard", start)) if cfg.tensorboard else None
        interrupt = stack.enter_context(graceful_interrupt())
        display = stack.enter_context(training_display(cfg.steps, start, shown))
        trainer = replace(trainer, on_change=display.phase)
        for step in range(start, cfg.steps):
            if trainer.watch.stopped:
                break
            try:
                turn = trainer.step(step)
            except ScoringError as error:
                store.save(step, trainer.state(step), identity)
                raise UserError(f"step {step + 1}: {error}; once that is mended, the same command goes on") from error
            log.write(step, turn.metrics)
            if board:
                board.write(step, turn.metrics)
            display.update(step, turn.metrics)
            for alarm in turn.alarms:
                display.note(f"step {step + 1}: {alarm.action}: {alarm.message}")
            for name, refusal in turn.refusals.items():
                display.note(f"step {step + 1}: no score from {name}: {refusal}")
            if turn.best is not None:
                save_adapter(out / BEST, turn.best, cfg, identity["base"], step)
            done = step + 1
            last = done == cfg.steps or trainer.watch.stopped
            if turn.shown:
                (out / "samples").mkdir(exist_ok=True)
                save_tensors(out / "samples" / f"step_{step:06d}.safetensors", *turn.shown)
                if board:
                    board.show(step, "candidates", turn.shown.tensors["video"], FPS, turn.shown.metadata["prompt"])
            if done % cfg.checkpoint_every == 0 or last or interrupt.requested:
                store.save(done, trainer.state(done), identity)
            if interrupt.requested:
                raise Interrupted(f"stopped after step {done} of {cfg.steps}; the same command goes on from there")


def resume(trainer: Trainer, folder: RunFolder, identity: dict[str, str]) -> tuple[int, dict[str, str]]:
    """Restore the newest checkpoint, or begin from the adapter that is asked for; returns the step to go on with, and
    what tells this run from any other.
    """
    cfg, latest = trainer.cfg, folder.checkpoints.latest()
    identity = identity | {"model": cfg.model.name, "rank": str(cfg.lora.rank), "alpha": str(cfg.lora.alpha)}
    if latest is None:
        if not cfg.init:
            return 0, identity
        adapter = initial(cfg, identity["base"])
        identity["init"] = fingerprint(adapter)
        if folder.begun.get("init", identity["init"]) != identity["init"]:
            raise UserError(
                f"init={cfg.init} is another adapter than when this run began; name one that stays (RUN@STEP) and a "
                "new folder with --out"
            )
        for slot in SLOTS:
            trainer.policies.load(slot, adapter)
        return 0, identity
    tensors, state = folder.checkpoints.load(latest)
    for part, remedy in (("base", "another base model"), ("prompts", "other prompts (has the file changed?)")):
        if state.get(part) != identity[part]:
            raise UserError(f"{folder.path}: the checkpoint of step {latest} belongs to {remedy}; start a new run")
    trainer.restore(tensors, latest)
    return latest, identity | ({"init": state["init"]} if "init" in state else {})


def digest(prompts: PromptList) -> str:
    """What tells one prompt list from another."""
    return hashlib.sha256("\n".join(prompts.prompts).encode()).hexdigest()


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
