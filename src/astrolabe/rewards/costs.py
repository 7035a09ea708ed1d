"""What reward models cost before they are opened: memory and work, by the sizes of their networks.

Operations are two a weight and token, and four a pair of tokens that attend to each other, number of a layer's width
and layer. Sizes: Qwen2-VL (arXiv 2409.12191) and CLIP (2103.00020) as their authors released them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from astrolabe.rewards.chat import AFTER, BEFORE, template
from astrolabe.rewards.frames import IMAGE_PIXELS, MERGE, PAIR, PATCH, VIDEO_PIXELS, at_rate, smart_size
from astrolabe.rewards.settings import VIDEO_MODELS, RewardModelSettings, RewardSettings

COPIES = 3  # of the frames as floating-point numbers, while they become pictures
Number = int | float
LETTERS, PROMPT = 4.5, 80  # letters of a token of English; tokens of a prompt: those of an elaborate one
TOUCHED = 60  # numbers that a layer's smaller kernels read and write, a token and number of its width
HEADS = 2**20  # bytes of heads and the like: next to nothing


@dataclass(frozen=True)
class Tower:
    """A transformer: layers, width, weights of a layer, and numbers that are alive in a layer for each token."""

    layers: int
    width: int
    weights: Number
    alive: int

    def operations(self, tokens: int, together: int) -> Number:
        """Of ``tokens`` that attend in sequences of so many ``together``."""
        return self.layers * tokens * (2 * self.weights + 4 * together * self.width)

    def traffic(self, tokens: int) -> Number:
        """Numbers that its smaller kernels read and write."""
        return TOUCHED * self.layers * self.width * tokens


def gated(layers: int, width: int, inner: int, shared: int) -> Tower:
    """A language model's: keys and values of ``shared`` numbers, three matrices between ``width`` and ``inner``."""
    return Tower(layers, width, 2 * width * width + 2 * width * shared + 3 * width * inner, 6 * width + 3 * inner)


def plain(layers: int, width: int) -> Tower:
    """A tower of pictures or words: four square matrices, and an inner width of four."""
    return Tower(layers, width, 12 * width * width, 6 * width + 8 * width)


@dataclass(frozen=True)
class Network:
    """What a reward runs: its language model or none, its tower of pictures, and weights that are only looked up."""

    seeing: Tower
    telling: Tower | None
    others: Number

    @property
    def numbers(self) -> Number:
        """Weights in all."""
        return self.others + sum(tower.layers * tower.weights for tower in (self.seeing, self.telling) if tower)


QWEN_EYES, WORDS = plain(32, 1280), 151_660
HPSV3 = Network(QWEN_EYES, gated(28, 3584, 18944, 512), 3584 * WORDS + 5120 * (5120 + 3584))
VIDEOALIGN = Network(QWEN_EYES, gated(28, 1536, 8960, 256), 1536 * WORDS + 5120 * (5120 + 1536))
# Words are embedded once a prompt by a tower of their own, which counts as held and not as work.
CLIP_L = Network(plain(24, 1024), None, 12 * plain(12, 768).weights + 49408 * 768)
CLIP_H = Network(plain(32, 1280), None, 24 * plain(24, 1024).weights + 49408 * 1024)
NETWORKS = {
    "hpsv3": HPSV3, **dict.fromkeys(VIDEO_MODELS, VIDEOALIGN), "clipscore": CLIP_L, "aesthetic": CLIP_L,
    "pickscore": CLIP_H, "hpsv2": CLIP_H,
}  # fmt: skip
CLIP_TOKENS, CLIP_AT_ONCE = 257, 64


@dataclass(frozen=True)
class Seen:
    """Videos as rewards see them: pixel frames, height, width, frames a second."""

    frames: int
    height: int
    width: int
    fps: float


@dataclass(frozen=True)
class Look:
    """How a network looks at one video: pixel frames that it takes; pictures (or videos) that it judges apart; of each
    the patches, how many of them attend to one another, and the language model's tokens, 0 without one."""

    frames: int
    pictures: int
    patches: int
    attending: int
    tokens: int


@dataclass(frozen=True)
class Cost:
    """One network of a suite: its settings, bytes it holds, bytes that judging takes besides, and of one video the
    operations and the bytes that are read and written."""

    model: RewardModelSettings
    held: Number
    judging: Number
    operations: Number
    traffic: Number

    @property
    def exact(self) -> bool:
        """Whether it computes in float32."""
        return self.model.computes_in == torch.float32


def costs(rewards: Sequence[RewardSettings], seen: Seen, at_once: int = 1) -> Iterator[Cost]:
    """Of every network that the rewards open, in their order, when ``at_once`` videos are judged together; dimensions
    of one VideoAlign share it. Rewards without a network cost next to nothing, and a judge that is asked over HTTP is
    none of this machine's."""
    suites: dict[tuple[str, RewardModelSettings], list[RewardSettings]] = {}
    for reward in rewards:
        if reward.name in NETWORKS:
            family = "videoalign" if reward.name in VIDEO_MODELS else reward.name
            suites.setdefault((family, reward.reward_model), []).append(reward)
    for some in suites.values():
        names = {reward.name for reward in some}
        # Motion is judged on grey frames, in a forward of its own.
        passes = 2 if "videoalign_mq" in names and len(names) > 1 else 1
        yield cost(NETWORKS[some[0].name], some[0].reward_model, look_of(some[0], seen), seen, at_once, passes)


def look_of(reward: RewardSettings, seen: Seen) -> Look:
    """How a reward's network looks at a video."""
    shown = min(reward.frames or seen.frames, seen.frames)
    pictures = math.ceil(shown / reward.reward_model.every)
    if reward.name == "hpsv3":
        return Look(pictures, pictures, *telling("hpsv3", 1, seen, (IMAGE_PIXELS, IMAGE_PIXELS)))
    if reward.name in VIDEO_MODELS:
        frames = len(at_rate(shown, seen.fps))
        return Look(frames, 1, *telling("videoalign", frames // PAIR, seen, VIDEO_PIXELS))
    return Look(pictures, pictures, CLIP_TOKENS, CLIP_TOKENS, 0)


def telling(name: str, pairs: int, seen: Seen, pixels: tuple[int, int]) -> tuple[int, int, int]:
    """Patches of a picture, or of a video of so many ``pairs`` of frames; those that attend to one another; tokens."""
    height, width = smart_size(seen.height, seen.width, *pixels)
    patches = (height // PATCH) * (width // PATCH)
    words = PROMPT + round(len(BEFORE + AFTER + template(name)) / LETTERS)
    return pairs * patches, patches, pairs * patches // MERGE**2 + words


def cost(network: Network, model: RewardModelSettings, look: Look, seen: Seen, at_once: int, passes: int) -> Cost:
    """What it costs a network to look ``passes`` times."""
    size = 4 if model.computes_in == torch.float32 else 2
    together = max(1, model.token_budget // look.tokens) if look.tokens else CLIP_AT_ONCE
    together = min(together, at_once * look.pictures)
    patches, tokens = look.pictures * look.patches, look.pictures * look.tokens
    operations, touched = network.seeing.operations(patches, look.attending), network.seeing.traffic(patches)
    alive = network.seeing.alive * together * look.patches
    if network.telling:
        operations += network.telling.operations(tokens, look.tokens)
        touched += network.telling.traffic(tokens)
        alive = max(alive, network.telling.alive * together * look.tokens)
    held = size * network.numbers + HEADS
    read = held * max(1.0, look.pictures / together)  # the weights, once a forward
    floats = 4 * 3 * seen.height * seen.width * look.frames * at_once
    judging = max(COPIES * floats, size * alive + floats / 4)  # frames as bytes stay beside what the network makes
    return Cost(model, held, judging, passes * operations, passes * (size * touched + read))
