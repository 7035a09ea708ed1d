"""Watching a run from outside its rewards: measures that need no weights, beside those of the base model on the same
prompts, and rules for what to do when they diverge. The reference (method, section 5) is for what the rewards
disagree about; guards are for what no reward sees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from astrolabe.rewards.pixels import (
    boundary_jump,
    channel_moments,
    diversity,
    flicker,
    motion_energy,
    saturation,
    sharpness,
)
from astrolabe.rl.settings import Action, Measure, WatchSettings
from astrolabe.runtime.errors import UserError
from astrolabe.types import Footage, Metrics, Rollout, to_video

PIXELS = {"motion_energy": motion_energy, "saturation": saturation, "sharpness": sharpness, "flicker": flicker}
AT_ONCE = 8  # videos that are floating-point numbers at the same time
SLOWER = 0.5  # what `slow` multiplies the learning rate by
BASE_CLIPS = 2  # of every prompt by the base: as few as can differ


@dataclass(frozen=True)
class Alarm:
    """A rule that applied, and why."""

    action: Action
    watch: str
    message: str


class Meter:
    """What the pixels of clips say, mean over their frames, footage by footage as it comes."""

    def __init__(self, chunk_frames: int):
        self.chunk_frames = chunk_frames
        self.parts: list[tuple[int, int, dict[str, float]]] = []  # of each footage: its first row, its frames, its sums

    def see(self, part: Footage) -> None:
        """Measure some candidates; the end of a clip under another prompt may be too short to move."""
        if not part.clip or part.frames.shape[1] < 3:
            return
        sums = dict.fromkeys([*PIXELS, "boundary_jump"], 0.0)
        for frames in part.frames.split(AT_ONCE):
            video = to_video(frames)
            for name, measure in PIXELS.items():
                sums[name] += video.shape[1] * measure(video).sum().item()
            sums["boundary_jump"] += video.shape[1] * boundary_jump(video, self.chunk_frames).sum().item()
        self.parts.append((int(part.rows[0]), part.frames.shape[0] * part.frames.shape[1], sums))

    def means(self) -> dict[str, float]:
        """Every measure over all that was seen, added up in the order of the rows, whatever was seen first."""
        parts = sorted(self.parts, key=lambda part: part[0])
        frames = sum(count for _, count, _ in parts)
        names = [*PIXELS, "boundary_jump"]
        return {name: sum(sums[name] for *_, sums in parts) / frames if frames else math.nan for name in names}


def compared(own: tuple[Meter, Rollout], base: tuple[Meter, Rollout]) -> tuple[dict[str, float], dict[str, float]]:
    """Every measure of a rollout, and of what the base made in the same place."""
    latents = base[1].latents
    halves = latents[::2], latents[1::2]  # how far apart two draws of the base are: not quite nothing
    means = [
        meter.means() | {"diversity": diversity(rollout.latents, rollout.group_size).mean().item()}
        for meter, rollout in (own, base)
    ]
    return means[0] | moments(own[1].latents, latents), means[1] | moments(*halves)


def moments(latents: Tensor, base: Tensor) -> dict[str, float]:
    """How far the mean of the channels has moved, and how much wider they spread: 1 where nothing changed."""
    (mean, spread), (base_mean, base_spread) = channel_moments(latents), channel_moments(base)
    wide = base_spread.clamp(min=1e-6)
    return {
        "latent_shift": 1 + ((mean - base_mean) / wide).square().mean().sqrt().item(),
        "latent_spread": (spread / wide).mean().item(),
    }


class Watch:
    """Running averages of the run and its base, how long each rule has been broken, and the best judgement so far."""

    def __init__(self, settings: WatchSettings, rewards: Sequence[str], judges: Mapping[str, float]):
        """``rewards``: the names of all; ``judges``: those that judge, with their weights. UserError for a rule about
        something unknown."""
        self.settings, self.judges = settings, dict(judges)
        known = (*get_args(Measure), *rewards)
        for rule in settings.guards:
            if rule.watch not in known:
                there = ", ".join(known)
                raise UserError(f"watch.guards: {rule.watch!r} is neither a measure nor a reward here, but {there} are")
            if rule.watch in rewards and rule.drop is None:
                raise UserError(f"watch.guards: {rule.watch} is a reward and may be negative: bound it by drop")
            if rule.action == "stop" and not judges:
                raise UserError(
                    "watch.guards: action=stop ends a run with its best adapter, and no judge says which that is: give "
                    "one reward role=judge and a weight above 0"
                )
        self.own: dict[str, float] = {}
        self.base: dict[str, float] = {}
        self.broken = [0] * len(settings.guards)
        self.rate, self.stopped = 1.0, False
        self.judgement, self.best, self.judged = math.nan, -math.inf, 0

    @property
    def wanted(self) -> bool:
        """Whether there is anything to compare with the base."""
        return bool(self.settings.guards or self.judges)

    def see(self, own: Mapping[str, float], base: Mapping[str, float]) -> tuple[list[Alarm], Metrics]:
        """The measures of a step, this run's and its base's: which rules apply, and what there is to log."""
        for averages, found in ((self.own, own), (self.base, base)):
            for name, value in found.items():
                averages[name] = self._mixed(averages.get(name), value)
        alarms = []
        for number, rule in enumerate(self.settings.guards):
            value, normal = self.own[rule.watch], self.base[rule.watch]
            if not (math.isfinite(own[rule.watch]) and math.isfinite(base[rule.watch])):
                continue  # unknown
            self.broken[number] = self.broken[number] + 1 if rule.broken(value, normal) else 0
            if self.broken[number] == rule.steps:
                self.broken[number] = 0
                said = f"{rule.words} for {rule.steps} steps ({value:.4g}, base {normal:.4g})"
                alarms.append(Alarm(rule.action, rule.watch, said))
                self.rate *= SLOWER if rule.action == "slow" else 1.0
                self.stopped |= rule.action == "stop"
        watched = dict.fromkeys(rule.watch for rule in self.settings.guards)  # in their order
        if not watched:
            return alarms, {}
        metrics = {f"watch/{name}": self.own[name] for name in watched}
        return alarms, metrics | {f"watch/base_{name}": self.base[name] for name in watched} | {"watch/rate": self.rate}

    def judge(self, own: Mapping[str, float], base: Mapping[str, float]) -> bool:
        """Whether the judges rate this run higher above its base than ever before, on a running average.
        False without judges, and until the average covers 1 / (1 - memory) steps.

        What matters is the difference on the same prompts: which of them are easy varies more from step to step.
        """
        total = sum(weight * (own[name] - base[name]) for name, weight in self.judges.items())
        if not self.judges or not math.isfinite(total):
            return False
        self.judgement = self._mixed(None if math.isnan(self.judgement) else self.judgement, total)
        self.judged += 1
        if self.judged * (1 - self.settings.memory) < 1 - 1e-9 or self.judgement <= self.best:
            return False
        self.best = self.judgement
        return True

    def _mixed(self, before: float | None, now: float) -> float:
        """A running average; what is not finite leaves it as it is."""
        if before is None or not math.isfinite(before):
            return now
        return self.settings.memory * before + (1 - self.settings.memory) * now if math.isfinite(now) else before

    def tensors(self) -> dict[str, Tensor]:
        """All that decides how it goes on."""
        numbers = {"rate": self.rate, "judgement": self.judgement, "best": self.best}
        numbers |= {f"own.{name}": value for name, value in self.own.items()}
        numbers |= {f"base.{name}": value for name, value in self.base.items()}
        found = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
        counts = {"broken": self.broken, "judged": [self.judged], "stopped": [self.stopped]}
        return found | {name: torch.tensor(count, dtype=torch.int64) for name, count in counts.items()}

    def restore(self, parts: Mapping[str, Tensor]) -> None:
        """The inverse of ``tensors``."""
        self.broken = [int(count) for count in parts["broken"]]
        self.judged, self.stopped = int(parts["judged"]), bool(parts["stopped"])
        self.rate, self.judgement, self.best = (float(parts[name]) for name in ("rate", "judgement", "best"))
        for prefix, averages in (("own.", self.own), ("base.", self.base)):
            averages.clear()
            averages.update({k.removeprefix(prefix): float(v) for k, v in parts.items() if k.startswith(prefix)})
