"""Astrolabe aligns distilled autoregressive video models with online reinforcement learning.

``docs/python.md`` tells ``load``, ``stream``, ``config``, ``train`` and ``evaluate``; they are imported when they are
asked for, so that ``import astrolabe`` is light.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["UserError", "config", "evaluate", "load", "stream", "train"]


def __getattr__(name: str) -> Any:
    """What ``api`` has, imported now."""
    if name not in __all__:
        raise AttributeError(f"module 'astrolabe' has no attribute {name!r}")
    from astrolabe import api

    return getattr(api, name)


def __dir__() -> list[str]:
    """The functions too, before they are imported."""
    return sorted([*globals(), *__all__])
