"""A group of candidates with their scores, kept to be looked at."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from astrolabe.rollout.window import Windows
from astrolabe.types import Experience, to_frames, to_video

SHOWN, HEIGHT = 12, 128  # candidates of a group that are kept for the report, and rows of their pixels


class Shown(NamedTuple):
    """A group of candidates with their scores, as a file keeps it."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]


def kept_group(experience: Experience, windows: Windows) -> Shown:
    """The group of a step that teaches most (largest advantages), with its scores, for the report.

    Of large groups the best and the worst, of large videos a small copy: this is for looking at.
    """
    rollout, size = experience.rollout, experience.rollout.group_size
    group = int(experience.advantages.view(-1, size).abs().sum(1).argmax())
    order = experience.advantages[group * size : (group + 1) * size].argsort(descending=True) + group * size
    rows = order if size <= SHOWN else torch.cat((order[: SHOWN // 2], order[-SHOWN // 2 :]))
    rows = rows.sort().values
    frames = windows.decoded(group, rollout.latents[rows.to(rollout.latents.device)])
    if frames.shape[-2] > HEIGHT:
        smaller = (HEIGHT, frames.shape[4] * HEIGHT // frames.shape[3] // 2 * 2)  # even, as H.264 wants it
        small = [functional.interpolate(to_video(one[None])[0], smaller, mode="area") for one in frames]
        frames = to_frames(torch.stack(small))
    tensors = {
        "video": frames,
        "scores": experience.scores.values[rows],
        "advantages": experience.advantages[rows],
    }
    return Shown(tensors, {"prompt": rollout.prompts[group], "rewards": ",".join(experience.scores.names)})
