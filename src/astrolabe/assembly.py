"""The objects that a configuration names: prompts, generator, rewards, algorithm, guards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch

from astrolabe.data.prompts import PromptList
from astrolabe.data.scripts import parse_script, plan, prompts_of
from astrolabe.experiment import ModelSettings, TrainConfig, check_doubt
from astrolabe.rewards.base import Member, Scorer, UncertainReward
from astrolabe.rewards.opening import Opening
from astrolabe.rewards.pool import Pool
from astrolabe.rewards.settings import RewardSettings
from astrolabe.rl.algorithm import Algorithm
from astrolabe.rl.guards import Watch
from astrolabe.rl.regularisation import Regulariser
from astrolabe.runtime.errors import UserError

PER_CORE = 4  # processes of one thread each that a core may have at most


def in_order(rewards: Sequence[RewardSettings]) -> list[RewardSettings]:
    """Those that are trained on, then the judges."""
    return sorted(rewards, key=lambda reward: reward.role == "judge")


def opening_of(cfg: TrainConfig) -> Opening:
    """What makes the rewards of a run."""
    return Opening(cfg.seed, float(cfg.model.stream.fps), cfg.model.stream.chunk_frames)


def make_rewards(cfg: TrainConfig) -> list[Member]:
    """The suite that the settings name: first what is trained on, then the judges."""
    wanted, opening = in_order(cfg.rewards), replace(opening_of(cfg), resting=cfg.offload)
    return [
        Member(
            reward, settings.weight, settings.role, settings.span, settings.frames,
            settings.reward_model.place if cfg.offload else None,
        )
        for reward, settings in zip(opening.rewards(wanted), wanted, strict=True)
    ]  # fmt: skip


@contextmanager
def make_scorers(cfg: TrainConfig) -> Iterator[tuple[list[Member], Callable[[int], Scorer]]]:
    """The suite, and what makes a scorer of so many rows; workers live as long as the scope."""
    if cfg.pool.backend == "ray":
        with closing(Pool(cfg.pool, in_order(cfg.rewards), opening_of(cfg))) as pool:
            check_suite(cfg, pool.suite)
            yield pool.suite, pool.scorer
    else:
        suite = make_rewards(cfg)
        check_suite(cfg, suite)
        yield suite, partial(Scorer, suite)


def check_suite(cfg: TrainConfig, suite: Sequence[Member]) -> None:
    """UserError when two rewards bear the same name, or the primary one is asked how uncertain it is and does not
    know."""
    names = [member.reward.name for member in suite]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"rewards: two of them call themselves {twice[0]!r}; give one of yours another `name`")
    for member in suite:
        if member.role == "primary" and not isinstance(member.reward, UncertainReward):
            check_doubt(member.reward.name, cfg.regularisation)


def process_count(cfg: TrainConfig) -> int:
    """How many processes share the work of a step. UserError for more than this machine could run."""
    if cfg.processes != "auto":
        return runnable(cfg.processes, "processes=")
    return 1 if cfg.single or not cfg.light else min(torch.get_num_threads(), cfg.rollout.batches)


def process_count_for(model: ModelSettings, asked: Literal["auto"] | int, pieces: int) -> int:
    """How many processes make videos that come in so many pieces. UserError for more than one that a model is too large
    for, or on a GPU."""
    several = model.light and model.place.startswith("cpu")
    if asked == "auto":
        return min(torch.get_num_threads(), pieces) if several else 1
    if asked > 1 and not several:
        raise UserError(
            f"--processes {asked}: only the embedded model is made by several processes, and on the CPU; this is "
            f"{model.name} on {model.place}"
        )
    return runnable(asked, "--processes ")


def runnable(count: int, setting: str) -> int:
    """``count`` processes; UserError when they are so many that each would only take memory and wait."""
    cores = os.cpu_count() or 1
    if count > PER_CORE * cores:
        raise UserError(
            f"{setting}{count}: this machine has {cores} core{'s' * (cores > 1)}, and each process holds the model; "
            f"choose at most {PER_CORE * cores}, or auto"
        )
    return count


def make_prompts(cfg: TrainConfig) -> PromptList:
    """The prompts that training draws from; UserError when the model, or its oracles, could not take one."""
    own = cfg.model.own_prompts(cfg.prompts)
    if own is not None:
        return PromptList(own, cfg.rollout.prompts, cfg.seed)
    prompts = PromptList.read(cfg.prompts, cfg.rollout.prompts, cfg.seed)
    for line in dict.fromkeys(prompts.prompts):
        with prompts.at(line):
            cfg.model.check_prompts(prompts_of([parse_script(line)]))
    return prompts


def make_algorithm(cfg: TrainConfig) -> Algorithm[Any]:
    """The algorithm that the settings describe."""
    trained = [reward for reward in in_order(cfg.rewards) if reward.role != "judge"]
    roles = [reward.role for reward in trained]
    primary = roles.index("primary") if "primary" in roles else None
    others = tuple(index for index in range(len(trained)) if index != primary)
    regulariser, weights = Regulariser(cfg.regularisation, primary, others), tuple(r.weight for r in trained)
    return cfg.algorithm.make(weights, regulariser)


def make_watch(cfg: TrainConfig, suite: Sequence[Member] = ()) -> Watch:
    """The guards and judges that the settings describe; UserError for a guard of something unknown. Scores of a user's
    own rewards bear the names that these give themselves: the opened ``suite`` knows them."""
    settings = in_order(cfg.rewards)
    names = {r.name: r.name for r in settings}
    names |= {r.name: member.reward.name for r, member in zip(settings, suite, strict=bool(suite))}
    judges: dict[str, float] = {names[r.name]: r.weight for r in settings if r.role == "judge" and r.weight}
    for guard in cfg.watch.guards:
        if guard.action == "refresh" and not cfg.regularisation.moves:
            raise UserError(
                "watch.guards: action=refresh moves the reference, but regularisation.samples="
                f"{cfg.regularisation.samples} with reference={cfg.regularisation.reference} has none that moves"
            )
    guards = tuple(replace(guard, watch=names.get(guard.watch, guard.watch)) for guard in cfg.watch.guards)
    return Watch(replace(cfg.watch, guards=guards), list(names.values()), judges)


def check_windows(cfg: TrainConfig, prompts: PromptList | None, algorithm: Algorithm[Any]) -> None:
    """UserError unless windows, and scripts if there are any, fall on whole chunks, lie in their video, and have the
    levels asked for. Nothing needs to be loaded for that.
    """
    stream, window = cfg.model.stream, cfg.window
    window.check(stream)
    chunk = stream.chunk_frames
    algorithm.level_table(stream, 1 + (window.length - 1) // chunk)
    seconds = stream.seconds(window.length)
    if prompts is None:
        return
    for line in dict.fromkeys(prompts.prompts):
        script = parse_script(line)
        with prompts.at(line):
            plan(script, seconds, stream)
        if len(script) > 1 and stream.sink_frames % chunk and any(shot.enter == "switch" for shot in script[1:]):
            raise UserError(
                f"model.sink_frames={stream.sink_frames} is not whole chunks of {chunk}, and the prompt {line!r} "
                f"switches: what is remembered could not be run again; choose a multiple of {chunk}, or cut with ||"
            )
