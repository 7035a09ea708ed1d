"""A run from beginning to end: its steps, its files, and how it goes on after a stop."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from astrolabe.assembly import check_windows, make_algorithm, make_prompts, make_scorers, make_watch, process_count
from astrolabe.data.prompts import PromptList
from astrolabe.experiment import TrainConfig, resolved
from astrolabe.rewards.base import ScoringError
from astrolabe.rl.algorithm import Algorithm
from astrolabe.rl.policies import SLOTS
from astrolabe.rl.signal import LearningWarnings
from astrolabe.rl.update import make_optimizer
from astrolabe.rollout.window import Windows
from astrolabe.runs.disk import check_disk
from astrolabe.runs.folder import ADAPTER, BEST, RunFolder
from astrolabe.runs.history import Origin, record
from astrolabe.runs.opening import base_fingerprint, check_init, initial, make_policies, save_adapter
from astrolabe.runs.session import announce, chronicled, ending
from astrolabe.runtime.checkpoint import fingerprint, load_tensors, save_tensors
from astrolabe.runtime.display import training_display
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import claimed
from astrolabe.runtime.interrupts import Interrupted, graceful_interrupt
from astrolabe.runtime.processes import one_thread, processes
from astrolabe.runtime.tracking import MetricsLog, TensorBoardLog, summary_writer
from astrolabe.runtime.world import ALONE, Stopped, World
from astrolabe.trainer import Trainer


def train(cfg: TrainConfig, out: Path, origin: Origin | None = None, world: World = ALONE) -> Path:
    """Align a model: new, or on from the last checkpoint in ``out``. Returns the run's folder, and says how it ended.

    ``origin`` is for the run's history; ``world``: the processes that were started to share the work, of which this is
    the first. Raises UserError for a folder that is not this run's, Interrupted after Ctrl-C.
    """
    cfg, folder, origin = resolved(cfg), RunFolder(out), origin or Origin()
    with ExitStack() as stack:
        if folder.exists:
            stack.enter_context(claimed(out))
            if folder.already_done(cfg):
                print(ending(folder, already=True))
                return out
        changed = folder.examine(cfg)
        trainer = stack.enter_context(opened(cfg, folder, world))
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


def attend(cfg: TrainConfig, world: World) -> NoReturn:
    """Train as one of the processes that were started to share the work, behind the first, until that dismisses it."""
    with one_thread(cfg.light or cfg.processes != "auto"), graceful_interrupt() as interrupt:
        world.asked = lambda: interrupt.requested
        follow(world, resolved(cfg))


@contextmanager
def opened(cfg: TrainConfig, folder: RunFolder, world: World = ALONE) -> Iterator[Trainer]:
    """Everything that a configuration names. UserError for what cannot work: first what costs nothing to see."""
    prompts, algorithm = make_prompts(cfg), make_algorithm(cfg)
    make_watch(cfg)
    check_windows(cfg, prompts, algorithm)
    if cfg.tensorboard:
        summary_writer()
    if not folder.steps:
        check_init(cfg)
    count = process_count(cfg)  # asks how many threads there are, so it comes before there is one
    with (
        one_thread(cfg.light or cfg.processes != "auto"),
        nullcontext(world) if world.size > 1 else processes(count, follow, cfg) as crew,
        assembled(cfg, prompts, algorithm, crew) as trainer,
    ):
        check_disk(cfg, trainer.generator.transformer.config, folder)
        yield trainer


def follow(world: World, cfg: TrainConfig) -> NoReturn:
    """Train as one of several processes, behind the first, until that dismisses it."""
    with assembled(cfg, make_prompts(cfg), make_algorithm(cfg), world) as trainer:
        trainer.follow()


@contextmanager
def assembled(cfg: TrainConfig, prompts: PromptList, algorithm: Algorithm[Any], world: World) -> Iterator[Trainer]:
    """All that a step needs, loaded; the rewards' workers live as long as the scope."""
    with make_scorers(cfg) as (suite, scorer):
        watch = make_watch(cfg, suite)
        generator = cfg.model.open()
        generator.check_prompts(prompts.texts)
        generator.transformer.gradient_checkpointing = cfg.optimizer.gradient_checkpointing
        policies = make_policies(cfg, generator)
        optimizer = make_optimizer(policies, cfg.optimizer)
        whole = any(member.span == "video" for member in suite)
        windows = Windows(generator, cfg.rollout, cfg.window, whole, algorithm.needs_trajectory, world)
        yield Trainer(cfg, generator, prompts, suite, scorer, policies, algorithm, optimizer, windows, watch,
                      world=world)  # fmt: skip


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
        trainer.world.asked = lambda: interrupt.requested
        display = stack.enter_context(training_display(cfg.steps, start, shown))
        trainer = replace(trainer, on_change=display.phase)
        warnings = LearningWarnings(cfg.algorithm.keep)
        trainer.begin(start)
        for step in range(start, cfg.steps):
            if trainer.watch.stopped:
                break
            try:
                result = trainer.step(step)
            except ScoringError as error:
                store.save(step, trainer.state(step), identity)
                raise UserError(f"step {step + 1}: {error}; fix that, and the same command goes on") from error
            except Stopped:
                store.save(step, trainer.state(step), identity)
                raise Interrupted(
                    f"stopped in step {step + 1} of {cfg.steps}; the same command does it again"
                ) from None
            log.write(step, result.metrics)
            if board:
                board.write(step, result.metrics)
            display.update(step, result.metrics)
            for said in warnings.see(step, result.metrics):
                display.note(f"step {step + 1}: {said}")
            for alarm in result.alarms:
                display.note(f"step {step + 1}: {alarm.action}: {alarm.message}")
            for name, refusal in result.refusals.items():
                display.note(f"step {step + 1}: no score from {name}: {refusal}")
            if result.best is not None:
                save_adapter(out / BEST, result.best, cfg, identity["base"], step)
            done = step + 1
            last = done == cfg.steps or trainer.watch.stopped
            if result.shown:
                (out / "samples").mkdir(exist_ok=True)
                save_tensors(out / "samples" / f"step_{step:06d}.safetensors", *result.shown)
                if board:
                    board.show(step, "candidates", result.shown.tensors["video"], cfg.model.stream.fps,
                               result.shown.metadata["prompt"])  # fmt: skip
            if done % cfg.checkpoint_every == 0 or last or interrupt.requested:
                store.save(done, trainer.state(done), identity)
            if interrupt.requested:
                raise Interrupted(f"stopped after step {done} of {cfg.steps}; the same command goes on from there")
        for said in warnings.last():
            display.note(f"at the end: {said}")


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
    """A digest of the prompts."""
    return hashlib.sha256("\n".join(prompts.prompts).encode()).hexdigest()
