"""The output layer and the loss together, some positions at a time.

A batch's logits, as many numbers as it has positions times the vocabulary, several times over, are
the largest thing that a packed pass makes. Here they come and go piece by piece, with their
gradient, and positions without a label have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812 (as torch names it)

from trial.batches import IGNORED
from trial.packed.bank import parent_of
from trial.packed.skeleton import Drawn

PIECE = 256
"""Positions: their logits stay in a CPU's caches where the vocabulary is small, and are no burden
where it is large."""


class Head:
    """A base model's output layer, while the model itself ends with its hidden states."""

    def __init__(self, layer: nn.Linear, cast: torch.dtype | None) -> None:
        self.layer = layer
        self.cast = cast
        """What autocast would compute the layer in."""

    def nats(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Nats over the labelled tokens of each slot, float32 [K]; no second derivative.

        `hidden` is [K, positions, in], `targets` [K, positions]. Each slot is computed by itself:
        how many tokens its neighbours have to predict does not change its numbers.
        """
        layer, cast = self.layer, self.cast or self.layer.weight.dtype
        bias = None if layer.bias is None else layer.bias.to(cast)
        found: torch.Tensor = _Nats.apply(hidden, layer.weight.to(cast), bias, targets)
        return found


class _Nats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
        targets: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        gradient = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        sums = []
        for slot, aims in enumerate(targets):
            places = (aims != IGNORED).nonzero().squeeze(1)
            parts = [hidden.new_zeros(0, dtype=torch.float32)]
            for piece in places.split(PIECE):
                inputs, wanted = hidden[slot, piece].to(weight.dtype), aims[piece].unsqueeze(1)
                logarithms = F.linear(inputs, weight, bias).float().log_softmax(dim=1)
                parts.append(-logarithms.gather(1, wanted).squeeze(1))
                if gradient is not None:
                    of_logits = logarithms.exp_()
                    of_logits.scatter_add_(1, wanted, of_logits.new_full(wanted.shape, -1.0))
                    gradient[slot, piece] = (of_logits.to(weight.dtype) @ weight).to(hidden.dtype)
            sums.append(torch.cat(parts).sum())
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return torch.stack(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (of_hidden,) = ctx.saved_tensors
        return of_hidden * gradient.view(-1, 1, 1).to(of_hidden.dtype), None, None, None


@contextmanager
def taken(
    base: Any, drawn: Drawn, cast: torch.dtype | None, extra: dict[str, Any]
) -> Iterator[Head | None]:
    """Take a base model's output layer out of it, where its logits are that layer's and no more.

    Some models scale or bend their logits, and an adapter may sit on the layer itself: they keep
    it, and None comes back. A few tokens show which it is.
    """
    layer = base.get_output_embeddings()
    path = next((name for name, module in base.named_modules() if module is layer), None)
    if type(layer) is not nn.Linear or path is None or path in {one.name for one in drawn.layers}:
        yield None
        return
    parent, name = parent_of(base, path)
    ids = torch.arange(4, device=layer.weight.device).unsqueeze(0)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **extra}
    base.eval()
    try:
        with torch.no_grad():
            expected = base(**inputs).logits
            setattr(parent, name, nn.Identity())
            hidden = base(**inputs).logits
            plain = hidden.dtype == layer.weight.dtype and torch.equal(layer(hidden), expected)
        if not plain:
            setattr(parent, name, layer)
        yield Head(layer, cast) if plain else None
    finally:
        setattr(parent, name, layer)
