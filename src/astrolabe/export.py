"""``astrolabe export``: what was trained, in the layout that other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from astrolabe.experiment import ModelSettings
from astrolabe.models import adapter_files
from astrolabe.models.adapters import Adapter, check_finite, from_slot, read_adapter
from astrolabe.models.opening import Files
from astrolabe.models.settings import ReleasedSettings
from astrolabe.models.wan.weights import recognise
from astrolabe.runs.adapter import adapter_of, check_scale, run_of, say_unfinished
from astrolabe.runtime.device import Dtype, torch_dtype
from astrolabe.runtime.errors import UserError

Format = Literal["peft", "comfyui", "diffusers", "merged"]
WORTH_A_WORD = 0.05  # error of a merged checkpoint's rounding, over the size of the change


def export(source: Path, form: Format, out: Path, model: ModelSettings | None, dtype: Dtype | None = None) -> str:
    """Write the adapter of ``source`` (a run, a PEFT folder, a LoRA file) as ``form`` to ``out``; gives what to tell.

    ``model`` (None: the run's) is what a merged checkpoint is made from. Raises UserError when there is no adapter,
    when it does not fit, or when something lies at ``out``.
    """
    if out.exists():
        raise UserError(f"{out} exists; name a new {'folder' if form == 'peft' else 'file'} with --out")
    if model is not None and form != "merged":
        raise UserError(f"--model is what a merged checkpoint is made from; leave it out for --format {form}")
    if form == "merged":
        adapter_files.check_suffix(out, *adapter_files.MERGED)  # before gigabytes are fetched for it
    adapter, name = load(source)
    check_finite(adapter, str(source))
    adapter_files.check_layers(adapter, str(source))
    kept = torch_dtype(dtype, "cpu") if dtype else None
    if form == "peft":
        adapter_files.write_peft(adapter, out, name, kept)
    elif form == "comfyui":
        adapter_files.write_comfyui(adapter, out, kept)
    elif form == "diffusers":
        adapter_files.write_diffusers(adapter, out, kept)
    else:
        run = run_of(source)
        settings = model or (run.config().model if run else None)
        if not isinstance(settings, ReleasedSettings):
            raise UserError("a merged checkpoint is made from a released model's own: name it with --model")
        files = Files(settings)
        layout = recognise(files.transformer(), files.containers)
        error = adapter_files.write_merged(layout, adapter, out, kept)
        note = f"{out}, from {layout.file.path.name} ({layout})"
        if error > WORTH_A_WORD:
            note += (
                f"\nrounding errs by {error:.0%} of the size of the change; --dtype float32 keeps it, in a larger file"
            )
        return note
    return str(out)


def load(source: Path) -> tuple[Adapter, str]:
    """An adapter from wherever it is, and the name of the model it belongs to, as far as that is known."""
    own = adapter_of(source)
    if own is None:
        return read_adapter(source), ""
    cfg = own.folder.config()
    say_unfinished(own)
    tensors, metadata = own.load()
    check_scale(own, metadata, cfg)
    return from_slot(tensors, cfg.lora.rank, cfg.lora.alpha), cfg.model.name
