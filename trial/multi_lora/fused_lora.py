"""A frozen linear layer and the LoRA adapters of several slots as one autograd function.

With separate operations autograd would copy the layer's output to add the adapters' output to it,
and likewise the gradient of its input; here both are added in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from trial.model.dropout.lora_dropout import DropoutMask
from trial.multi_lora import onednn_linear

OptionalTensor = torch.Tensor | None


@dataclass(frozen=True, slots=True)
class GradBuffers:
    """Buffers that the gradients of a layer's A and B are added to; None: to autograd's own."""

    a: OptionalTensor = None
    """[K, R, in]."""
    b: OptionalTensor = None
    """[K, out, R]."""
    anchor: OptionalTensor = None
    """A scalar that requires a gradient, so that autograd calls the backward function even where
    A and B are no tensors of its graph and the input needs no gradient."""

    def select(self, slots: slice) -> GradBuffers:
        """The buffers of some slots."""
        a, b = (None if buffer is None else buffer[slots] for buffer in (self.a, self.b))
        return GradBuffers(a, b, self.anchor)


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: OptionalTensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: torch.Tensor,
    dropout: DropoutMask | None = None,
    cast: torch.dtype | None = None,
    grads: GradBuffers | None = None,
) -> torch.Tensor:
    """`x W' + bias + scale dropout(x) A' B'` of each slot, [K, rows, out]; ' transposes.

    Not twice differentiable.

    Args:
        x: [K, rows, in].
        weight: [out, in], frozen.
        bias: [out], frozen.
        a: [K, R, in].
        b: [K, out, R].
        scale: [K, 1, 1].
        dropout: Applied to `x` for the adapters alone.
        cast: The type that products are computed in, as under autocast; without it all tensors
            have one type.
        grads: The gradients of `a` and `b` are added to these, and autograd sees none.
    """
    dtype, buffers = cast or weight.dtype, grads or GradBuffers()
    output: torch.Tensor = _LoraLinear.apply(
        x, weight, bias, a, b, scale, dropout, dtype, buffers, buffers.anchor
    )
    return output


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: OptionalTensor, a: torch.Tensor,
        b: torch.Tensor, scale: torch.Tensor, dropout: DropoutMask | None, dtype: torch.dtype,
        grads: GradBuffers, anchor: OptionalTensor,
    ) -> torch.Tensor:  # fmt: skip
        ctx.types, ctx.dropout, ctx.grads = (x.dtype, a.dtype), dropout, grads
        whole, weight, a, b = (tensor.to(dtype) for tensor in (x, weight, a, b))
        bias = None if bias is None else bias.to(dtype)
        dropped = whole if dropout is None else dropout.apply(x, dtype)
        inner = torch.bmm(dropped, a.transpose(1, 2)).mul_(scale)
        ctx.save_for_backward(dropped, weight, a, b, scale, inner)
        return onednn_linear.linear(whole, weight, bias).baddbmm_(inner, b.transpose(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[OptionalTensor, ...]:
        dropped, weight, a, b, scale, inner = ctx.saved_tensors
        x_dtype, adapter_dtype = ctx.types
        inner_grad = torch.bmm(gradient, b).mul_(scale)
        x_grad = None
        if ctx.needs_input_grad[0]:
            # Add in the input's own type, as autograd does: the adapters' part may be small.
            x_grad = onednn_linear.input_gradient(gradient, weight).to(x_dtype)
            if ctx.dropout is not None:
                ctx.dropout.add_to(x_grad, torch.bmm(inner_grad, a))
            elif x_grad.dtype == inner_grad.dtype and not _rounds_before_adding(x_grad):
                x_grad.baddbmm_(inner_grad, a)
            else:
                x_grad.add_(torch.bmm(inner_grad, a))
        a_grad = _product(inner_grad, dropped, ctx.grads.a, adapter_dtype)
        b_grad = _product(gradient, inner, ctx.grads.b, adapter_dtype)
        return x_grad, None, None, a_grad, b_grad, None, None, None, None, None


def _rounds_before_adding(x: torch.Tensor) -> bool:
    """Whether a product is to be rounded before it is added: 16-bit types on a CPU.

    The branch with dropout does so, and a trial's results must not depend on whether another slot
    has dropout.
    """
    return x.device.type == "cpu" and x.dtype.itemsize < 4


def _product(
    left: torch.Tensor, right: torch.Tensor, buffer: OptionalTensor, dtype: torch.dtype
) -> OptionalTensor:
    """`left' right` of each slot as `dtype`; with a buffer, adds it to that and returns None."""
    if buffer is None:
        return torch.bmm(left.transpose(1, 2), right).to(dtype)
    if buffer.device.type == "cpu":
        # On a CPU, baddbmm_ computes the matrices one after the other.
        buffer.add_(torch.bmm(left.transpose(1, 2), right))
    else:
        buffer.baddbmm_(left.transpose(1, 2), right)
    return None
