"""A frozen linear layer and one adapter for each slot, as one product.

Step by step, autograd would copy the layer's output to add the adapters' to it, and its input's
gradient likewise; both are added where they lie.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812 (as torch names it)

Maybe = torch.Tensor | None


def adapted(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Maybe,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: torch.Tensor,
    keep: Maybe,
) -> torch.Tensor:
    """`x W' + bias + scale (keep x) A' B'` of each slot, [K, rows, out], all of one type.

    `x` is [K, rows, in], `weight` [out, in] and `bias` [out], both frozen; `a` [K, R, in], `b`
    [K, out, R], `scale` [K, 1, 1]. `keep` [K, rows, in] is what dropout multiplies with. It has no
    second derivative.
    """
    found: torch.Tensor = _Adapted.apply(x, weight, bias, a, b, scale, keep)
    return found


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: Maybe, a: torch.Tensor,
        b: torch.Tensor, scale: torch.Tensor, keep: Maybe,
    ) -> torch.Tensor:  # fmt: skip
        dropped = x if keep is None else x * keep
        inner = torch.bmm(dropped, a.transpose(1, 2)).mul_(scale)
        ctx.save_for_backward(dropped, keep, weight, a, b, scale, inner)
        return F.linear(x, weight, bias).baddbmm_(inner, b.transpose(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Maybe, ...]:
        dropped, keep, weight, a, b, scale, inner = ctx.saved_tensors
        back = torch.bmm(gradient, b).mul_(scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ weight
            if keep is None:
                of_x.baddbmm_(back, a)
            else:
                of_x.addcmul_(torch.bmm(back, a), keep)
        of_a = torch.bmm(back.transpose(1, 2), dropped)
        of_b = torch.bmm(gradient.transpose(1, 2), inner)
        return of_x, None, None, of_a, of_b, None, None
