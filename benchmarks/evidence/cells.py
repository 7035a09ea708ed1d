"""What is run: every cell is one recipe but for what it is named after (docs/evidence_plan.md says why).

The first letter of a name is the claim that a cell belongs to. ``t`` cells belong to none: they tune a setting on
validation scenes, and the cells ``after`` them use what was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from astrolabe.experiment import TrainConfig
from astrolabe.recipes.shapes import shapes
from astrolabe.rewards.settings import RewardSettings
from astrolabe.rl.settings import (
    GRPOSettings,
    GuardSettings,
    PositiveSettings,
    RegularisationSettings,
    RewardWeightedSettings,
    WatchSettings,
)
from astrolabe.rollout.settings import RolloutSettings, WindowSettings
from astrolabe.shapes.settings import CLIP_FRAMES, LONGEST, ShapesName, ShapesSettings

SEEDS, NOISES = 5, 6  # of training; of every test scene, other ones for every training seed
TUNING_SEEDS, TUNING_NOISES = (100, 101), 4
STEPS = 24  # of the recipe, two thirds of the demo's: hundreds of runs must fit into a few nights
EVERY = 4  # steps between two looks along a run
ONE: tuple[ShapesName, ...] = ("shapes",)
TWO: tuple[ShapesName, ...] = ("shapes", "shapes-framewise")
ALL: tuple[ShapesName, ...] = get_args(ShapesName)
STREAM_COST = 1.25  # seconds of a step along a stream over those of a short clip's: from the pilot
RATES, LOW_RATES = (0.3, 1.0, 3.0), (0.1, 0.3, 1.0)  # times the recipe's
BETAS, STRENGTHS = (0.1, 0.3, 1.0), (0.001, 0.004, 0.016)
HACKING_RATE = 2.0  # times the recipe's: a proxy is to be served as well as it can be
SIDE = 0.25  # weight of the rewards beside the one that is hacked
LONGER, FASTER = 4, 4.0  # steps and rate, times the recipe's, where a loss is to explode if it does

Scores = Mapping[float, Mapping[str, float]]  # by value: mean scores over scenes and training seeds


@dataclass(frozen=True)
class Cell:
    """A configuration (None: the base as it is), where it is run, and what is measured of it."""

    config: TrainConfig | None
    bases: tuple[ShapesName, ...] = ONE
    seeds: int = SEEDS
    noises: int = NOISES
    frames: int = CLIP_FRAMES  # of the videos that are judged
    long: bool = False  # judged on videos four times as long, too
    along: bool = False  # judged along training, too
    forward: Literal["", "full", "dead"] = ""  # how the training forward differs from the product's
    lean: bool = False  # its memory is compared: freed blocks are given back at once
    split: Literal["test", "validation"] = "test"
    after: str = ""  # the tuning that it waits for

    @property
    def tunes(self) -> bool:
        """Whether a setting is chosen by it."""
        return self.split == "validation"

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Its training seeds."""
        return TUNING_SEEDS if self.tunes else tuple(range(self.seeds))

    def on(self, base: ShapesName, seed: int) -> TrainConfig:
        """The configuration of a run."""
        assert self.config is not None and isinstance(self.config.model, ShapesSettings)
        return replace(self.config, seed=seed, model=replace(self.config.model, name=base))


@dataclass(frozen=True)
class Tuning:
    """A setting's values, and the rule that chooses one from what each, and the base, score on validation scenes."""

    values: tuple[float, ...]
    config: Callable[[float], TrainConfig]
    choose: Callable[[Scores, Mapping[str, float]], float]


def best(scores: Scores, base: Mapping[str, float]) -> float:
    """The value with the highest joint; the smaller of two that are alike."""
    return min(scores, key=lambda value: (-scores[value]["joint"], value))


def restrained(scores: Scores, base: Mapping[str, float]) -> float:
    """The strongest pull under which the proxy, steadiness, rises at least half as far above the base's as under none
    (0); the weakest where there is none."""
    gains = {value: base["flicker"] - found["flicker"] for value, found in scores.items()}
    strengths = sorted(value for value in gains if value)
    return max((value for value in strengths if gains[value] >= gains[0.0] / 2), default=strengths[0])


def demo(**fields: Any) -> TrainConfig:
    """The demo's configuration, in bfloat16 on whatever machine, and with the checkpoints that are looked at."""
    model = ShapesSettings(dtype="bfloat16")
    return replace(shapes(), model=model, checkpoint_every=EVERY, checkpoints_kept=1000, sample_every=1000, **fields)


def recipe() -> TrainConfig:
    """The demo's in fewer steps."""
    return demo(steps=STEPS)


def learning(**fields: Any) -> TrainConfig:
    """The recipe with another setting of its algorithm."""
    return replace(recipe(), algorithm=replace(recipe().algorithm, **fields))


def optimised(**fields: Any) -> TrainConfig:
    """The recipe with another setting of its optimiser."""
    return replace(recipe(), optimizer=replace(recipe().optimizer, **fields))


def rated(cfg: TrainConfig, times: float) -> TrainConfig:
    """The same at so many times the learning rate, to three digits."""
    return replace(cfg, optimizer=replace(cfg.optimizer, lr=float(f"{times * cfg.optimizer.lr:.3g}")))


def grouped(times: float) -> TrainConfig:
    """As many videos a step, in groups so many times as large."""
    usual = recipe().rollout
    size, prompts = round(times * usual.group_size), round(usual.prompts / times)
    batch = min(size, usual.micro_batch)
    return replace(
        optimised(micro_batch=batch), rollout=replace(usual, prompts=prompts, group_size=size, micro_batch=batch)
    )


def windowed(**fields: Any) -> TrainConfig:
    """The recipe on other windows."""
    return replace(recipe(), window=WindowSettings(**{"frames": CLIP_FRAMES} | fields))


def fast_and_long(weighting: str) -> TrainConfig:
    """More steps, of half as many videos, at a higher rate that is held."""
    cfg = rated(learning(weighting=weighting), FASTER)
    optimizer = replace(cfg.optimizer, schedule="constant")
    rollout = replace(cfg.rollout, prompts=cfg.rollout.prompts // 2)
    return replace(cfg, steps=LONGER * cfg.steps, rollout=rollout, optimizer=optimizer)


def reward(name: str, weight: float = 1.0, role: Any = "auxiliary") -> RewardSettings:
    """One reward."""
    return RewardSettings(name=name, weight=weight, role=role)


def rewarded(*rewards: RewardSettings, **fields: Any) -> TrainConfig:
    """The recipe on these rewards, faster."""
    return replace(rated(recipe(), HACKING_RATE), rewards=rewards, **fields)


def pull(samples: Any, strength: float, **fields: Any) -> RegularisationSettings:
    """A pull on some samples; a reference that moves does so early enough for so short a run."""
    return RegularisationSettings(samples=samples, strength=strength, share=0.2, max_age=5, **fields)


def anchored(samples: Any, strength: float, **fields: Any) -> TrainConfig:
    """One reward that is hacked, two that do not know the prompt and see it, and a pull on some samples."""
    rewards = (reward("steadiness", role="primary"), reward("pixel_saturation", SIDE), reward("pixel_motion", SIDE))
    return rewarded(*rewards, regularisation=pull(samples, strength, **fields)) if strength else rewarded(*rewards)


def tunings() -> dict[str, Tuning]:
    """Every setting that is tuned, by name."""
    usual = {name: getattr(recipe().algorithm, name) for name in ("behavior_keep", "levels_per_sample", "common_noise")}
    every = optimised(share=1.0)  # where every sample pulls, those of small advantage count too
    rivals = {
        "positive": (LOW_RATES, replace(every, algorithm=PositiveSettings(beta=BETAS[0], **usual))),
        "reward_weighted": (LOW_RATES, replace(every, algorithm=RewardWeightedSettings(**usual))),
        "grpo": (RATES, replace(recipe(), algorithm=GRPOSettings(**usual | {"behavior_keep": 0.0}))),
    }
    return {
        **{f"beta {beta:g}": Tuning(RATES, partial(rated, learning(beta=beta)), best) for beta in BETAS},
        **{name: Tuning(rates, partial(rated, cfg), best) for name, (rates, cfg) in rivals.items()},
        "strength": Tuning((0.0, *STRENGTHS), partial(anchored, "selective"), restrained),
    }


# A guard ends a run, which keeps the adapter of its best step: by cleanliness, which does not know the prompt, or by a
# reward that does and is not trained on.
BY_PIXELS = WatchSettings(memory=0.5, guards=(
    GuardSettings(watch="motion_energy", below=0.8, steps=1, action="stop"),
    GuardSettings(watch="saturation", below=0.8, steps=1, action="stop"),
))  # fmt: skip
BY_JUDGE = WatchSettings(memory=0.5, guards=(GuardSettings(watch="shape_fit", drop=0.1, steps=1, action="stop"),))


def cells(chosen: Mapping[str, float]) -> dict[str, Cell]:
    """Every cell by name; ``chosen`` are the settings that tuning chose. A cell ``after`` one that is not there yet
    must wait: its configuration is not what it will be."""
    still, blob, shape, motion = (
        reward(name) for name in ("steadiness", "pixel_saturation", "shape_fit", "motion_fit")
    )
    found, strength = tunings(), chosen.get("strength", STRENGTHS[0])
    held = partial(Cell, along=True, after="strength")
    wide = partial(Cell, frames=2 * CLIP_FRAMES, lean=True)
    clip = windowed(start="choices", choices=(0, CLIP_FRAMES), video_frames=2 * CLIP_FRAMES)
    sequence = windowed(frames=2 * CLIP_FRAMES)
    dead = rated(learning(behavior_keep=0.0), chosen.get("beta 0.1", 1.0))

    def after(name: str, **fields: Any) -> Cell:
        """At the rate that was tuned."""
        return Cell(found[name].config(chosen.get(name, 1.0)), after=name, **fields)

    return {
        "t base": Cell(None, noises=TUNING_NOISES, split="validation"),
        **{f"t {name} {value:g}": Cell(tuning.config(value), noises=TUNING_NOISES, split="validation")
           for name, tuning in found.items() for value in tuning.values},
        "base": Cell(None, ALL, long=True, along=True),
        "demo": Cell(demo(), ALL, seeds=3),
        "random": Cell(demo(rewards=(reward("random"),)), ALL, seeds=3),
        "recipe": Cell(recipe(), TWO, long=True, along=True),
        "b none": Cell(anchored("none", 0.0), TWO, along=True),
        "b uniform moving": held(anchored("uniform", strength), TWO),
        "b selective moving": held(anchored("selective", strength), TWO),
        "b random moving": held(anchored("random", strength), TWO),
        "b selective fixed": held(anchored("selective", strength, reference="fixed")),
        "b selective descending": held(anchored("selective", strength, order="descending")),
        "c steadiness": Cell(rewarded(still), TWO),
        "c steadiness + saturation": Cell(rewarded(still, blob), TWO),
        "c saturation": Cell(rewarded(blob)),
        "c shape_fit": Cell(rewarded(shape)),
        "c motion_fit": Cell(rewarded(motion)),
        "c shape_fit + motion_fit": Cell(rewarded(shape, motion)),
        "c all": Cell(rewarded(still, blob, shape, motion)),
        "c all, anchored": Cell(rewarded(replace(still, role="primary"), blob, shape, motion,
                                         regularisation=pull("selective", strength)), after="strength"),
        "c steadiness, guarded by pixels": Cell(rewarded(still, reward("cleanliness", role="judge"), watch=BY_PIXELS)),
        "c steadiness, guarded by a judge": Cell(rewarded(still, reward("shape_fit", role="judge"), watch=BY_JUDGE)),
        "f nft": after("beta 0.1", bases=TWO, along=True),
        "f positive": after("positive", bases=TWO, along=True),
        "f reward_weighted": after("reward_weighted", bases=TWO, along=True),
        "f grpo": after("grpo", bases=TWO, along=True),
        "f dead": replace(after("beta 0.1"), config=dead, forward="dead"),
        "g streaming": Cell(windowed(start="random", video_frames=LONGEST), TWO, long=True),
        "g short, as long": Cell(replace(recipe(), steps=round(STREAM_COST * recipe().steps)), TWO, long=True),
        "a clip detached": wide(clip),
        "a clip full": wide(clip, forward="full"),
        "a sequence detached": wide(sequence),
        "a sequence full": wide(sequence, forward="full"),
        "d adaptive": Cell(learning(weighting="adaptive")),
        "d plain, long": Cell(fast_and_long("none")),
        "d adaptive, long": Cell(fast_and_long("adaptive")),
        "e beta 0.3": after("beta 0.3"),
        "e beta 1": after("beta 1"),
        "h unwarped": Cell(learning(levels="unwarped")),
        "h continuous": Cell(learning(levels="uniform")),
        "h noisy context": Cell(learning(context="noisy")),
        "p groups of half": Cell(grouped(0.5)),
        "p groups of twice": Cell(grouped(2)),
        "p 1 level": Cell(learning(levels_per_sample=1)),
        "p 4 levels": Cell(learning(levels_per_sample=4)),
        "p keep 0": Cell(learning(behavior_keep=0.0)),
        "p keep 0.5": Cell(learning(behavior_keep=0.5)),
        "p share 0.25": Cell(optimised(share=0.25)),
        "p share 1": Cell(optimised(share=1.0)),
    }  # fmt: skip


def tiny(cell: Cell) -> Cell:
    """The same kind of run in a few seconds, to see that it works."""
    if (cfg := cell.config) is not None:
        rollout = RolloutSettings(prompts=2, group_size=2, micro_batch=2, side_by_side=1)
        optimizer = replace(cfg.optimizer, minibatches=2, micro_batch=2)
        cfg = replace(cfg, steps=2, rollout=rollout, optimizer=optimizer, checkpoint_every=1)
    return replace(cell, config=cfg, noises=1, seeds=2)


def selected(words: Sequence[str], known: Mapping[str, Cell]) -> list[str]:
    """The cells that words mean, in the order of all: one by its name, those of a claim by its letter, ``demo``; and
    those that tune what they need. Empty when a word means none."""
    groups = {"demo": ["base", "demo", "random"]}
    found = [groups.get(word) or [name for name in known if name == word or name[:2] == f"{word} "] for word in words]
    if not all(found):
        return []
    wanted = {name for names in found for name in names}
    tuned = {known[name].after for name in wanted} - {""}
    wanted |= {name for name in known for tuning in tuned if name == "t base" or name.startswith(f"t {tuning} ")}
    return [name for name in known if name in wanted]
