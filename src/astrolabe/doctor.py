"""``astrolabe doctor``: what this machine is, and whether a recipe could start on it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from astrolabe.assembly import check_windows, make_algorithm, make_prompts, make_watch, process_count
from astrolabe.experiment import TrainConfig, resolved
from astrolabe.models.adapters import fits, read_adapter
from astrolabe.models.lora import linear_layers, lora_parameters
from astrolabe.models.opening import Files, check_text
from astrolabe.models.released import released
from astrolabe.models.settings import ReleasedSettings
from astrolabe.models.text_cache import TextCache
from astrolabe.models.wan.config import StreamConfig, WanConfig
from astrolabe.models.wan.transformer import CausalWan
from astrolabe.models.wan.vae import check_vae
from astrolabe.models.wan.weights import plan_transformer
from astrolabe.rewards.opening import look_at
from astrolabe.rewards.settings import MODELS
from astrolabe.runs.disk import check_disk, checkpoint_bytes
from astrolabe.runs.folder import RunFolder
from astrolabe.runs.opening import check_init
from astrolabe.runtime.device import check_device, default_dtype, memory, torch_dtype
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import held, nearest_folder, size
from astrolabe.runtime.tracking import summary_writer
from astrolabe.shapes.settings import WAN, ShapesSettings
from astrolabe.shapes.text import TextEncoder

PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "av")
ROOM = 2**30  # bytes of disk for metrics, samples and the report


@dataclass(frozen=True)
class Finding:
    """One line of the examination; ``remedy`` says what to do when it is not well. What ``warns`` is well for now."""

    name: str
    well: bool
    said: str
    remedy: str = ""
    warns: bool = False


def examine(cfg: TrainConfig | None, out: Path, untrusted: str = "") -> Iterator[Finding]:
    """The machine, and for a configuration everything that training needs before its first step. Downloads nothing.

    ``untrusted``: why training would not trust the configuration.
    """
    yield from machine(out)
    if cfg is None:
        return
    settings = cfg.model
    if untrusted:
        yield Finding("trust", False, untrusted)
    yield attempt("device", lambda: device_of(cfg))
    for reward in cfg.rewards:
        remedy = DOWNLOAD if reward.name in MODELS else ""
        yield attempt(f"reward {reward.name}", partial(look_at, reward), remedy)
    yield attempt("guards", lambda: ", ".join(rule.watch for rule in make_watch(cfg).settings.guards) or "none")
    prompts = attempt("prompts", lambda: f"{len(make_prompts(cfg).prompts)} from {cfg.prompts}")
    yield prompts
    yield attempt("reward workers", lambda: pool(cfg))
    yield attempt("processes", lambda: f"{process_count(cfg)} for a step, on {os.cpu_count()} cores")
    if cfg.tensorboard:
        yield attempt("TensorBoard", lambda: summary_writer().__name__)
    if cfg.init and not RunFolder(out).steps:
        yield attempt("begins from", lambda: first_adapter(cfg))
    stream, wan = settings.stream, WAN
    if isinstance(settings, ShapesSettings) and prompts.well:
        yield attempt("prompt texts", lambda: words(cfg))
    if isinstance(settings, ReleasedSettings):
        files = Files(settings, download=False)
        plan = cache(lambda: plan_transformer(files.transformer(), files.containers))
        wan = released(settings.name).wan
        transformer = attempt("transformer", lambda: str(plan()[0]), DOWNLOAD)
        yield transformer
        if transformer.well:
            wan = plan()[1].config
            yield attempt("its adapter", lambda: own_adapter(files, plan()[1]), DOWNLOAD)
        yield attempt("VAE", lambda: f"{files.vae()}, {check_vae(files.vae())} tensors", DOWNLOAD)
        if prompts.well:
            yield attempt("text cache", lambda: coverage(cfg, settings, wan))
    yield attempt("clip", lambda: clip(cfg, stream, prompts.well))
    yield room(cfg, wan)
    yield from disk_needed(cfg, wan, out)
    yield attempt("output", lambda: writable(cfg, out))


DOWNLOAD = "or let training download it, if this machine reaches the hub"


def attempt(name: str, look: Callable[[], str], remedy: str = "") -> Finding:
    """What ``look`` says; a UserError is the finding that it is not well."""
    try:
        return Finding(name, True, look())
    except UserError as error:
        return Finding(name, False, str(error), remedy)


def machine(out: Path) -> Iterator[Finding]:
    """What there is, whatever is to be done with it."""
    cpu = torch.backends.cpu.get_cpu_capability()
    yield Finding(
        "machine", True, f"{platform.system()}, {os.cpu_count()} cores ({cpu}), Python {platform.python_version()}"
    )
    yield Finding("packages", True, ", ".join(f"{name} {version(name)}" for name in PACKAGES))
    for index in range(torch.cuda.device_count()):
        free, total = memory(f"cuda:{index}")
        yield Finding(f"cuda:{index}", True, f"{torch.cuda.get_device_name(index)}, {size(free)} free of {size(total)}")
    free, total = memory("cpu")
    native = str(default_dtype("cpu")).removeprefix("torch.")
    yield Finding("memory", True, f"{size(free)} free of {size(total)}; the CPU computes in {native}")
    place = nearest_folder(out)
    yield Finding("disk", True, f"{size(shutil.disk_usage(place).free)} free at {place}")


def own_adapter(files: Files, transformer: CausalWan) -> str:
    """The adapter that belongs to the model, read and fitted to the transformer on ``meta``."""
    path = files.adapter()
    if path is None:
        return "none"
    adapter = read_adapter(path)
    fits(adapter, linear_layers(transformer), str(path))
    return f"{path}, {len(adapter)} layers"


def clip(cfg: TrainConfig, stream: StreamConfig, prompts: bool) -> str:
    """How a clip falls into chunks, and that there are as many levels as are drawn; scripts too, if there are any."""
    chunks = stream.chunks(cfg.window.frames)
    levels = make_algorithm(cfg).level_table(stream, len(chunks))
    check_windows(cfg, make_prompts(cfg) if prompts else None, make_algorithm(cfg))
    return f"{len(chunks)} chunks of {stream.chunk_frames} latent frames, {len(levels)} levels"


def disk_needed(cfg: TrainConfig, wan: WanConfig, out: Path) -> Iterator[Finding]:
    """Whether the checkpoints fit, with some room for metrics, samples and the report; and whether ten would, if more
    were to be kept."""
    place = nearest_folder(out)
    free, ten = shutil.disk_usage(place).free, 10 * checkpoint_bytes(cfg, wan) + ROOM
    yield attempt("disk needed", lambda: check_disk(cfg, wan, RunFolder(out)))
    if free < ROOM:
        yield Finding("disk for the rest", False, f"{size(free)} at {place}", f"{size(ROOM)} should be free")
    if free < ten:
        said = f"ten checkpoints, and room for the rest, would take {size(ten)}: {size(free)} are free at {place}"
        yield Finding("more disk", True, said, warns=True)


def coverage(cfg: TrainConfig, settings: ReleasedSettings, wan: WanConfig) -> str:
    """That every prompt has its embedding, of the right size; UserError names the first that has none."""
    prompts = make_prompts(cfg).texts
    embedded = TextCache.open(settings.text_cache)
    check_text(embedded, wan)
    embedded.check(prompts)
    return f"{len(prompts)} prompts in {settings.text_cache}"


def room(cfg: TrainConfig, wan: WanConfig) -> Finding:
    """Whether weights, adapters and caches fit the device; ``astrolabe plan`` counts activations too."""
    settings = cfg.model
    try:
        check_device(settings.place)
        free, _ = memory(settings.place)
        dtype = torch_dtype(settings.dtype, settings.place)
        shape, stream = settings.latent_shape, settings.stream
    except UserError as error:
        return Finding("memory needed", False, str(error))
    before = cfg.window.length - cfg.window.frames
    history = min(before, stream.window_frames or before)
    frames = cfg.rollout.prompts * (history + cfg.rollout.micro_batch * cfg.window.frames)
    parts = {
        "weights": parameters(wan) * dtype.itemsize,
        "adapters": lora_parameters(wan, cfg.lora.rank) * (3 * 4 + 3 * 4),  # three slots; gradient and two moments
        "caches": wan.cache_bytes(1, frames, shape[1] * shape[2] // 4, dtype.itemsize),
    }
    needed = sum(parts.values())
    said = f"{size(needed)} without activations (" + ", ".join(f"{name} {size(n)}" for name, n in parts.items()) + ")"
    remedy = f"{size(free)} are free on {settings.place}; lower lora.rank or rollout.micro_batch"
    return Finding("memory needed", needed < free, said, remedy)


def parameters(wan: WanConfig) -> int:
    """Numbers of a transformer."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CausalWan(wan).parameters())


def writable(cfg: TrainConfig, out: Path) -> str:
    """Where the run would go, and whether it is one that goes on; UserError when it cannot."""
    folder, place = RunFolder(out), nearest_folder(out)
    found = folder.examine(resolved(cfg))
    if held(out):
        raise UserError(f"{out}: another process is working in this run; wait for it, or name another folder")
    if not os.access(place, os.W_OK):
        raise UserError(f"{place} cannot be written to; name another folder with --out")
    if not folder.exists:
        return str(out)
    if folder.already_done(resolved(cfg)):
        return f"{out}, a run that is already done"
    changed = f" with {'; '.join(map(str, found))}" if found else ""
    return f"{out}, a run that goes on from step {folder.done} of {cfg.steps}{changed}"


def pool(cfg: TrainConfig) -> str:
    """Where rewards are computed; UserError when a library for that is missing."""
    if cfg.pool.backend == "ray":
        alone = any(reward.worker.packages for reward in cfg.rewards)
        for name in ("ray", *(["virtualenv"] if alone else [])):
            if find_spec(name) is None:
                raise UserError(f"pool.backend=ray needs {name}: pip install 'astrolabe-rl[ray]'")
    return cfg.pool.backend


def words(cfg: TrainConfig) -> str:
    """That the text encoder of the embedded model takes every prompt; UserError names one that it does not."""
    texts = make_prompts(cfg).texts
    TextEncoder().check(texts)
    return f"{len(texts)} different texts"


def first_adapter(cfg: TrainConfig) -> str:
    """What the policies begin from; UserError when that is absent or of another size."""
    check_init(cfg)
    return cfg.init


def device_of(cfg: TrainConfig) -> str:
    """Where the base computes, and in what; UserError when it cannot."""
    check_device(cfg.model.place)
    return computing(cfg.model.place, torch_dtype(cfg.model.dtype, cfg.model.place))


def computing(place: str, dtype: torch.dtype) -> str:
    """A device and a precision, and what that means where it is slow."""
    said = f"{place}, {str(dtype).removeprefix('torch.')}"
    if dtype == torch.float32 and torch.device(place).type == "cuda":
        said += "; there without tensor cores, and with all scores of attention to a shared history written out"
    return said


def show_findings(findings: Iterable[Finding]) -> None:
    """A line each; exit code 1 when something is not well."""
    table, ill = Table("", "", Column(overflow="fold"), show_header=False, box=None, padding=(0, 1)), 0
    for finding in findings:
        ill += not finding.well
        said = escape(finding.said)
        if finding.remedy and not finding.well:
            said += f"\n[yellow]-> {escape(finding.remedy)}"
        mark = "[red]NO" if not finding.well else "[yellow]--" if finding.warns else "[green]ok"
        table.add_row(mark, finding.name, said)
    Console().print(table)
    if ill:
        print(f"{ill} thing{'s' * (ill > 1)} to fix")
        sys.exit(1)
