"""The output layer and the loss together, some positions at a time.

A batch's logits, as many numbers as it has positions times the vocabulary, several times over, are
the largest thing that a packed pass makes. Here they come and go piece by piece, with their
gradient, and positions without a label have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from trial.data.tokens import IGNORE_INDEX
from trial.multi_lora import onednn_linear
from trial.multi_lora.adapter_bank import parent_of
from trial.multi_lora.adapter_init import InitialAdapter

PIECE = 256
"""Positions at a time on a CPU: their logits stay in its caches where the vocabulary is small, and
are no burden where it is large."""
EVEN = 16
"""Pieces are of so many positions, or a multiple: few shapes, for which products are built."""
LOGITS = 1 << 26
"""Logits at a time elsewhere: a quarter of a gigabyte, and enough to fill the device."""


class LinearCrossEntropy:
    """A base model's output layer, while the model itself ends with its hidden states.

    Where nothing may wait for the device (`counted` is false) positions without a label are
    computed like the others, and dropped.
    """

    def __init__(self, layer: nn.Linear, cast: torch.dtype | None, *, counted: bool) -> None:
        self.layer = layer
        self.cast = cast
        """What autocast would compute the layer in."""
        self.counted = counted

    def nats(
        self, hidden: torch.Tensor, targets: torch.Tensor, shares: torch.Tensor
    ) -> torch.Tensor:
        """Nats over the labelled tokens of each slot times its share, float32 [K].

        `hidden` is [K, positions, in], `targets` [K, positions], `shares` [K], float32. How many
        tokens a slot's neighbours have to predict does not change its numbers. It has no second
        derivative.
        """
        layer, cast = self.layer, self.cast or self.layer.weight.dtype
        bias = None if layer.bias is None else layer.bias.to(cast)
        pieces = _labelled(targets) if self.counted else _all(targets, layer.out_features)
        weight = layer.weight.to(cast)
        found: torch.Tensor = _Nats.apply(hidden, weight, bias, targets, shares, pieces)
        return found


def _labelled(targets: torch.Tensor) -> list[torch.Tensor]:
    """Flat positions, PIECE of one slot at a time; the last is there more than once, to be even."""
    found, length = [], targets.shape[1]
    for slot, aims in enumerate(targets):
        places = (aims != IGNORE_INDEX).nonzero().squeeze(1)
        places = torch.cat([places, places[-1:].expand(-len(places) % EVEN)])
        found += [piece + slot * length for piece in places.split(PIECE) if len(piece)]
    return found


def _all(targets: torch.Tensor, vocabulary: int) -> list[slice]:
    count, size = targets.numel(), max(PIECE, LOGITS // vocabulary)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class _Nats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
        targets: torch.Tensor, shares: torch.Tensor, pieces: Sequence[torch.Tensor | slice],
    ) -> torch.Tensor:  # fmt: skip
        rows, aims = hidden.flatten(0, 1), targets.flatten()
        weights = shares.unsqueeze(1).expand(targets.shape).flatten()
        gradient = torch.zeros_like(rows) if ctx.needs_input_grad[0] else None
        nats = rows.new_zeros(len(rows), dtype=torch.float32)
        for piece in pieces:
            wanted = aims[piece].unsqueeze(1)
            ignored, wanted = wanted == IGNORE_INDEX, wanted.clamp(min=0)
            logits = onednn_linear.linear(rows[piece].to(weight.dtype), weight, bias).float()
            logits.sub_(logits.amax(dim=1, keepdim=True))
            chosen = logits.gather(1, wanted)
            total = logits.exp_().sum(dim=1, keepdim=True)
            nats[piece] = (total.log() - chosen).masked_fill_(ignored, 0.0).squeeze(1)
            if gradient is not None:
                # Before it is rounded, as for a trial alone.
                share = weights[piece].unsqueeze(1)
                of_logits = logits.mul_(share / total).scatter_add_(1, wanted, -share)
                of_rows = onednn_linear.back(of_logits.to(weight.dtype), weight)
                gradient[piece] = of_rows.masked_fill_(ignored, 0.0).to(rows.dtype)
        if gradient is not None:
            ctx.save_for_backward(gradient.view_as(hidden))
        return nats.view(targets.shape).sum(dim=1) * shares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (of_hidden,) = ctx.saved_tensors
        found = (of_hidden * gradient.view(-1, 1, 1)).to(of_hidden.dtype)
        return found, None, None, None, None, None


@contextmanager
def taken(
    base: Any,
    drawn: InitialAdapter,
    cast: torch.dtype | None,
    extra: dict[str, Any],
    *,
    counted: bool,
) -> Iterator[LinearCrossEntropy | None]:
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
        yield LinearCrossEntropy(layer, cast, counted=counted) if plain else None
    finally:
        setattr(parent, name, layer)
