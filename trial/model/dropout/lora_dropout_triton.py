"""The LoRA dropout mask and its product as one Triton kernel; Triton comes with torch for GPUs.

The tensor operations of `keep_mask` in `lora_dropout` write every hash to the device's
memory and read it back, eight times in all; here a hash stays in registers. Hashes and products are
the same to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from trial.model.dropout.dropout_hash import XXH_PRIME32_4, XXH_PRIME32_5

_PRIME_4, _PRIME_5 = tl.constexpr(XXH_PRIME32_4), tl.constexpr(XXH_PRIME32_5)
_MAX_BLOCK = 1024
"""Features that one program handles."""


@triton.jit
def _multiply(
    x, total, out, positions, features, limits, factors, columns, width, row_stride,
    ADDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0)
    feature = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = feature < width
    row = position // columns * row_stride
    hashes = tl.load(positions + position) ^ tl.load(features + feature, mask=inside, other=0)
    hashes = hashes * _PRIME_4
    hashes = hashes ^ (hashes >> 15)
    hashes = hashes * _PRIME_5
    factor = tl.where(hashes >= tl.load(limits + row), tl.load(factors + row), 0.0)
    offset = position.to(tl.int64) * width + feature
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32) * factor
    if ADDS:
        value += tl.load(total + offset, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + offset, value, mask=inside)


def multiply(
    x: torch.Tensor,
    positions: torch.Tensor,
    features: torch.Tensor,
    limits: torch.Tensor,
    factors: torch.Tensor,
    dtype: torch.dtype,
    total: torch.Tensor | None = None,
) -> torch.Tensor:
    """`x` times its dropout mask, computed in float32, as `dtype`.

    Args:
        x: [..., features], with as many positions as `positions` has.
        positions: `BatchPositions.keys`, int32 [rows, columns, 1].
        features: `feature_keys` of the layer, int32 [features].
        limits: int32 [rows, 1, 1]; an element whose hash is below its row's limit is dropped. One
            number for all rows may be expanded.
        factors: float32 [rows, 1, 1], what the kept elements are multiplied with; likewise.
        dtype: type of the product where there is no `total`.
        total: a contiguous tensor of the shape of `x`, to which the product is added in place.

    Raises:
        ValueError: `x` does not fit the positions, or `total` is not contiguous.
    """
    x, (_, columns, _) = x.contiguous(), positions.shape
    width = x.shape[-1]
    if x.numel() != positions.numel() * width or not (total is None or total.is_contiguous()):
        raise ValueError(f"{tuple(x.shape)} does not fit positions {tuple(positions.shape)}")
    out = torch.empty_like(x, dtype=dtype) if total is None else total
    block = min(_MAX_BLOCK, triton.next_power_of_2(width))
    grid: Any = (positions.numel(), triton.cdiv(width, block))
    with torch.cuda.device_of(x):
        _multiply[grid](
            x, out, out, positions, features, limits, factors, columns, width, limits.stride(0),
            ADDS=total is not None, BLOCK=block,
        )  # fmt: skip
    return out
