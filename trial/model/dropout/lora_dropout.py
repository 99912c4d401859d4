"""LoRA dropout whose mask is a hash of (seed, step, row, column, layer, feature).

The draws of torch's own dropout depend on all earlier draws, so they differ between devices, after
a resume, and as soon as two trials share a process. Here every element has a hash of its own: the
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

from trial.model.dropout.dropout_hash import (
    UINT32_RANGE,
    XXH_PRIME32_1,
    XXH_PRIME32_4,
    XXH_PRIME32_5,
    mix_bits,
    threshold,
)

logger = logging.getLogger(__name__)


class BatchPositions:
    """Hash keys of the rows and columns of the current training batch, shared by all layers."""

    def __init__(self) -> None:
        self.keys: torch.Tensor | None = None
        """int32 [rows, columns, 1]; None before the first batch."""

    def set(
        self, row_keys: Sequence[int] | torch.Tensor, columns: int, device: torch.device
    ) -> None:
        """Set the keys of the next batch: `row_keys` int32 [rows], from `dropout_hash.row_key`."""
        rows = torch.as_tensor(row_keys, dtype=torch.int32).to(device).view(-1, 1, 1)
        numbers = torch.arange(columns, dtype=torch.int32, device=device).view(1, -1, 1)
        self.keys = mix_bits(rows + numbers * XXH_PRIME32_1)


def feature_keys(layer: int, features: int) -> torch.Tensor:
    """Hash key per input feature of the adapted layer with index `layer`, int32 [features]."""
    numbers = torch.arange(features, dtype=torch.int64) + (layer << 20)
    multiplier = XXH_PRIME32_1 % UINT32_RANGE
    return mix_bits((numbers * multiplier % UINT32_RANGE - UINT32_RANGE // 2).to(torch.int32))


def keep_mask(
    positions: torch.Tensor, features: torch.Tensor, limits: int | torch.Tensor
) -> torch.Tensor:
    """Bool [rows, columns, features]: whether an element is kept.

    Args:
        positions: `BatchPositions.keys`, int32 [rows, columns, 1].
        features: `feature_keys` of the layer, int32 [features].
        limits: one `threshold` for all rows, or one for each, int32 [rows, 1, 1].
    """
    hashes = positions ^ features
    hashes = hashes.mul_(XXH_PRIME32_4)
    hashes = hashes.bitwise_xor_(hashes >> 15)
    return hashes.mul_(XXH_PRIME32_5) >= limits


class DropoutMask(Protocol):
    """The dropout of one layer's input in one batch: 0 for dropped elements, 1/(1-p) for others."""

    def apply(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`x` [..., features] times the mask, computed in float32 or finer, cast to `dtype`."""
        ...

    def add_to(self, total: torch.Tensor, x: torch.Tensor) -> None:
        """Add `x` times the mask to `total` in place; both [..., features]."""
        ...


@dataclass(frozen=True, slots=True)
class TensorMask:
    """A mask that is held in memory."""

    factors: torch.Tensor
    """float32 [rows, columns, features]."""

    def apply(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """See `DropoutMask.apply`."""
        return (x * self.factors.view_as(x)).to(dtype)

    def add_to(self, total: torch.Tensor, x: torch.Tensor) -> None:
        """See `DropoutMask.add_to`."""
        factors = self.factors.view_as(x)
        if total.dtype == factors.dtype:
            total.addcmul_(x, factors)
        else:
            total.add_(x * factors)


@dataclass(frozen=True, slots=True)
class TritonMask:
    """A mask that a Triton kernel computes wherever it is used; it takes no device memory."""

    kernel: ModuleType
    arguments: tuple[torch.Tensor, ...]
    """Arguments of `dropout_mask`."""

    def apply(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """See `DropoutMask.apply`."""
        product: torch.Tensor = self.kernel.multiply(x, *self.arguments, dtype)
        return product

    def add_to(self, total: torch.Tensor, x: torch.Tensor) -> None:
        """See `DropoutMask.add_to`."""
        self.kernel.multiply(x, *self.arguments, total.dtype, total)


def dropout_mask(
    positions: torch.Tensor, features: torch.Tensor, limits: torch.Tensor, factors: torch.Tensor
) -> DropoutMask:
    """The mask of one layer's input: a Triton kernel on CUDA, else a tensor.

    Args:
        positions: `BatchPositions.keys`, int32 [rows, columns, 1].
        features: `feature_keys` of the layer, int32 [features].
        limits: the `threshold` of each row, int32 [rows, 1, 1].
        factors: what the kept elements of each row are multiplied with, float32 [rows, 1, 1].
    """
    # torch.compile fuses the tensor operations into a kernel of its own.
    if not torch.compiler.is_compiling() and (kernel := triton_kernel(positions.device)):
        return TritonMask(kernel, (positions, features, limits, factors))
    return TensorMask(keep_mask(positions, features, limits) * factors)


@cache
def triton_kernel(device: torch.device) -> ModuleType | None:
    """`trial.model.dropout.lora_dropout_triton`; None where it cannot be built and run."""
    if device.type != "cuda":
        return None
    try:
        from trial.model.dropout import lora_dropout_triton

        one = torch.ones(1, 1, 1, device=device)
        key = one.int()
        lora_dropout_triton.multiply(one, key, key.flatten(), key, one, one.dtype)
    except torch.OutOfMemoryError:
        raise  # It says nothing about the kernel.
    except Exception as error:
        logger.warning("LoRA dropout goes step by step: %s: %s", type(error).__name__, error)
        return None
    return lora_dropout_triton


def apply_dropout(x: torch.Tensor, mask: DropoutMask) -> torch.Tensor:
    """`x` [..., features] times the mask, in the type of `x`; autograd follows."""
    if isinstance(mask, TensorMask):
        return mask.apply(x, x.dtype)
    product: torch.Tensor = _MaskProduct.apply(x, mask)
    return product


class _MaskProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mask: DropoutMask) -> torch.Tensor:
        ctx.mask = mask
        return mask.apply(x, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.mask.apply(gradient, gradient.dtype), None


class HashDropout(nn.Module):
    """Dropout of one adapted layer's input, its mask hashed from the batch's positions."""

    def __init__(self, p: float, positions: BatchPositions, layer: int, features: int) -> None:
        super().__init__()
        self.p = p
        self.positions = positions
        self.register_buffer("keys", feature_keys(layer, features), persistent=False)
        limit, factor = torch.tensor(threshold(p), dtype=torch.int32), 1.0 / torch.tensor(1.0 - p)
        self.register_buffer("limit", limit.view(1, 1, 1), persistent=False)
        # The bits of a float32, as int32: casting the model to a lower type leaves them alone.
        self.register_buffer("factor", factor.view(1, 1, 1).view(torch.int32), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop elements of `x` [rows, columns, features], or [rows * columns, features] as in OPT.

        An input of other positions gets torch's dropout.
        """
        if not self.training or not self.p:
            return x
        positions = self.positions.keys
        if positions is None or x.shape[:-1].numel() != positions.numel():
            return torch.nn.functional.dropout(x, self.p)
        keys, limit, factor = (buffer.to(x.device) for buffer in self.buffers())
        rows = (len(positions), 1, 1)
        limits, factors = limit.expand(rows), factor.view(torch.float32).expand(rows)
        mask = dropout_mask(positions, keys, limits, factors)
        return apply_dropout(x.reshape(*positions.shape[:2], -1), mask).view_as(x)

    def extra_repr(self) -> str:
        """The text in parentheses of the module's repr, like that of torch's dropout."""
        return f"p={self.p}"


def lora_layers(model: Any) -> Iterator[tuple[int, str, Any]]:
    """PEFT's adapted layers in the order of the model: number, name and layer of each."""
    from peft.tuners.lora import LoraLayer

    layers = ((name, part) for name, part in model.named_modules() if isinstance(part, LoraLayer))
    for number, (name, layer) in enumerate(layers):
        yield number, name, layer


def install_hash_dropout(model: Any, positions: BatchPositions) -> None:
    """Replace every `nn.Dropout` of a PEFT model's adapters by `HashDropout`."""
    for number, _, layer in lora_layers(model):
        for adapter, dropout in layer.lora_dropout.items():
            if isinstance(dropout, nn.Dropout):
                replacement = HashDropout(dropout.p, positions, number, layer.in_features)
                layer.lora_dropout[adapter] = replacement
