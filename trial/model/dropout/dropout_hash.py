"""The counter-based hash that LoRA dropout takes its random numbers from.

A random number is a pure function of (seed, step, row, column, layer, feature), as in the
counter-based generators of Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3"). The
multipliers are those of xxHash32 (its primes 1, 4 and 5), of MurmurHash3's finaliser `fmix32`, and
one that Chris Wellons' hash-prospector found.
"""

from __future__ import annotations

import torch

UINT32_RANGE = 1 << 32


def _int32(bits: int) -> int:
    """A 32-bit pattern as the signed number that torch's int32 holds."""
    return bits - UINT32_RANGE if bits >= UINT32_RANGE // 2 else bits


XXH_PRIME32_1 = _int32(0x9E3779B1)
XXH_PRIME32_4 = _int32(0x27D4EB2F)
XXH_PRIME32_5 = _int32(0x165667B1)
FMIX32_1 = _int32(0x85EBCA6B)
FMIX32_2 = _int32(0xC2B2AE35)
PROSPECTOR = 0x2C1B3C6D

KEEP_ALL = -(1 << 31)
"""The lowest int32: a threshold that every hash reaches, so that no element is dropped."""


def row_key(seed: int, step: int, position: int) -> int:
    """Hash key of one row, a signed 32-bit number.

    Args:
        seed: the trial's seed.
        step: number of the optimizer step.
        position: number of the row within the step.
    """
    key = 0
    multipliers = (XXH_PRIME32_1, FMIX32_1, FMIX32_2)
    for part, multiplier in zip((seed, step, position), multipliers, strict=True):
        key = (key ^ part) * (multiplier % UINT32_RANGE) % UINT32_RANGE
        key ^= key >> 15
        key = key * PROSPECTOR % UINT32_RANGE
        key ^= key >> 13
    return _int32(key)


def threshold(p: float) -> int:
    """The int32 below which a share `p` of all hashes lies: those elements are dropped."""
    return min(KEEP_ALL + round(p * UINT32_RANGE), -KEEP_ALL - 1)


def mix_bits(keys: torch.Tensor) -> torch.Tensor:
    """Spread int32 keys over all 32 bits; any shape.

    Two rounds of multiply and xor-shift with the multipliers of `fmix32`. The shifts (15 and 13)
    are xxHash32's, and arithmetic, since torch's int32 has no other.
    """
    keys = keys * FMIX32_1
    keys = keys ^ (keys >> 15)
    keys = keys * FMIX32_2
    return keys ^ (keys >> 13)
