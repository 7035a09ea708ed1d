"""Rewards in processes of their own, on Ray: on this machine, or on a cluster that is there.

Footage is scored while the next candidates are made. Every micro-batch of frames travels once, as bytes, through Ray's
object store; each reward has its own workers, with their own resources and, if need be, their own packages. A worker
that dies is started again and its batch scored once more; a batch that kills its worker three times has no score.
Scores are those that rewards give without a pool, to the last bit where a worker computes as this process does.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from astrolabe.rewards.base import Answer, Member, Scorer, UncertainReward, at_once, attempt, without_score
from astrolabe.rewards.custom import spec_file
from astrolabe.rewards.opening import Opening
from astrolabe.rewards.settings import ORACLES, VIDEO_MODELS, PoolSettings, RewardSettings, WorkerSettings
from astrolabe.runtime.errors import UserError
from astrolabe.types import Footage, Latents, PerSample, Scores, Video, to_video

TRIES = 3  # of one batch, each with a worker of its own
PAUSE = 0.2  # seconds between looks at a worker that is being started again
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # set to 0, Ray listens on this machine alone
NICE = "RAY_worker_niceness"  # workers belong to the run, and yield to no other work
TOKEN = "RAY_AUTH_TOKEN"  # who may ask the workers for work; without one Ray writes one into the home folder


@dataclass
class Remote:
    """A reward that lives in a worker; here there is its name."""

    name: str

    def __call__(self, video: Video, prompts: Sequence[str]) -> PerSample:
        """It is not computed here."""
        raise RuntimeError(f"{self.name} is computed by the pool")


class RemoteDoubting(Remote):
    """One that knows how uncertain it is."""

    def judge(self, video: Video, prompts: Sequence[str]) -> tuple[PerSample, PerSample]:
        """It is not computed here."""
        raise RuntimeError(f"{self.name} is computed by the pool")


class Worker:
    """Opens some rewards, and judges frames that come as bytes. It runs in a process of Ray's."""

    def __init__(self, rewards: Sequence[RewardSettings], opening: Opening, threads: int):
        torch.set_num_threads(threads)
        self.members = [Member(opening.reward(settings), frames=settings.frames) for settings in rewards]

    def names(self) -> list[tuple[str, bool]]:
        """Of its rewards, and whether each knows how uncertain it is."""
        return [(member.reward.name, isinstance(member.reward, UncertainReward)) for member in self.members]

    def judge(self, frames: Any, first: int, end: int, captions: Sequence[str], wanted: Sequence[int]) -> list[Answer]:
        """Rewards number ``wanted`` on some of the videos."""
        video = to_video(torch.tensor(frames[first:end]))
        return [attempt(self.members[place], video, captions) for place in wanted]


@dataclass(frozen=True)
class Batch:
    """Videos [first, end) of a part of the footage that lies in the store."""

    frames: Any
    first: int
    end: int
    captions: list[str]
    wanted: list[int]
    answer: Future[list[Answer]]


class Crew:
    """The workers of some rewards that share what they have loaded. A thread for each hands it batches, one at a
    time, so that a batch that kills its worker takes no other with it."""

    def __init__(self, ray: Any, rewards: list[RewardSettings], opening: Opening, threads: int, timeout: float):
        self.ray, self.rewards, self.timeout = ray, rewards, timeout
        self.batches: queue.Queue[Batch | None] = queue.Queue()
        first = rewards[0].worker
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": first.gpus, "max_restarts": -1, "max_task_retries": 0}
        if first.packages:
            options["runtime_env"] = {"pip": list(first.packages)}
        remote = ray.remote(Worker).options(**options)
        self.workers = [remote.remote([whole(r) for r in rewards], opening, threads) for _ in range(first.replicas)]
        self.threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in self.workers]

    @property
    def label(self) -> str:
        """The names of its rewards."""
        return ", ".join(reward.name for reward in self.rewards)

    def begin(self) -> list[tuple[str, bool]]:
        """Wait until the rewards are open: their names. UserError when one cannot be opened."""
        try:
            asked = [worker.names.remote() for worker in self.workers]
            names: list[tuple[str, bool]] = self.ray.get(asked, timeout=self.timeout)[0]
        except self.ray.exceptions.GetTimeoutError:
            raise UserError(
                f"a worker of {self.label} did not start within pool.timeout={self.timeout:g} seconds; does it find "
                "the memory that it needs?"
            ) from None
        except self.ray.exceptions.RayError as error:
            said = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
            reason = said[-1].removeprefix("astrolabe.runtime.errors.UserError: ")
            raise UserError(f"a worker of {self.label} did not start: {reason}") from None
        for thread in self.threads:
            thread.start()
        return names

    def _serve(self, worker: Any) -> None:
        while batch := self.batches.get():
            try:
                batch.answer.set_result(self._judge(worker, batch))
            except BaseException as error:  # raised where the scores are waited for
                batch.answer.set_exception(error)

    def _judge(self, worker: Any, batch: Batch) -> list[Answer]:
        errors = self.ray.exceptions
        names = ", ".join(self.rewards[place].name for place in batch.wanted)
        said = f"{names}: its worker died {TRIES} times on {batch.end - batch.first} videos"
        for _ in range(TRIES):
            asked = worker.judge.remote(batch.frames, batch.first, batch.end, batch.captions, batch.wanted)
            try:
                found: list[Answer] = self.ray.get(asked, timeout=self.timeout)
                return found
            except errors.RayTaskError as error:  # it lives, and would say so again
                said = f"{names}: {str(error).strip().splitlines()[-1]}"
                break
            except errors.GetTimeoutError:
                self.ray.kill(worker, no_restart=False)
                time.sleep(5 * PAUSE)  # what is asked while it dies would die with it
            except errors.RayError:  # it died, of whatever
                pass
            if not self._back(worker):
                said = f"{names}: its worker died and cannot be started again; look at its files"
                break
        return [(*without_score(batch.end - batch.first), said) for _ in batch.wanted]

    def _back(self, worker: Any) -> bool:
        """Whether a worker that died comes back."""
        end = time.monotonic() + self.timeout
        while time.monotonic() < end:
            try:
                self.ray.get(worker.names.remote(), timeout=self.timeout)
                return True
            except self.ray.exceptions.ActorUnavailableError:
                time.sleep(PAUSE)
            except self.ray.exceptions.RayError:
                break
        return False

    def close(self) -> None:
        """Nothing more is handed out; what waits is dropped."""
        while True:
            try:
                batch = self.batches.get_nowait()
            except queue.Empty:
                break
            if batch:
                batch.answer.cancel()
        for _ in self.workers:
            self.batches.put(None)


def check_gpus(ray: Any, workers: Sequence[WorkerSettings]) -> None:
    """UserError when the workers ask for more GPUs than there are: Ray would let them wait for ever."""
    wanted, there = sum(worker.gpus * worker.replicas for worker in workers), ray.cluster_resources().get("GPU", 0.0)
    if wanted > there:
        raise UserError(
            f"rewards: their workers ask for {wanted:g} GPUs in all (worker.gpus x worker.replicas), and Ray has "
            f"{there:g}; parts of one can be shared (worker.gpus=0.25)"
        )


def whole(settings: RewardSettings) -> RewardSettings:
    """The settings with the path of a user's file as it is from anywhere."""
    path = spec_file(settings.name)
    return replace(settings, name=f"{path.resolve()}:{settings.name.rpartition(':')[2]}") if path else settings


def sharing(settings: RewardSettings) -> Any:
    """Rewards with the same key answer from one worker: they share what they load, or compute."""
    if settings.name in ORACLES:
        return "oracles", settings.worker
    if settings.name in VIDEO_MODELS:
        return "videoalign", settings.reward_model, settings.worker
    return settings.name, settings.worker


class Pool:
    """All workers of a run, and the suite that they make together. ``close`` ends what was started."""

    def __init__(self, settings: PoolSettings, rewards: Sequence[RewardSettings], opening: Opening):
        self.ray = connect(settings.address)
        threads = settings.threads or torch.get_num_threads()
        keys = list(dict.fromkeys(sharing(reward) for reward in rewards))
        self.crews: list[Crew] = []
        crews = [[reward for reward in rewards if sharing(reward) == key] for key in keys]
        try:
            check_gpus(self.ray, [crew[0].worker for crew in crews])
            self.crews = [Crew(self.ray, crew, opening, threads, settings.timeout) for crew in crews]
            names = [crew.begin() for crew in self.crews]
        except UserError:
            self.close()
            raise
        self.place = [  # of every reward in the suite: its crew, and its number there
            (keys.index(sharing(r)), [o for o in rewards if sharing(o) == sharing(r)].index(r)) for r in rewards
        ]
        found = [names[crew][number] for crew, number in self.place]
        self.suite = [
            Member((RemoteDoubting if doubts else Remote)(name), r.weight, r.role, r.span, r.frames)
            for r, (name, doubts) in zip(rewards, found, strict=True)
        ]

    def scorer(self, rows: int) -> PoolScorer:
        """What looks at ``rows`` candidates."""
        return PoolScorer(self, rows)

    def close(self) -> None:
        """Let the workers go."""
        for crew in self.crews:
            crew.close()
        self.ray.shutdown()


class PoolScorer(Scorer):
    """``Scorer``, whose rewards are elsewhere: ``see`` hands footage over, ``scores`` waits for the answers."""

    def __init__(self, pool: Pool, rows: int):
        super().__init__(pool.suite, rows)
        self.pool = pool
        self.asked: list[tuple[Tensor, list[tuple[int, float]], Future[list[Answer]]]] = []

    def see(self, part: Footage) -> None:
        """Hand over some candidates."""
        frames = self.pool.ray.put(part.frames.numpy())
        for some in torch.arange(len(part.rows)).split(at_once(part.frames[0].numel())):
            first, end = int(some[0]), int(some[-1]) + 1
            for number, crew in enumerate(self.pool.crews):
                own = [(place, part.shares[member.span]) for place, member in enumerate(self.suite)
                       if self.pool.place[place][0] == number and part.shares[member.span]]  # fmt: skip
                if own:
                    answer: Future[list[Answer]] = Future()
                    wanted = [self.pool.place[place][1] for place, _ in own]
                    crew.batches.put(Batch(frames, first, end, list(part.captions[first:end]), wanted, answer))
                    self.asked.append((part.rows[some], own, answer))

    def scores(self, latents: Latents, max_dropped: float) -> Scores:
        """See ``Scorer``; what came back is added up in the order in which it was asked."""
        for rows, own, answer in self.asked:
            for (place, share), found in zip(own, answer.result(), strict=True):
                self.take(place, rows, share, found)
        self.asked = []
        return super().scores(latents, max_dropped)


def connect(address: str) -> Any:
    """Ray, on a cluster or on this machine alone. UserError when it is not installed or does not answer."""
    if not address:
        os.environ |= {LOOPBACK: "0", NICE: "0"}
        os.environ.setdefault(TOKEN, secrets.token_hex(32))
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # once shut down it stays so
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what needs no GPU may see those there are
    try:
        import ray
    except ImportError:
        raise UserError("pool.backend=ray needs Ray: pip install 'astrolabe-rl[ray]'") from None
    try:
        ray.init(
            address=address or "local", include_dashboard=False if not address else None, log_to_driver=False,
            logging_level=logging.ERROR, namespace="astrolabe", ignore_reinit_error=True,
        )  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"pool.address={address or 'local'}: Ray does not answer ({reason})") from None
    return ray
