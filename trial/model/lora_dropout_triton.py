"""Dropout by place as one kernel of Triton, which comes with torch for GPUs.

Step by step, `trial.model.lora_dropout` writes every number it draws to the device's memory and
reads it back, eight times; here a number never leaves the registers. Numbers and products are the
same to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from trial.model.dropout_hash import ODD

_THIRD, _FOURTH = tl.constexpr(ODD[3]), tl.constexpr(ODD[4])
_WIDEST = 1024


@triton.jit
def _multiply(
    x, total, found, places, features, limits, factors, columns, width, step,
    ADDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0)
    feature = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = feature < width
    row = position // columns * step
    number = tl.load(places + position) ^ tl.load(features + feature, mask=inside, other=0)
    number = number * _THIRD
    number = number ^ (number >> 15)
    number = number * _FOURTH
    factor = tl.where(number >= tl.load(limits + row), tl.load(factors + row), 0.0)
    at = position.to(tl.int64) * width + feature
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * factor
    if ADDS:
        value += tl.load(total + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(found + at, value, mask=inside)


def multiply(
    x: torch.Tensor,
    places: torch.Tensor,
    features: torch.Tensor,
    limits: torch.Tensor,
    factors: torch.Tensor,
    dtype: torch.dtype,
    total: torch.Tensor | None = None,
) -> torch.Tensor:
    """`x` times what it is dropped by, computed in float32, as `dtype`; or that added to `total`.

    `x` is [..., features], of as many positions as `places` [rows, columns, 1] has; `limits` and
    `factors` are [rows, 1, 1]: a place whose number is below its row's limit is multiplied with
    zero, else with the row's factor. Both may be one number for all rows, expanded.
    """
    x, (_, columns, _) = x.contiguous(), places.shape
    width = x.shape[-1]
    if x.numel() != places.numel() * width or not (total is None or total.is_contiguous()):
        raise ValueError(f"{tuple(x.shape)} is not what {tuple(places.shape)} places hold")
    found = torch.empty_like(x, dtype=dtype) if total is None else total
    block = min(_WIDEST, triton.next_power_of_2(width))
    grid: Any = (places.numel(), triton.cdiv(width, block))
    with torch.cuda.device_of(x):
        _multiply[grid](
            x, found, found, places, features, limits, factors, columns, width, limits.stride(0),
            ADDS=total is not None, BLOCK=block,
        )  # fmt: skip
    return found
