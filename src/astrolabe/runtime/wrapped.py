"""Where in a file a network's tensors lie: in which of its dictionaries, and under which names of training wrappers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from astrolabe.runtime.errors import UserError
from astrolabe.runtime.tensorfile import FLAT, Container, TensorFile

# What FSDP, activation checkpointing, torch.compile and DDP leave in a name, wherever they were put around a module.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|module)\.")
# Where trainers keep a network that is alone in its file; averages before what they are averages of.
USUAL = ("ema", "state_dict", "model", "module", FLAT)


def unwrapped(name: str, prefix: re.Pattern[str] | None = None) -> str:
    """A tensor's name without wrappers, and then without what ``prefix`` matches."""
    bare = WRAPPERS.sub("", name)
    return prefix.sub("", bare, count=1) if prefix else bare


def own_names(file: TensorFile, container: str, prefix: re.Pattern[str] | None = None) -> dict[str, str]:
    """The names in a container, by what they are without wrappers and prefix; UserError when two become one."""
    own = list(file.containers[container])
    names = {unwrapped(name, prefix): name for name in own}
    if len(names) < len(own):
        raise UserError(f"{file.path}: two tensors of {container or 'the file'} have the same name without wrappers")
    return names


def tensors_of(file: TensorFile, marker: str | None = None, containers: Sequence[str] = USUAL) -> Container:
    """The tensors of the first of ``containers`` that has one named ``marker`` (None: any), under names without
    wrappers; where none has, those of the first container that is there.

    UserError for a file with none of them.
    """
    there = [name for name in containers if name in file.containers]
    if not there:
        raise UserError(f"{file.path}: no tensors at its top or under {', '.join(filter(None, containers))}")
    chosen = next((name for name in there if marker is None or marker in own_names(file, name)), there[0])
    return {bare: file.containers[chosen][own] for bare, own in own_names(file, chosen).items()}
