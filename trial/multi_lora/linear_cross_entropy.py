"""The output layer and the cross-entropy together, a chunk of positions at a time.

The logits of a batch, positions times vocabulary, are with their gradient the largest tensors of a
pass. Here they exist one chunk at a time, forward and backward at once, and positions without a
label have none.

`torch.nn.functional.linear_cross_entropy` of torch 2.13 is no replacement. Its chunks take 3 to 22
times as long on a CPU (8 slots, vocabularies of 2048 and 32,000, one thread), positions without a
label included, and it has no weight for each slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from trial.data.tokens import IGNORE_INDEX
from trial.multi_lora import onednn_linear
from trial.multi_lora.adapter_init import InitialAdapter
from trial.multi_lora.slot_linear import parent_of


@dataclass(frozen=True, slots=True)
class ChunkSizes:
    """How many positions go through the output layer at a time."""

    positions: int = 256
    """Positions of a chunk on a CPU, at least so many elsewhere. On a CPU, the logits of a small
    vocabulary stay in the caches, and those of a large one take little memory."""
    multiple: int = 16
    """A CPU's chunks are of a multiple of so many positions: few shapes, for oneDNN."""
    logits: int = 1 << 26
    """Logits of a chunk elsewhere: 256 MiB in float32, enough work to fill the device."""


class LinearCrossEntropy:
    """Cross-entropy from a base model's hidden states and its output layer.

    With `skip_unlabelled`, positions without a label are not computed; their number must be read
    from the device for that. Without it they are computed like the others and dropped.
    """

    def __init__(
        self,
        layer: nn.Linear,
        cast: torch.dtype | None,
        *,
        skip_unlabelled: bool,
        sizes: ChunkSizes | None = None,
    ) -> None:
        """`cast` is the type in which autocast would compute the layer."""
        self.layer = layer
        self.cast = cast
        self.skip_unlabelled = skip_unlabelled
        self.sizes = sizes or ChunkSizes()

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Summed cross-entropy in nats over each slot's labelled tokens, times its weight.

        A slot's result does not depend on how many labels the others have. Not twice
        differentiable.

        Args:
            hidden: [K, positions, in].
            targets: [K, positions], `IGNORE_INDEX` where there is no label.
            weights: float32 [K].

        Returns:
            float32 [K].
        """
        layer, dtype = self.layer, self.cast or self.layer.weight.dtype
        bias = None if layer.bias is None else layer.bias.to(dtype)
        if self.skip_unlabelled:
            chunks: Sequence[torch.Tensor | slice] = _labelled_chunks(targets, self.sizes)
        else:
            chunks = _all_chunks(targets, layer.out_features, self.sizes)
        weight = layer.weight.to(dtype)
        nats: torch.Tensor = _LinearCrossEntropy.apply(
            hidden, weight, bias, targets, weights, chunks
        )
        return nats


def _labelled_chunks(targets: torch.Tensor, sizes: ChunkSizes) -> list[torch.Tensor]:
    """Flat indices of labelled positions, each chunk of one slot.

    A slot's last index is repeated to fill up the multiple.
    """
    chunks, length = [], targets.shape[1]
    for slot, labels in enumerate(targets):
        index = (labels != IGNORE_INDEX).nonzero().squeeze(1)
        index = torch.cat([index, index[-1:].expand(-len(index) % sizes.multiple)])
        chunks += [part + slot * length for part in index.split(sizes.positions) if len(part)]
    return chunks


def _all_chunks(targets: torch.Tensor, vocabulary: int, sizes: ChunkSizes) -> list[slice]:
    count, size = targets.numel(), max(sizes.positions, sizes.logits // vocabulary)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
        targets: torch.Tensor, weights: torch.Tensor, chunks: Sequence[torch.Tensor | slice],
    ) -> torch.Tensor:  # fmt: skip
        rows, flat_targets = hidden.flatten(0, 1), targets.flatten()
        row_weights = weights.unsqueeze(1).expand(targets.shape).flatten()
        gradient = torch.zeros_like(rows) if ctx.needs_input_grad[0] else None
        nats = rows.new_zeros(len(rows), dtype=torch.float32)
        for chunk in chunks:
            labels = flat_targets[chunk].unsqueeze(1)
            ignored, labels = labels == IGNORE_INDEX, labels.clamp(min=0)
            logits = onednn_linear.linear(rows[chunk].to(weight.dtype), weight, bias).float()
            logits.sub_(logits.amax(dim=1, keepdim=True))
            label_logits = logits.gather(1, labels)
            total = logits.exp_().sum(dim=1, keepdim=True)
            nats[chunk] = (total.log() - label_logits).masked_fill_(ignored, 0.0).squeeze(1)
            if gradient is not None:
                # Weighted before it is rounded to the layer's type, as a trainer's own loss is.
                chunk_weights = row_weights[chunk].unsqueeze(1)
                logits_grad = logits.mul_(chunk_weights / total)
                logits_grad = logits_grad.scatter_add_(1, labels, -chunk_weights)
                rows_grad = onednn_linear.input_gradient(logits_grad.to(weight.dtype), weight)
                gradient[chunk] = rows_grad.masked_fill_(ignored, 0.0).to(rows.dtype)
        if gradient is not None:
            ctx.save_for_backward(gradient.view_as(hidden))
        return nats.view(targets.shape).sum(dim=1) * weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (hidden_grad,) = ctx.saved_tensors
        scaled = (hidden_grad * gradient.view(-1, 1, 1)).to(hidden_grad.dtype)
        return scaled, None, None, None, None, None


class _NoLayer(nn.Identity):
    """Stands where an output layer was taken off; some models look at that layer's weight."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        # In a tuple, so that it is no part of the model twice.
        self._layer = (layer,)

    @property
    def weight(self) -> torch.Tensor:
        """Of the layer."""
        return self._layer[0].weight

    @property
    def bias(self) -> torch.Tensor | None:
        """Of the layer."""
        return self._layer[0].bias


@contextmanager
def extract_output_layer(
    base: Any,
    initial: InitialAdapter,
    cast: torch.dtype | None,
    inputs: dict[str, Any],
    *,
    skip_unlabelled: bool,
    sizes: ChunkSizes | None = None,
) -> Iterator[LinearCrossEntropy | None]:
    """Let a base model return its hidden states as logits; yields the loss that finishes them.

    Yields None, and leaves the model as it is, where its logits are more than one plain layer of
    the hidden states (some models scale or cap them), or where an adapter sits on that layer. A
    pass over four tokens shows which it is; `inputs` are what the model gets besides the batch.
    """
    layer = base.get_output_embeddings()
    path = next((name for name, module in base.named_modules() if module is layer), None)
    adapted = {one.name for one in initial.layers}
    if type(layer) is not nn.Linear or path is None or path in adapted:
        yield None
        return
    parent, name = parent_of(base, path)
    ids = torch.arange(4, device=layer.weight.device).unsqueeze(0)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **inputs}
    base.eval()
    try:
        with torch.no_grad():
            expected = base(**inputs).logits
            setattr(parent, name, _NoLayer(layer))
            hidden = base(**inputs).logits
            plain = hidden.dtype == layer.weight.dtype and torch.equal(layer(hidden), expected)
        if not plain:
            setattr(parent, name, layer)
            yield None
        else:
            yield LinearCrossEntropy(layer, cast, skip_unlabelled=skip_unlabelled, sizes=sizes)
    finally:
        setattr(parent, name, layer)
