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
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from astrolabe.assembly import check_windows, make_algorithm, make_prompts, make_watch
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
from astrolabe.runs.folder import RunFolder
from astrolabe.runtime.device import check_device, default_dtype, memory, torch_dtype
from astrolabe.runtime.errors import UserError
from astrolabe.shapes.settings import LATENT_SHAPE, STREAM, WAN

PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "av")
ROOM = 2**30  # bytes of disk for metrics, samples and the report


@dataclass(frozen=True)
class Finding:
    """One line of the examination; ``remedy`` says what to do when it is not well."""

    name: str
    well: bool
    said: str
    remedy: str = ""


def examine(cfg: TrainConfig | None, out: Path) -> Iterator[Finding]:
    """The machine, and for a configuration everything that training needs before its first step. Downloads nothing."""
    yield from machine(out)
    if cfg is None:
        return
    settings = cfg.model
    yield attempt("device", lambda: device_of(cfg))
    for reward in cfg.rewards:
        remedy = DOWNLOAD if reward.name in MODELS else ""
        yield attempt(f"reward {reward.name}", partial(look_at, reward), remedy)
    yield attempt("guards", lambda: ", ".join(rule.watch for rule in make_watch(cfg).settings.guards) or "none")
    prompts = attempt("prompts", lambda: f"{len(make_prompts(cfg).prompts)} from {cfg.prompts}")
    yield prompts
    stream, wan = STREAM, WAN
    if isinstance(settings, ReleasedSettings):
        files = Files(settings, download=False)
        plan = cache(lambda: plan_transformer(files.transformer(), files.containers))
        stream, wan = settings.stream, released(settings.name).wan
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
    yield disk_needed(cfg, wan, out)
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


def disk_needed(cfg: TrainConfig, wan: WanConfig, out: Path) -> Finding:
    """Whether the checkpoints fit: two are kept while a third is written, each with three slots and two moments."""
    needed = 3 * 5 * 4 * lora_parameters(wan, cfg.lora.rank) + ROOM
    place = nearest_folder(out)
    free = shutil.disk_usage(place).free
    return Finding(
        "disk needed", free > needed, f"{size(needed)} at {place}", f"{size(free)} are free; name another --out"
    )


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
        shape = settings.latent_shape if isinstance(settings, ReleasedSettings) else LATENT_SHAPE
        stream = settings.stream if isinstance(settings, ReleasedSettings) else STREAM
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
    """Where the run would go; UserError when it cannot."""
    if RunFolder(out).holds_another(resolved(cfg)):
        raise UserError(f"{out} holds a run with another configuration; name a new folder with --out")
    if out.exists() and not RunFolder(out).config_file.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is no run; name a new or empty folder with --out")
    place = nearest_folder(out)
    if not os.access(place, os.W_OK):
        raise UserError(f"{place} cannot be written to; name another folder with --out")
    return str(out)


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest above it that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def device_of(cfg: TrainConfig) -> str:
    """Where the base computes, and in what; UserError when it cannot."""
    check_device(cfg.model.place)
    return f"{cfg.model.place}, {str(torch_dtype(cfg.model.dtype, cfg.model.place)).removeprefix('torch.')}"


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def show_findings(findings: Iterable[Finding]) -> None:
    """A line each; exit code 1 when something is not well."""
    table, ill = Table("", "", Column(overflow="fold"), show_header=False, box=None, padding=(0, 1)), 0
    for finding in findings:
        ill += not finding.well
        said = escape(finding.said)
        if finding.remedy and not finding.well:
            said += f"\n[yellow]-> {escape(finding.remedy)}"
        table.add_row("[green]ok" if finding.well else "[red]NO", finding.name, said)
    Console().print(table)
    if ill:
        print(f"{ill} thing{'s' * (ill > 1)} to mend")
        sys.exit(1)
