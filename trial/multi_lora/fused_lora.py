"""A frozen linear layer and one adapter for each slot, as one product.

Step by step, autograd would copy the layer's output to add the adapters' to it, and its input's
gradient likewise; both are added where they lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from trial.model.lora_dropout import DropoutMask
from trial.multi_lora import onednn_linear

Maybe = torch.Tensor | None


def adapted(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Maybe,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: torch.Tensor,
    drop: DropoutMask | None = None,
    cast: torch.dtype | None = None,
    slopes: GradBuffers | None = None,
) -> torch.Tensor:
    """`x W' + bias + scale (dropped x) A' B'` of each slot, [K, rows, out].

    `x` is [K, rows, in], `weight` [out, in] and `bias` [out], both frozen; `a` [K, R, in], `b`
    [K, out, R], `scale` [K, 1, 1]. All are of one type, or the products are computed in `cast`, as
    autocast would. With `slopes`, the gradients of `a` and `b` are added to these and autograd does
    not see them. It has no second derivative.
    """
    dtype, into = cast or weight.dtype, slopes or GradBuffers()
    found: torch.Tensor = _Adapted.apply(
        x, weight, bias, a, b, scale, drop, dtype, into, into.anchor
    )
    return found


@dataclass(frozen=True, slots=True)
class GradBuffers:
    """Where the gradients of a layer's A and B are added."""

    a: Maybe = None
    b: Maybe = None
    anchor: Maybe = None
    """Anything with a gradient: what comes of the layer has one too, then."""

    def part(self, span: slice) -> GradBuffers:
        """Those of some slots."""
        a, b = (None if all_slots is None else all_slots[span] for all_slots in (self.a, self.b))
        return GradBuffers(a, b, self.anchor)


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: Maybe, a: torch.Tensor,
        b: torch.Tensor, scale: torch.Tensor, drop: DropoutMask | None, dtype: torch.dtype,
        slopes: GradBuffers, anchor: Maybe,
    ) -> torch.Tensor:  # fmt: skip
        ctx.types, ctx.drop, ctx.slopes = (x.dtype, a.dtype), drop, slopes
        whole, weight, a, b = (tensor.to(dtype) for tensor in (x, weight, a, b))
        bias = None if bias is None else bias.to(dtype)
        dropped = whole if drop is None else drop.apply(x, dtype)
        inner = torch.bmm(dropped, a.transpose(1, 2)).mul_(scale)
        ctx.save_for_backward(dropped, weight, a, b, scale, inner)
        return onednn_linear.linear(whole, weight, bias).baddbmm_(inner, b.transpose(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Maybe, ...]:
        dropped, weight, a, b, scale, inner = ctx.saved_tensors
        of_input, of_adapter = ctx.types
        back = torch.bmm(gradient, b).mul_(scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            # In the input's own type, as autograd adds: the adapters' share may be small beside it.
            of_x = onednn_linear.back(gradient, weight).to(of_input)
            if ctx.drop is not None:
                ctx.drop.add_to(of_x, torch.bmm(back, a))
            elif of_x.dtype == back.dtype and not _rounds_apart(of_x):
                of_x.baddbmm_(back, a)
            else:
                of_x.add_(torch.bmm(back, a))
        of_a = _product(back, dropped, ctx.slopes.a, of_adapter)
        of_b = _product(gradient, inner, ctx.slopes.b, of_adapter)
        return of_x, None, None, of_a, of_b, None, None, None, None, None


def _rounds_apart(x: torch.Tensor) -> bool:
    """On a CPU a low type is rounded before it is added: so it is beside a trial that drops."""
    return x.device.type == "cpu" and x.dtype.itemsize < 4


def _product(left: torch.Tensor, right: torch.Tensor, into: Maybe, dtype: torch.dtype) -> Maybe:
    """`left' right` of each slot as `dtype`, or added to what is there already."""
    if into is None:
        return torch.bmm(left.transpose(1, 2), right).to(dtype)
    if into.device.type == "cpu":
        # There it would go matrix by matrix.
        into.add_(torch.bmm(left.transpose(1, 2), right))
    else:
        into.baddbmm_(left.transpose(1, 2), right)
    return None
