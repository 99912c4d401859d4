"""Products with frozen weights, by MKL or by oneDNN, whichever is faster.

On a CPU torch computes float32 products by MKL, which uses narrow vector registers on processors
that are not Intel's. oneDNN, which is part of torch, uses all of them and is as exact. It generates
code for each shape, about a megabyte of it: that pays for shapes that recur, and only for those.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812 (as torch names it)

from trial.devices import compat_torch

_recurring_positions: ContextVar[int] = ContextVar("recurring_positions", default=0)
"""Positions (rows times columns) of the current batch if its shape recurs, else 0."""


@contextmanager
def recurring_shape(positions: int) -> Iterator[None]:
    """Declare that batches of so many positions recur; 0 declares nothing.

    Inside, forward and backward, products on a CPU are computed by oneDNN.
    """
    token = _recurring_positions.set(positions)
    try:
        yield
    finally:
        _recurring_positions.reset(token)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`x W' + bias`, [..., out], of `x` [..., in]; without autograd."""
    if _uses_onednn(x, weight):
        return compat_torch.mkldnn_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def input_gradient(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Gradient of `linear`'s input, [..., in], from its output's, [..., out]; without autograd."""
    if _uses_onednn(gradient, weight):
        return compat_torch.mkldnn_linear(gradient, weight.t(), None)
    return gradient @ weight


def _uses_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and _recurring_positions.get() > 0
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and available()
    )


@cache
def available() -> bool:
    """Whether oneDNN's product exists here and gives the right result."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    try:
        ones = torch.ones(2, 2)
        return torch.equal(compat_torch.mkldnn_linear(ones, ones, None), ones @ ones)
    except Exception:
        return False


class _FrozenLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return input_gradient(gradient, *ctx.saved_tensors), None, None


class FrozenLinear(nn.Linear):
    """An `nn.Linear` whose weight is not trained, computed by oneDNN where that is faster."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`; the weight gets no gradient."""
        if torch.is_autocast_enabled(input.device.type) or not _uses_onednn(input, self.weight):
            return super().forward(input)
        # An expert of a mixture-of-experts model gets other numbers of positions in each batch.
        if input.shape[:-1].numel() != _recurring_positions.get():
            return super().forward(input)
        output: torch.Tensor = _FrozenLinearFunction.apply(input, self.weight, self.bias)
        return output


def is_plain_linear(layer: Any) -> TypeGuard[nn.Linear]:
    """Whether a layer is `nn.Linear` or `FrozenLinear` itself, no other subclass."""
    return type(layer) in (nn.Linear, FrozenLinear)


def freeze_linears(model: Any) -> None:
    """Turn a frozen model's `nn.Linear` layers into `FrozenLinear`, in place."""
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = FrozenLinear


def restore_linears(model: Any) -> None:
    """Undo `freeze_linears`."""
    for layer in model.modules():
        if type(layer) is FrozenLinear:
            layer.__class__ = nn.Linear  # type: ignore[assignment]
