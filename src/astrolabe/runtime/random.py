"""Randomness as a function: the same seed, step and purpose give the same numbers, whatever ran before."""

from __future__ import annotations

import hashlib

import torch


def rng_for(seed: int, step: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for one use of randomness; resuming at ``step`` needs no state from the steps before.

    The three are hashed, so that neighbouring seeds and steps share nothing. A CPU and a CUDA generator of the same
    seed draw different numbers: where results must agree across devices, draw on the CPU and move.
    """
    words = repr((int(seed), int(step), str(purpose), 0)).encode()  # the 0: runs of before repeat their numbers
    digest = hashlib.blake2b(words, digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)  # torch's seeds are signed
