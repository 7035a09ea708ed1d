"""What a reward is, and the suite of several: weights, roles, and what each of them sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from astrolabe.rewards.settings import Role
from astrolabe.rewards.visiting import Guests, Networked
from astrolabe.runtime.errors import UserError
from astrolabe.types import Footage, Latents, PerSample, Rollout, Scores, Video, to_video
from astrolabe.words import Span

FLOATS_AT_ONCE = 2**28  # pixels that are floating-point numbers at the same time: all of a step would be gigabytes

Answer = tuple[Tensor, Tensor, str]  # of one reward on some videos: scores, doubts, and why some have none


class ScoringError(UserError):
    """Too much of a step could not be judged. Nothing was learned from it yet: the run can go on from before it."""


@runtime_checkable
class Reward(Protocol):
    """Scores videos [b, t, 3, y, x] in [0, 1] against their prompts; higher is better.

    A score that is not finite drops its sample from the step.
    """

    name: str

    def __call__(self, video: Video, prompts: Sequence[str]) -> PerSample:
        """One score a video. UserError for videos that it cannot judge."""
        ...


@runtime_checkable
class UncertainReward(Reward, Protocol):
    """A reward that knows how uncertain it is."""

    def judge(self, video: Video, prompts: Sequence[str]) -> tuple[PerSample, PerSample]:
        """One score a video, and the standard deviation of each."""
        ...


@dataclass(frozen=True)
class Member:
    """A reward in a suite. A judge is measured and logged, never trained on."""

    reward: Reward
    weight: float = 1.0
    role: Role = "auxiliary"
    span: Span = "mixed"
    frames: int | None = None  # it sees so many, evenly spread; None: all
    device: str | None = None  # its networks come there to judge, and wait in the host's memory; None: they stay


class Scorer:
    """Every reward on every candidate, on the CPU, footage by footage as it comes; judges stand last in the suite.

    Each reward sees the prompt in force; where that changed within a clip, its scores are averaged over the frames.
    What a reward could not score is nan.
    """

    def __init__(self, suite: Sequence[Member], rows: int):
        self.suite, self.guests = suite, Guests()
        self.values, self.doubts = torch.zeros(2, rows, len(suite)).unbind()
        self.refusals: dict[str, str] = {}  # the first thing that each reward could not judge, in its words

    def see(self, part: Footage) -> None:
        """Judge some candidates."""
        try:
            for some in torch.arange(len(part.rows)).split(at_once(part.frames[0].numel())):
                video, captions = to_video(part.frames[some]), [part.captions[i] for i in some.tolist()]
                for place, member in enumerate(self.suite):
                    share = part.shares[member.span]
                    if share:
                        self.invite(member)
                        self.take(place, part.rows[some], share, attempt(member, video, captions))
        finally:
            self.guests.leave()

    def invite(self, member: Member) -> None:
        """Have the networks of a reward that waits elsewhere on their device, and no others of these."""
        if member.device is not None and isinstance(member.reward, Networked):
            self.guests.bring(member.reward.networks, member.device)

    def take(self, place: int, rows: Tensor, share: float, answer: Answer) -> None:
        """Add what reward number ``place`` says of some candidates."""
        found, doubt, refusal = answer
        self.values[rows, place] += share * found
        self.doubts[rows, place] += share * doubt
        if refusal:
            self.refusals.setdefault(self.suite[place].reward.name, refusal)

    def scores(self, latents: Latents, max_dropped: float) -> Scores:
        """All scores, once all candidates, whose ``latents`` these are, have been seen. ScoringError when more than the
        share ``max_dropped`` has no score to train on, UserError when latents are not finite."""
        if not bool(torch.isfinite(latents).all()):
            raise UserError(
                "training diverged: the policy's videos are not finite; start a new run with a smaller optimizer.lr or "
                "algorithm.beta"
            )
        trained = sum(member.role != "judge" for member in self.suite)
        scores = Scores(tuple(member.reward.name for member in self.suite), self.values, self.doubts, trained)
        check_dropped(scores, max_dropped, self.refusals)
        return scores


def score(suite: Sequence[Member], rollout: Rollout, max_dropped: float = 0.0) -> Scores:
    """The scores of a rollout that kept its footage; see ``Scorer``."""
    scorer = Scorer(suite, len(rollout.latents))
    for part in rollout.footage:
        scorer.see(part)
    return scorer.scores(rollout.latents, max_dropped)


def at_once(pixels: int) -> int:
    """How many videos of so many numbers each are judged at a time."""
    return max(1, min(8, FLOATS_AT_ONCE // pixels))


def attempt(member: Member, video: Video, captions: Sequence[str]) -> Answer:
    """``judged``, but what cannot be judged is nan, and why: where a batch is refused, each video is tried by itself,
    so that a bad one costs no other its score."""
    try:
        found, doubt = judged(member, video, captions)
        lost = not bool(found.isfinite().all())
        return found, doubt, getattr(member.reward, "refusal", "") if lost else ""
    except UserError as error:
        refusal = str(error)
    except torch.OutOfMemoryError:
        refusal = (
            f"{member.reward.name}: out of memory on {len(video)} videos of {video.shape[1]} frames; let it see fewer "
            "frames (frames, model.every, model.token_budget)"
        )
    if len(video) == 1:
        return *without_score(1), refusal
    alone = [attempt(member, video[i : i + 1], captions[i : i + 1]) for i in range(len(video))]
    scores, doubts = torch.cat([one[0] for one in alone]), torch.cat([one[1] for one in alone])
    said = [why for _, _, why in alone if why]
    return scores, doubts, refusal if len(said) == len(alone) else next(iter(said), "")


def without_score(count: int) -> tuple[Tensor, Tensor]:
    """What videos get that could not be judged."""
    return torch.full((count,), torch.nan), torch.zeros(count)


@torch.no_grad()
def judged(member: Member, video: Video, captions: Sequence[str]) -> tuple[PerSample, PerSample]:
    """The scores of some videos and their uncertainty, 0 where a reward knows none; what is not finite is nan.

    UserError when there is not one score a video.
    """
    if member.frames is not None and member.frames < video.shape[1]:
        video = video[:, torch.linspace(0, video.shape[1] - 1, member.frames).round().long()]
    if isinstance(member.reward, UncertainReward):
        both = member.reward.judge(video, captions)
        if not isinstance(both, tuple) or len(both) != 2:
            came = type(both).__name__
            raise UserError(f"reward {member.reward.name!r}: judge returned {came}; expected (scores, deviations)")
        values, doubt = both
    else:
        values = member.reward(video, captions)
        doubt = torch.zeros(len(video))
    for part in (values, doubt):
        if not isinstance(part, Tensor) or part.shape != (len(video),):
            came = f"shape {list(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
            raise UserError(
                f"reward {member.reward.name!r} returned {came}; expected a tensor with one score for each of "
                f"{len(video)} videos"
            )
    values = values.float().cpu()
    return torch.where(values.isfinite(), values, torch.nan), doubt.float().cpu().nan_to_num()


def check_batch(name: str, video: Tensor, prompts: Sequence[str], frames: int = 1, asked: bool = True) -> None:
    """UserError, naming the reward, unless these are videos [b, t, 3, y, x] in [0, 1] of at least so many ``frames``,
    each with a prompt, and one that says something if the reward ``asked`` for that."""
    if video.ndim != 5 or video.shape[2] != 3:
        raise UserError(f"{name}: videos came as {list(video.shape)}; expected [batch, frames, 3, height, width]")
    if len(video) != len(prompts):
        raise UserError(f"{name}: {len(video)} videos came with {len(prompts)} prompts")
    if video.shape[1] < frames:
        raise UserError(f"{name}: videos of {video.shape[1]} frames came; it looks at {frames} at least")
    low, high = (float(end) for end in video.aminmax()) if video.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):  # nan neither
        raise UserError(f"{name}: pixels from {low:g} to {high:g} came; expected 0 to 1")
    for number, prompt in enumerate(prompts):
        if asked and not prompt.strip():
            raise UserError(f"{name}: prompt {number + 1} of {len(prompts)} is empty")


def check_dropped(scores: Scores, most: float, refusals: Mapping[str, str]) -> None:
    """ScoringError when more than the share ``most`` of the samples must be dropped; ``refusals``: why, if known."""
    lost = ~scores.valid
    if lost.float().mean().item() > most:
        missing = {name: int((~scores.column(name).isfinite()).sum()) for name in scores.names[: scores.trained]}
        guilty = ", ".join(f"{name} {count}" for name, count in missing.items() if count)
        why = "; ".join(refusals[name] for name, count in missing.items() if count and name in refusals)
        raise ScoringError(
            f"{int(lost.sum())} of {len(lost)} samples got no finite score ({guilty}), more than max_dropped={most:g} "
            f"allows; {why or 'look at the reward: `astrolabe rewards check`'}"
        )
