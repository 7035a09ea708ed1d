"""What to turn when a step does not fit: the smallest change that helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from astrolabe.experiment import TrainConfig
from astrolabe.models.settings import ReleasedSettings
from astrolabe.plan.ledger import Number
from astrolabe.plan.step import Plan
from astrolabe.rewards.costs import NETWORKS
from astrolabe.runtime.config import override

FILMING, JUDGING, LEARNING = {"history", "rollout", "decode"}, {"rewards"}, {"update", "optimizer"}
RANK, TILE, TOKENS = 64, 32, 4096


@dataclass(frozen=True)
class Knob:
    """Fields to set, the phases that may need less for it, and whether it changes what is learned."""

    fields: Mapping[str, str]
    helps: frozenset[str]
    learns_otherwise: bool = False

    @property
    def flags(self) -> str:
        """As they are typed."""
        return " ".join(f"--{name} {value}" for name, value in self.fields.items())


def knobs(cfg: TrainConfig) -> Iterator[Knob]:
    """Those that this configuration has not turned yet; first what costs least speed, last what changes training."""
    optimizer, rollout = cfg.optimizer, cfg.rollout
    if optimizer.micro_batch > 1:
        yield Knob({"optimizer.micro_batch": "1"}, frozenset(LEARNING))
    if rollout.micro_batch > 1:
        yield Knob({"rollout.micro_batch": "1"}, frozenset(FILMING | JUDGING))
    if rollout.prompts > 1 and rollout.side_by_side != 1:
        yield Knob({"rollout.side_by_side": "1"}, frozenset(FILMING | JUDGING))
    if not cfg.offload:
        yield Knob({"offload": "true"}, frozenset(FILMING | JUDGING | LEARNING))
    for number, reward in enumerate(cfg.rewards):
        if reward.name in NETWORKS and reward.reward_model.token_budget > TOKENS:
            yield Knob({f"rewards.{number}.model.token_budget": str(TOKENS)}, frozenset(JUDGING))
    if isinstance(cfg.model, ReleasedSettings) and cfg.model.vae_tile is None:
        yield Knob({"model.vae_tile": str(TILE)}, frozenset(FILMING))
    if not optimizer.gradient_checkpointing:
        yield Knob({"optimizer.gradient_checkpointing": "true"}, frozenset(LEARNING))
    if optimizer.chunks != 1:
        yield Knob({"optimizer.chunks": "1"}, frozenset(LEARNING))
    if rollout.prompts > 1:
        alone = {"rollout.prompts": "1"} | ({"optimizer.minibatches": "1"} if optimizer.minibatches > 1 else {})
        yield Knob(alone, frozenset(FILMING | JUDGING | LEARNING), True)
    if cfg.lora.rank > RANK:
        scale = cfg.lora.alpha / cfg.lora.rank
        turned = {"lora.rank": str(RANK), "lora.alpha": f"{scale * RANK:g}"}
        yield Knob(turned, frozenset(FILMING | JUDGING | LEARNING), True)


def turned(cfg: TrainConfig, some: Sequence[Knob]) -> TrainConfig:
    """The configuration with those turned."""
    return override(cfg, {name: value for knob in some for name, value in knob.fields.items()})


def smallest_change(
    cfg: TrainConfig, plan_of: Callable[[TrainConfig], Plan], budget: Number, on_host: bool
) -> tuple[list[Knob], Number]:
    """Knobs under which a step fits ``budget`` bytes, none of which can be left out, and the bytes that it needs then;
    if nothing helps enough, all that help at all, and the least it needs."""
    chosen: list[Knob] = []
    plan = plan_of(cfg)
    for knob in knobs(cfg):
        if plan.total(on_host) <= budget:
            break
        if not on_host and not any(plan.phases[name].bytes > budget for name in knob.helps & set(plan.phases)):
            continue  # what is too large would stay as it is
        tried = plan_of(turned(cfg, [*chosen, knob]))
        if helps(tried, plan, knob.helps, on_host):
            chosen, plan = [*chosen, knob], tried
    if plan.total(on_host) <= budget:
        for knob in reversed(chosen):
            others = [other for other in chosen if other is not knob]
            without = plan_of(turned(cfg, others))
            if without.total(on_host) <= budget:
                chosen, plan = others, without
    return chosen, plan.total(on_host)


def helps(tried: Plan, plan: Plan, names: frozenset[str], on_host: bool) -> bool:
    """Whether a phase that a knob is for needs less, or all of a step on the host."""
    if on_host:
        return tried.total(True) < plan.total(True)
    return any(tried.phases[name].bytes < plan.phases[name].bytes for name in names & set(plan.phases))
