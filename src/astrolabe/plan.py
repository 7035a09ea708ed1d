"""``astrolabe plan``: the memory and the time that a step of a recipe takes, before it is run anywhere.

The heavy parts of a step are played through by the code that trains, on tensors that have shapes but no numbers. Every
block of memory that this would allocate is counted while it lives, and every multiplication is counted too. Nothing is
loaded and no device is needed: a laptop plans for a card that it does not have.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as trees
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from astrolabe.assembly import make_algorithm, make_watch
from astrolabe.experiment import TrainConfig
from astrolabe.models.cache import RollingCache
from astrolabe.models.released import released
from astrolabe.models.settings import ReleasedSettings
from astrolabe.models.wan.config import WanConfig
from astrolabe.models.wan.generator import WanGenerator
from astrolabe.models.wan.transformer import CausalWan
from astrolabe.models.wan.vae import WanVAE
from astrolabe.rewards.base import at_once
from astrolabe.rewards.opening import memory_of
from astrolabe.rl.algorithm import Samples
from astrolabe.rl.forward import Forward, PromptText
from astrolabe.rl.guards import BASE_CLIPS
from astrolabe.rl.policies import SLOTS, Policies
from astrolabe.rl.update import make_optimizer
from astrolabe.rollout.live import PlacedNoise, VideoStream
from astrolabe.runtime.config import override
from astrolabe.runtime.device import memory, torch_dtype
from astrolabe.runtime.errors import UserError, nearest
from astrolabe.shapes.codec import Codec
from astrolabe.shapes.model import keep_linears_in
from astrolabe.shapes.settings import LATENT_SHAPE, STREAM, WAN
from astrolabe.shapes.text import TextEncoder
from astrolabe.types import Stretch, TextEmbeddings, Trajectory, per_frame

# Bytes, and dense bfloat16 operations a second: what their makers say.
DEVICES = {
    "rtx-4090": (24e9, 165e12), "rtx-5090": (32e9, 210e12), "l40s": (48e9, 362e12), "a100-40": (40e9, 312e12),
    "a100": (80e9, 312e12), "h100": (80e9, 989e12), "h200": (141e9, 989e12), "b200": (180e9, 2250e12),
}  # fmt: skip
UTILISATION = 0.4  # of that speed: what such networks reach
RESERVE = 1.5e9  # bytes of a GPU for its context, its kernels and the gaps between blocks
WAN_VAE_WIDTH, WAN_WORDS = 96, 512
# In the order in which they cost least speed.
KNOBS = (
    ("optimizer.gradient_checkpointing", "true"), ("offload", "true"), ("model.vae_tile", "32"),
    ("rollout.micro_batch", "1"), ("optimizer.micro_batch", "1"), ("optimizer.chunks", "1"), ("rollout.prompts", "1"),
    ("lora.rank", "64"),
)  # fmt: skip


class Ledger(TorchDispatchMode):
    """Counts the bytes that live and the operations that are done, by phase."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self.operations = 0, 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in trees.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.count(tensor)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.operations += int(flop_registry[packet](*args, **(kwargs or {}), out_val=out))
        elif "flash_attention_for_cpu" in str(packet):
            backward = "backward" in str(packet)
            query, key = args[1:3] if backward else args[:2]
            self.operations += (10 if backward else 4) * query.numel() * key.shape[2]
        return out

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's memory until it is given back; once, however many views there are."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@dataclass
class Phase:
    """What one phase of a step takes."""

    bytes: int
    operations: float


@dataclass
class Plan:
    """What a step takes: bytes that are always held, by owner; phases; and what the host keeps."""

    held: dict[str, int] = field(default_factory=dict)
    phases: dict[str, Phase] = field(default_factory=dict)
    frames: int = 0  # bytes of the frames of a micro-batch, on the host
    judging: int = 0  # bytes of those that are judged at once

    @property
    def peak(self) -> int:
        """The most bytes at one time on the device."""
        return max(phase.bytes for phase in self.phases.values())

    def total(self, on_host: bool) -> int:
        """The most bytes at one time, with the frames when device and host share their memory."""
        if not on_host:
            return self.peak
        # Frames are judged as they come, and given back.
        filming = max(self.phases[name].bytes for name in ("rollout", "decode"))
        return max(self.peak, self.frames + filming, self.frames + sum(self.held.values()) + self.judging)

    def seconds(self, speed: float) -> dict[str, float]:
        """Seconds of every phase on a device of so many operations a second."""
        return {name: phase.operations / speed for name, phase in self.phases.items()}


class BlankText:
    """Embeddings of the right size."""

    def __init__(self, words: int, dim: int):
        self.shape = words, dim

    def check(self, texts: Sequence[str]) -> None:
        """Any text will do."""

    def encode(self, texts: Sequence[str]) -> TextEmbeddings:
        return torch.zeros(len(texts), *self.shape)


def hollow(cfg: TrainConfig) -> WanGenerator:
    """The generator of a configuration, without numbers: call it where tensors have none."""
    settings = cfg.model
    dtype = torch_dtype(settings.dtype, "cpu" if settings.dtype != "auto" else settings.place)
    if isinstance(settings, ReleasedSettings):
        wan = released(settings.name).wan
        vae = AutoencoderKLWan(base_dim=WAN_VAE_WIDTH).requires_grad_(False)
        torch.nn.Module.to(vae, dtype)  # its own ``to`` warns of weights that no Wan has
        codec = WanVAE(vae, settings.vae_tile)
        return empty_generator(wan, settings.stream, settings.latent_shape, WAN_WORDS, codec, dtype)
    model = empty_generator(
        WAN, STREAM, LATENT_SHAPE, TextEncoder().text_len, Codec().requires_grad_(False), torch.float32
    )
    keep_linears_in(model.transformer, dtype)
    model.dtype = dtype
    return model


def empty_generator(
    wan: WanConfig, stream: Any, shape: tuple[int, int, int], words: int, codec: Any, dtype: torch.dtype
) -> WanGenerator:
    """A generator of any size around a decoder."""
    transformer = CausalWan(wan).to(dtype).requires_grad_(False)
    return WanGenerator(transformer, stream, shape, BlankText(words, wan.text_dim), codec, dtype)


def decoder_of(generator: WanGenerator) -> torch.nn.Module:
    """The decoder's network."""
    module = getattr(generator.codec, "vae", generator.codec)
    assert isinstance(module, torch.nn.Module)
    return module


def pretend(module: torch.nn.Module) -> None:
    """Let a module made on ``meta`` look as if it were on the CPU; it still has no numbers."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            shown = torch.empty_like(parameter, device="cpu")
            part.register_parameter(name, torch.nn.Parameter(shown, parameter.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            part.register_buffer(name, torch.empty_like(buffer, device="cpu"))


def make_plan(cfg: TrainConfig, build: Any = hollow) -> Plan:
    """Play a step of ``cfg`` through. ``build`` makes its generator."""
    plan, ledger = Plan(), Ledger()
    with torch.device("meta"):
        generator: WanGenerator = build(cfg)
    policies = Policies(generator.transformer, cfg.lora, torch.Generator())
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in (generator.transformer, decoder_of(generator)):
            pretend(module)
        if isinstance(generator.codec, WanVAE):
            generator.codec = WanVAE(generator.codec.vae, generator.codec.tile)
    generator.transformer.gradient_checkpointing = cfg.optimizer.gradient_checkpointing
    with ledger:
        hold(plan, ledger, generator, policies, cfg)
        optimizer = make_optimizer(policies, cfg.optimizer)
        moments = ledger.live
        for tensor in policies.trainable().values():
            tensor.grad = torch.zeros_like(tensor)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        plan.held["optimizer"] = ledger.live - moments
        stream = play_history(plan, ledger, generator, policies, cfg)
        play_rollout(plan, ledger, generator, policies, cfg, stream)
        if cfg.offload:
            ledger.live -= plan.held["decoder"]
        play_update(plan, ledger, generator, policies, cfg, stream)
        with counted(plan, ledger, "optimizer", cfg.optimizer.minibatches):
            optimizer.step()
    return plan


def hold(plan: Plan, ledger: Ledger, generator: WanGenerator, policies: Policies, cfg: TrainConfig) -> None:
    """Count what is always there."""
    slots = {slot: list(policies.tensors(slot).values()) for slot in SLOTS}
    adapters = {tensor.untyped_storage()._cdata for tensors in slots.values() for tensor in tensors}
    module = decoder_of(generator)
    weights: list[Tensor] = [
        p for p in generator.transformer.parameters() if p.untyped_storage()._cdata not in adapters
    ]
    resting = ("reference",) if cfg.offload and cfg.regularisation.samples == "none" else ()
    parts: dict[str, list[Tensor]] = {
        "weights": weights,
        "decoder": [*module.parameters(), *module.buffers()],
        "adapters": [tensor for slot, tensors in slots.items() if slot not in resting for tensor in tensors],
    }
    for name, tensors in parts.items():
        before = ledger.live
        for tensor in tensors:
            ledger.count(tensor)
        plan.held[name] = ledger.live - before
    plan.held["rewards"] = memory_of(cfg.rewards, cfg.model.place)
    ledger.live += plan.held["rewards"]


@contextmanager
def counted(plan: Plan, ledger: Ledger, name: str, times: float) -> Iterator[None]:
    """Count what happens within as a phase, whose operations are done so many times in a step."""
    ledger.peak, before = ledger.live, ledger.operations
    yield
    done = (ledger.operations - before) * times
    known = plan.phases.get(name, Phase(0, 0.0))
    plan.phases[name] = Phase(max(known.bytes, ledger.peak), known.operations + done)


def play_history(
    plan: Plan, ledger: Ledger, generator: WanGenerator, policies: Policies, cfg: TrainConfig
) -> VideoStream:
    """One chunk of the history of every prompt, and a cache that is as full as it gets."""
    chunk, prompts = generator.stream.chunk_frames, cfg.rollout.prompts
    deepest = cfg.window.length - cfg.window.frames
    with policies.using("behavior"):
        text = generator.encode_text([""] * prompts)
        stream = VideoStream(generator, text, PlacedNoise(0, range(prompts)))
        if deepest:
            chunks = average_start(cfg) / chunk / cfg.window.per_stream
            # After its window a candidate is committed and decoded, not denoised again.
            commits = (1 - 1 / cfg.window.per_stream) * cfg.window.frames / chunk / (len(generator.stream.levels) + 1)
            with counted(plan, ledger, "history", chunks + commits):
                stream.step()
            cache = cast(RollingCache, stream.cache)
            cache.make_room(min(deepest, generator.stream.window_frames or deepest))
            cache.frames = stream.frames = deepest
            plan.held["history"] = stream.cache.nbytes
    return stream


def average_start(cfg: TrainConfig) -> float:
    """Latent frames before the first window of a stream, on average."""
    window = cfg.window
    if window.start == "first":
        return 0.0
    return sum(window.choices) / len(window.choices) if window.choices else (window.length - window.along) / 2


def play_rollout(
    plan: Plan, ledger: Ledger, generator: WanGenerator, policies: Policies, cfg: TrainConfig, stream: VideoStream
) -> None:
    """The last chunk of ``micro_batch`` candidates of every prompt, which has most to look back at."""
    rollout, window, chunk = cfg.rollout, cfg.window, generator.stream.chunk_frames
    rows = rollout.prompts * rollout.micro_batch
    everyone = rollout.prompts * rollout.group_size
    batches: float = math.ceil(rollout.group_size / rollout.micro_batch)
    if make_watch(cfg).wanted:  # the base makes some too
        batches += BASE_CLIPS / rollout.micro_batch
    _, height, width = generator.latent_shape
    pixels = (4 * window.frames - 3) * 3 * 64 * height * width
    plan.frames = rows * pixels
    plan.judging = (1 + 3 * 4) * min(rows, at_once(pixels)) * pixels  # bytes, and what a reward makes of them
    chunks, levels = window.frames // chunk, len(generator.stream.levels)
    with torch.no_grad(), policies.using("behavior"):
        # The clips of the micro-batches before, and of this one; where it is learned from, also the way to them.
        steps = 2 * levels if make_algorithm(cfg).needs_trajectory else 0
        kept = torch.zeros(1 + steps, everyone, window.frames, *generator.latent_shape)
        made = torch.zeros(steps, rows, window.frames, *generator.latent_shape)
        with counted(plan, ledger, "rollout", batches * chunks * levels):
            cache = generator.new_candidates(cast(RollingCache, stream.cache), rollout.micro_batch, window.frames)
            cache.frames = window.frames - chunk
            noisy = torch.zeros(rows, chunk, *generator.latent_shape)
            clean = generator.velocity(noisy, per_frame(0.5, noisy), stream.condition, cache)
        with counted(plan, ledger, "rollout", batches * (chunks - 1)):
            generator.commit(clean, stream.condition, cache)
        with counted(plan, ledger, "decode", batches):
            _, state = generator.decode(clean, None)
        with counted(plan, ledger, "decode", batches * (chunks - 1)):
            generator.decode(clean, state)
        del kept, made


def play_update(
    plan: Plan, ledger: Ledger, generator: WanGenerator, policies: Policies, cfg: TrainConfig, stream: VideoStream
) -> None:
    """One micro-batch, forward and backward, and the optimiser's step."""
    options, rollout, window = cfg.optimizer, cfg.rollout, cfg.window
    algorithm = make_algorithm(cfg)
    samples = rollout.prompts * math.ceil(options.share * rollout.group_size)
    clips = torch.zeros(rollout.prompts * rollout.group_size, window.frames, *generator.latent_shape)
    clean = clips[: options.micro_batch]
    before = window.length - window.frames
    stretch = Stretch(0, 0, window.frames, before, stream.text[:1], lambda _: stream.cache.row(0))
    policies.alike = False
    with counted(plan, ledger, "update", samples / len(clean)):
        text = PromptText(generator, policies, stretch.text)
        forward = Forward(generator, policies, stretch, text, clean)
        way = None
        if algorithm.needs_trajectory:
            steps = torch.zeros(2, len(generator.stream.levels), *clips.shape).unbind()
            way = Trajectory(*(kept[:, : len(clean)] for kept in steps))
        anchored = cfg.regularisation.samples != "none"
        some = Samples(clean, torch.zeros(len(clean)), [0] * len(clean), anchored, way)
        for part in algorithm.losses(forward, some, options.chunks or window.frames):
            total = part.loss.sum()
            (total if part.drift_reference is None else total + part.drift_reference.sum()).backward()
        text.backward()
        del forward, text, part, total


def knobs_that_help(cfg: TrainConfig, budget: float, on_host: bool) -> Iterator[tuple[str, int]]:
    """Settings that lower the need, turned one after another until it fits: (``--field value``, bytes)."""
    least = make_plan(cfg).total(on_host)
    for name, value in KNOBS:
        if name == "model.vae_tile" and not isinstance(cfg.model, ReleasedSettings):
            continue
        turned = override(cfg, {name: value} | ({"optimizer.minibatches": "1"} if name == "rollout.prompts" else {}))
        if turned == cfg or (name == "lora.rank" and cfg.lora.rank <= int(value)):
            continue
        needed = make_plan(turned).total(on_host)
        if needed < least:
            cfg, least = turned, needed
            yield f"--{name} {value}", needed
        if needed <= budget:
            return


def target(name: str | None, cfg: TrainConfig) -> tuple[str, float, float, bool]:
    """Name, bytes, operations a second, and whether it is the host itself, of a device; this machine's by default."""
    if name is None:
        free, _ = memory(cfg.model.place)
        return cfg.model.place, free, measured_speed(cfg), torch.device(cfg.model.place).type == "cpu"
    if name not in DEVICES:
        raise UserError(f"device {name!r} is unknown{nearest(name, DEVICES)}; there are: {', '.join(DEVICES)}")
    size, speed = DEVICES[name]
    return name, size - RESERVE, UTILISATION * speed, False


def measured_speed(cfg: TrainConfig) -> float:
    """Operations a second of this machine in a large matrix product, times what networks reach of it."""
    dtype, place = torch_dtype(cfg.model.dtype, cfg.model.place), cfg.model.place
    side = 1024 if torch.device(place).type == "cpu" else 8192
    one = torch.randn(side, side, dtype=dtype, device=place)
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        (one @ one).sum().item()  # to be done, not only begun
        best = min(best, time.perf_counter() - began)
    return UTILISATION * 2 * side**3 / best
