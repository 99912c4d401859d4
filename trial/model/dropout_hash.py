"""The counter-based hash that LoRA dropout draws from."""

from __future__ import annotations

import torch

ODD = (-1640531535, -2048144789, -1028477387, 668265263, 374761393)
"""Odd 32-bit multipliers."""
WORD = 1 << 32
LOWEST = -(1 << 31)
"""A threshold that every number reaches: nothing is dropped."""


def row_key(seed: int, step: int, position: int) -> int:
    """A signed 32-bit number for a row: its place in the optimizer step, the step, the seed."""
    word = 0
    for part, odd in zip((seed, step, position), ODD, strict=False):
        word = (word ^ part) * (odd % WORD) % WORD
        word ^= word >> 15
        word = word * 0x2C1B3C6D % WORD
        word ^= word >> 13
    return word - WORD if word >= WORD // 2 else word


def threshold(p: float) -> int:
    """Numbers below it are dropped: a share of `p`."""
    return min(LOWEST + round(p * WORD), -LOWEST - 1)


def mixed(numbers: torch.Tensor) -> torch.Tensor:
    """Scatter int32 numbers over all 32 bits."""
    numbers = numbers * ODD[1]
    numbers = numbers ^ (numbers >> 15)
    numbers = numbers * ODD[2]
    return numbers ^ (numbers >> 13)
