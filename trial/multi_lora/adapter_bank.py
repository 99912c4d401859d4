"""The LoRA adapters of all slots: their values, gradients, scales and dropout.

Every adapted layer has `A [K, R, in]` and `B [K, out, R]` in float32: K slots of rank R. A trial of
lower rank is padded with zeros, which gradient, AdamW and weight decay leave zero. Whatever trials
differ in (scale, dropout) is a tensor over slots, so that a new trial in a slot changes no shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from trial.model.dropout.lora_dropout import feature_keys
from trial.multi_lora.adapter_init import InitialAdapter
from trial.multi_lora.batch_view import ALL_SLOTS, BatchView
from trial.multi_lora.fused_lora import GradBuffers

Shape = tuple[int, int]


class SlotLayer:
    """The adapters of one layer in all slots."""

    def __init__(
        self, name: str, a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor, layer_index: int
    ) -> None:
        self.name = name
        """Path of the layer in the base model."""
        self.a = a
        """[K, R, in], float32, with a gradient."""
        self.b = b
        """[K, out, R], float32, with a gradient."""
        self.scale = scale
        """float32 [K, 1, 1]: factor of each slot's product of A and B; 0 for an empty slot."""
        self.buffers: LayerBuffers | None = None
        """None if the bank is not flat."""
        self.feature_keys = feature_keys(layer_index, a.shape[2]).to(a.device)
        """Dropout key of each input feature, int32 [in]."""


@dataclass(frozen=True, slots=True)
class LayerBuffers:
    """A layer's A and B in the type that products are computed in, and their gradients."""

    a: torch.Tensor
    """[K, R, in]."""
    b: torch.Tensor
    """[K, out, R]."""
    grads: GradBuffers

    def select(self, slots: slice) -> LayerBuffers:
        """The buffers of some slots."""
        if slots == ALL_SLOTS:
            return self
        return LayerBuffers(self.a[slots], self.b[slots], self.grads.select(slots))


class AdapterBank:
    """Values and gradients of the adapters of K slots, in blocks [K, ...] that layers are views of.

    With `flat` all layers are views of one block [K, parameters]; else each tensor is a block of
    its own, for devices that compile whole graphs (HPU). Gradients are blocks of the same shapes
    that autograd adds to: zero them in place, never replace them. With `cast`, products are
    computed in that type: the flat block is cast as a whole, and so are its gradients.
    """

    def __init__(
        self,
        initial: InitialAdapter,
        slots: int,
        rank: int,
        device: torch.device,
        *,
        flat: bool = True,
        cast: torch.dtype | None = None,
    ) -> None:
        """Reserve K = `slots` slots of rank R = `rank` for the layers of `initial`."""
        self.slots = slots
        self.rank = rank
        self.device = device
        self.flat = flat
        self.view = BatchView(slots, 0, None, ALL_SLOTS)
        """The batch that is going through the model; `begin_batch` replaces it."""
        self.dropouts: list[float] = [0.0] * slots
        """Dropout probability of each slot."""
        self.blocks: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Values and gradients, each [K, ...], float32."""
        shapes = [
            shape
            for layer in initial.layers
            for shape in ((rank, layer.a.shape[1]), (layer.b.shape[0], rank))
        ]
        self.b_parts = _parts_of_b(shapes, flat=flat)
        """Of each block, the parts along its second dimension that belong to a B."""
        tensors = list(self._flat_tensors(shapes) if flat else self._separate_tensors(shapes))
        self.scales = torch.zeros(len(initial.layers), slots, 1, 1, device=device)
        self.layers = [
            SlotLayer(layer.name, a, b, scale, layer.layer_index)
            for layer, a, b, scale in zip(
                initial.layers, tensors[::2], tensors[1::2], self.scales, strict=True
            )
        ]
        self._cast_block: tuple[torch.Tensor, torch.Tensor] | None = None
        """The flat block and its gradients in the type of `cast`."""
        if flat:
            self._add_buffers(cast)

    def _flat_tensors(self, shapes: Sequence[Shape]) -> Iterator[torch.Tensor]:
        size = sum(rows * columns for rows, columns in shapes)
        value, grad = (torch.zeros(self.slots, size, device=self.device) for _ in range(2))
        self.blocks.append((value, grad))
        start = 0
        for rows, columns in shapes:
            part = slice(start, start + rows * columns)
            start = part.stop
            yield _with_grad(
                value[:, part].unflatten(1, (rows, columns)),
                grad[:, part].unflatten(1, (rows, columns)),
            )

    def _separate_tensors(self, shapes: Sequence[Shape]) -> Iterator[torch.Tensor]:
        for rows, columns in shapes:
            value, grad = (torch.zeros(self.slots, rows, columns, device=self.device) for _ in "vg")
            self.blocks.append((value, grad))
            yield _with_grad(value, grad)

    def _add_buffers(self, cast: torch.dtype | None) -> None:
        values, grads = self.blocks[0]
        if cast is not None:
            values, grads = (torch.zeros_like(values, dtype=cast) for _ in range(2))
            self._cast_block = (values, grads)
        anchor = torch.zeros((), device=self.device, requires_grad=True)
        pairs = zip(self._by_layer([values]), self._by_layer([grads]), strict=True)
        for layer, ((a, b), (a_grad, b_grad)) in zip(self.layers, pairs, strict=True):
            layer.buffers = LayerBuffers(a, b, GradBuffers(a_grad, b_grad, anchor))

    # One slot

    def load(self, slot: int, initial: InitialAdapter, dropout: float) -> None:
        """Put a fresh adapter into a slot; nothing of the one before remains, NaN included."""
        self.clear(slot)
        self.write(slot, [(layer.a, layer.b) for layer in initial.layers])
        with torch.no_grad():
            scales = torch.tensor([layer.scale for layer in initial.layers])
            self.scales[:, slot] = scales.view(-1, 1, 1).to(self.device)
        self.dropouts[slot] = dropout

    def clear(self, slot: int) -> None:
        """Empty a slot: its adapter then adds nothing to its rows."""
        with torch.no_grad():
            for value, grad in self.blocks:
                value[slot].zero_()
                grad[slot].zero_()
            self.scales[:, slot] = 0.0
        self.dropouts[slot] = 0.0

    def read(
        self, slot: int, initial: InitialAdapter, blocks: Sequence[torch.Tensor] | None = None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """A [r, in] and B [out, r] of every layer at the trial's own rank, copied to the CPU.

        With `blocks`, tensors of the shapes of the bank's own (AdamW's moments), those are read.
        """
        rows = [block[slot].detach().cpu() for block in self._values(blocks)]
        return [
            (a[: len(layer.a)].clone(), b[:, : len(layer.a)].clone())
            for (a, b), layer in zip(self._by_layer(rows), initial.layers, strict=True)
        ]

    def write(
        self,
        slot: int,
        tensors: Sequence[Sequence[torch.Tensor]],
        blocks: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """Put what `read` returned into a slot, padded with zeros; `blocks` as for `read`."""
        targets = self._values(blocks)
        rows = [torch.zeros(block.shape[1:]) for block in targets]
        for (a, b), (saved_a, saved_b) in zip(self._by_layer(rows), tensors, strict=True):
            a[: len(saved_a)] = saved_a
            b[:, : len(saved_a)] = saved_b
        # One copy per block: on a GPU a small copy takes as long as a large one.
        with torch.no_grad():
            for block, row in zip(targets, rows, strict=True):
                block[slot].copy_(row)

    def _values(self, blocks: Sequence[torch.Tensor] | None) -> Sequence[torch.Tensor]:
        return [value for value, _ in self.blocks] if blocks is None else blocks

    def _by_layer(self, blocks: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """A and B of every layer, from blocks [K, ...] or from one slot's row of each block."""
        parts: Sequence[torch.Tensor] = blocks
        if self.flat:
            shapes = [like.shape[1:] for layer in self.layers for like in (layer.a, layer.b)]
            pieces = blocks[0].split([shape.numel() for shape in shapes], dim=-1)
            parts = [
                piece.unflatten(-1, shape) for piece, shape in zip(pieces, shapes, strict=True)
            ]
        return list(zip(parts[::2], parts[1::2], strict=True))

    # One batch

    def begin_batch(self, view: BatchView) -> None:
        """Make `view` the one that the layers see, and cast its slots' values where they are cast.

        Gradients in the lower type start at zero.
        """
        self.view = view
        if self._cast_block is not None and view.slot_slice is not None:
            values, grads = self._cast_block
            values[view.slot_slice].copy_(self.blocks[0][0][view.slot_slice])
            grads[view.slot_slice].zero_()

    def end_batch(self) -> None:
        """After a backward pass: add its gradients in the lower type to the float32 ones."""
        slots = self.view.slot_slice
        if self._cast_block is not None and slots is not None:
            self.blocks[0][1][slots].add_(self._cast_block[1][slots])


def _parts_of_b(shapes: Sequence[Shape], *, flat: bool) -> list[list[slice]]:
    """Where the B of each layer lies in every block; `shapes` are those of A and B in turns."""
    if not flat:
        return [[slice(0, rows)] if number % 2 else [] for number, (rows, _) in enumerate(shapes)]
    ends = list(accumulate(rows * columns for rows, columns in shapes))
    return [[slice(ends[b - 1], ends[b]) for b in range(1, len(ends), 2)]]


def _with_grad(value: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """A leaf of the autograd graph on the memory of `value`, whose gradient lies in `grad`."""
    leaf = value.detach().requires_grad_()
    leaf.grad = grad
    return leaf
