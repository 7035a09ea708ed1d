"""Astrolabe aligns distilled autoregressive video models with online reinforcement learning."""

from __future__ import annotations

__version__ = "0.1.0"
