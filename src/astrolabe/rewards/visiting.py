"""Reward models that wait in the host's memory and come to their device to judge, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from astrolabe.runtime.device import empty_cache


@runtime_checkable
class Networked(Protocol):
    """A reward that says which networks it asks."""

    @property
    def networks(self) -> Sequence[nn.Module]:
        """All that must be where it judges."""
        ...


class Guests:
    """Brings networks to a device and lets them go again. Their weights never change, so what the host has is kept
    and nothing travels back."""

    def __init__(self) -> None:
        self.here: tuple[nn.Module, ...] = ()
        self._device = ""
        self._kept: list[tuple[Tensor, Tensor]] = []

    def bring(self, networks: Sequence[nn.Module], device: str) -> None:
        """Have these networks on the device and no others; if they are there, all is well."""
        if tuple(networks) == self.here and device == self._device:
            return
        self.leave()
        self.here, self._device = tuple(networks), device
        for network in networks:
            for tensor in (*network.parameters(), *network.buffers()):
                self._kept.append((tensor, tensor.data))
                tensor.data = carried(tensor.data, device)

    def leave(self) -> None:
        """Let whoever is there go."""
        for tensor, at_home in self._kept:
            tensor.data = at_home
        if self._kept:
            self._kept.clear()
            empty_cache(self._device)
        self.here = ()


def carried(tensor: Tensor, device: str) -> Tensor:
    """A copy on the device, or what is there already; from locked pages while the host goes on."""
    return tensor.to(device, non_blocking=True)


def lock(networks: Sequence[nn.Module]) -> None:
    """Keep weights in pages that a GPU reads at full speed, where there is one."""
    if torch.cuda.is_available():
        for network in networks:
            for tensor in (*network.parameters(), *network.buffers()):
                tensor.data = tensor.data.pin_memory()
