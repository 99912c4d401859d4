"""Products with frozen weights, by the faster of the two libraries that torch has for them.

On a CPU torch takes MKL for float32, which keeps to narrow registers where the processor is not
Intel's. oneDNN, which torch brings along, knows them all, and is as exact. It builds code for every
shape, about a megabyte of it: good for shapes that come again and again, ruinous for others.
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

_steady: ContextVar[int] = ContextVar("steady", default=0)
"""Positions of the pass at hand, if passes over so many come again."""


@contextmanager
def steady(positions: int) -> Iterator[None]:
    """A pass over so many positions, forward and backward, is of shapes that come again."""
    token = _steady.set(positions)
    try:
        yield
    finally:
        _steady.reset(token)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`x W' + bias`, [..., out], of `x` [..., in]; not for autograd."""
    if _by_onednn(x, weight):
        return _onednn(x, weight, bias)
    return F.linear(x, weight, bias)


def back(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`x`'s gradient, [..., in], of the product's, [..., out]; not for autograd."""
    if _by_onednn(gradient, weight):
        return _onednn(gradient, weight.t(), None)
    return gradient @ weight


def _by_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and _steady.get() > 0
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and available()
    )


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


@cache
def available() -> bool:
    """Whether torch has oneDNN's product here: it is the one that torch's own compiler calls."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    try:
        one = torch.ones(2, 2)
        return torch.equal(_onednn(one, one, None), one @ one)
    except Exception:
        return False


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return back(gradient, *ctx.saved_tensors), None, None


class FrozenLinear(nn.Linear):
    """A linear layer that is not trained, of a model whose other layers have adapters."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`; there is no gradient for the weight."""
        if torch.is_autocast_enabled(input.device.type) or not _by_onednn(input, self.weight):
            return super().forward(input)
        # An expert gets another number of positions in every pass.
        if input.shape[:-1].numel() != _steady.get():
            return super().forward(input)
        found: torch.Tensor = _Product.apply(input, self.weight, self.bias)
        return found


def is_plain(layer: Any) -> TypeGuard[nn.Linear]:
    """Whether a layer is a product with a weight and nothing more."""
    return type(layer) in (nn.Linear, FrozenLinear)


def freeze(model: Any) -> None:
    """Let the plain linear layers of a frozen model multiply by the faster library."""
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = FrozenLinear


def thaw(model: Any) -> None:
    """Make them plain again."""
    for layer in model.modules():
        if type(layer) is FrozenLinear:
            layer.__class__ = nn.Linear  # type: ignore[assignment]
