"""LoRA dropout whose draws depend on seed, step, row, column, layer and feature, and nothing else.

torch's own draws depend on everything drawn before them, so they differ between devices, after a
resume, and as soon as two trials share a process. Here every element has a number of its own: the
same trial drops the same elements on every device, after any resume, with any division of an
optimizer step into micro-batches and ranks, alone or packed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from trial.model.dropout_hash import ODD, WORD, mixed, threshold

logger = logging.getLogger(__name__)


class BatchPositions:
    """Which rows and columns the batch that is being trained holds; one for all layers."""

    def __init__(self) -> None:
        self.keys: torch.Tensor | None = None
        """int32 [rows, columns, 1]."""

    def set(self, rows: Sequence[int] | torch.Tensor, columns: int, device: torch.device) -> None:
        """Say what the next batch is: a `row_key` for each row, and its columns."""
        keys = torch.as_tensor(rows, dtype=torch.int32).to(device).view(-1, 1, 1)
        numbers = torch.arange(columns, dtype=torch.int32, device=device).view(1, -1, 1)
        self.keys = mixed(keys + numbers * ODD[0])


def feature_keys(site: int, features: int) -> torch.Tensor:
    """Int32 [features]: the share that a layer and its input features have in the numbers."""
    numbers = torch.arange(features, dtype=torch.int64) + (site << 20)
    return mixed((numbers * 0x9E3779B1 % WORD - WORD // 2).to(torch.int32))


def survivors(
    places: torch.Tensor, features: torch.Tensor, threshold: int | torch.Tensor
) -> torch.Tensor:
    """Bool [rows, columns, features]: what is kept."""
    numbers = places ^ features
    numbers = numbers.mul_(ODD[3])
    numbers = numbers.bitwise_xor_(numbers >> 15)
    return numbers.mul_(ODD[4]) >= threshold


class Drop(Protocol):
    """What the inputs of one layer are multiplied with in one batch."""

    def of(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`x` multiplied, [..., features], computed in float32 or finer, as `dtype`."""
        ...

    def onto(self, total: torch.Tensor, x: torch.Tensor) -> None:
        """The same added to `total`, in place."""
        ...


@dataclass(frozen=True, slots=True)
class ByMask:
    """The factors of all places, worked out beforehand, [rows, columns, features]."""

    factors: torch.Tensor

    def of(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """As `Drop` says."""
        return (x * self.factors.view_as(x)).to(dtype)

    def onto(self, total: torch.Tensor, x: torch.Tensor) -> None:
        """As `Drop` says."""
        factors = self.factors.view_as(x)
        if total.dtype == factors.dtype:
            total.addcmul_(x, factors)
        else:
            total.add_(x * factors)


@dataclass(frozen=True, slots=True)
class ByKernel:
    """Factors that a kernel works out where it needs them: they take neither memory nor time."""

    kernel: ModuleType
    drawn: tuple[torch.Tensor, ...]

    def of(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """As `Drop` says."""
        found: torch.Tensor = self.kernel.multiply(x, *self.drawn, dtype)
        return found

    def onto(self, total: torch.Tensor, x: torch.Tensor) -> None:
        """As `Drop` says."""
        self.kernel.multiply(x, *self.drawn, total.dtype, total)


def drop(
    places: torch.Tensor, features: torch.Tensor, limits: torch.Tensor, factors: torch.Tensor
) -> Drop:
    """In the way that suits the device.

    `limits` and `factors` are [rows, 1, 1]: a row's `threshold`, and what its kept elements are
    multiplied with.
    """
    # A compiler of whole graphs makes a kernel of its own.
    if not torch.compiler.is_compiling() and (kernel := _kernel(places.device)):
        return ByKernel(kernel, (places, features, limits, factors))
    return ByMask(survivors(places, features, limits) * factors)


@cache
def _kernel(device: torch.device) -> ModuleType | None:
    """`trial.model.lora_dropout_triton`, where it can be built and run."""
    if device.type != "cuda":
        return None
    try:
        from trial.model import lora_dropout_triton

        one = torch.ones(1, 1, 1, device=device)
        word = one.int()
        lora_dropout_triton.multiply(one, word, word.flatten(), word, one, one.dtype)
    except torch.OutOfMemoryError:
        raise  # That says nothing of the kernel.
    except Exception as error:
        logger.warning("LoRA dropout goes step by step: %s: %s", type(error).__name__, error)
        return None
    return lora_dropout_triton


def dropped(x: torch.Tensor, by: Drop) -> torch.Tensor:
    """`x` [..., features] multiplied, in its own type, for autograd."""
    if isinstance(by, ByMask):
        return by.of(x, x.dtype)
    found: torch.Tensor = _Dropped.apply(x, by)
    return found


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, by: Drop) -> torch.Tensor:
        ctx.by = by
        return by.of(x, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.by.of(gradient, gradient.dtype), None


class PlacedDropout(nn.Module):
    """Dropout of one adapted layer's input, by place."""

    def __init__(self, p: float, places: BatchPositions, site: int, features: int) -> None:
        super().__init__()
        self.p = p
        self.places = places
        self.register_buffer("keys", feature_keys(site, features), persistent=False)
        limit, factor = torch.tensor(threshold(p), dtype=torch.int32), 1.0 / torch.tensor(1.0 - p)
        self.register_buffer("limit", limit.view(1, 1, 1), persistent=False)
        # As bits, which no cast of the model to a lower type touches.
        self.register_buffer("factor", factor.view(1, 1, 1).view(torch.int32), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [rows, columns, features]; inputs of another shape are dropped by torch's draws."""
        if not self.training or not self.p:
            return x
        places = self.places.keys
        if places is None or x.shape[:-1] != places.shape[:-1]:
            return torch.nn.functional.dropout(x, self.p)
        keys, limit, factor = (buffer.to(x.device) for buffer in self.buffers())
        rows = (len(places), 1, 1)
        by = drop(places, keys, limit.expand(rows), factor.view(torch.float32).expand(rows))
        return dropped(x, by)

    def extra_repr(self) -> str:
        """As torch's dropout shows itself."""
        return f"p={self.p}"


def lora_layers(model: Any) -> Iterator[tuple[int, str, Any]]:
    """PEFT's adapted layers in order, each with its number and name."""
    from peft.tuners.lora import LoraLayer

    found = ((name, part) for name, part in model.named_modules() if isinstance(part, LoraLayer))
    for site, (name, layer) in enumerate(found):
        yield site, name, layer


def place_dropout(model: Any, places: BatchPositions) -> None:
    """Let a PEFT model drop by place."""
    for site, _, layer in lora_layers(model):
        for adapter, dropout in layer.lora_dropout.items():
            if isinstance(dropout, nn.Dropout):
                features = layer.in_features
                layer.lora_dropout[adapter] = PlacedDropout(dropout.p, places, site, features)
