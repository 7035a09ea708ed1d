"""Strict loading: a module has exactly the tensors of a file, of the same shapes, or it is not loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from astrolabe.runtime.errors import UserError
from astrolabe.runtime.progress import progress
from astrolabe.runtime.tensorfile import Container, TensorFile

SHOWN = 3


@runtime_checkable
class Shaped(Protocol):
    """A tensor of a file, or what becomes one."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def check(found: Mapping[str, Shaped], module: nn.Module, source: str) -> None:
    """UserError unless ``found`` has exactly the tensors of ``module``, of the same shapes; lists the first few."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    wrong = [
        ("missing", [name for name in expected if name not in found]),
        ("unknown", [name for name in found if name not in expected]),
        (
            "of another shape",
            [
                f"{name} {list(found[name].shape)} instead of {list(shape)}"
                for name, shape in expected.items()
                if name in found and found[name].shape != shape
            ],
        ),
    ]
    complaints = [f"{len(names)} {what}: {few(names)}" for what, names in wrong if names]
    if complaints:
        raise UserError(f"{source}: {'; '.join(complaints)}")


def few(names: Iterable[str]) -> str:
    """The first few of ``names``, and how many more there are."""
    known = list(names)
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return ", ".join(known[:SHOWN]) + more


def fill(
    module: nn.Module, file: TensorFile, entries: Container, device: torch.device | str, dtype: torch.dtype | None
) -> None:
    """Give a module on ``meta`` its tensors, each straight from the file to ``device`` in ``dtype``, and freeze it."""
    in_order = sorted(set(entries.values()), key=lambda entry: entry.order)  # one pass; tied names share one
    read = {}
    with (
        file.reader() as reader,
        progress(f"loading {file.path.name}", sum(entry.nbytes for entry in in_order), "bytes") as task,
    ):
        for entry in in_order:
            read[entry] = reader.read(entry, device, dtype)
            task.advance(entry.nbytes)
    module.load_state_dict({name: read[entry] for name, entry in entries.items()}, strict=True, assign=True)
    module.eval().requires_grad_(False)
