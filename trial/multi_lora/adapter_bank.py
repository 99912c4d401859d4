"""The adapters of all slots side by side, and the layers that apply them.

Every adapted layer holds `A [K, R, in]` and `B [K, out, R]` in float32, K slots of rank R. A trial
of lower rank is padded with zeros, which gradient, AdamW and weight decay leave zero. What trials
differ in (scale, dropout) are tensors over slots: a new trial in a slot changes no shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trial.model.dropout_hash import KEEP_ALL, threshold
from trial.model.lora_dropout import (
    BatchPositions,
    DropoutMask,
    apply_dropout,
    dropout_mask,
    feature_keys,
)
from trial.multi_lora.adapter_init import InitialAdapter, NotPackableError
from trial.multi_lora.cuda_graphs import Given
from trial.multi_lora.fused_lora import GradBuffers, adapted
from trial.multi_lora.onednn_linear import is_plain

ALL = slice(None)


class SlotLayer:
    """The adapters of one layer in all slots."""

    def __init__(
        self, name: str, a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor, site: int
    ) -> None:
        self.name = name
        self.a = a
        self.b = b
        self.scale = scale
        """[K, 1, 1]."""
        self.direct: Direct | None = None
        self.keys = feature_keys(site, a.shape[2]).to(a.device)


@dataclass(frozen=True, slots=True)
class Direct:
    """A layer's A and B in the type that they are multiplied in, and their gradients."""

    a: torch.Tensor
    b: torch.Tensor
    slopes: GradBuffers

    def part(self, span: slice) -> Direct:
        """The same of some slots."""
        if span == ALL:
            return self
        return Direct(self.a[span], self.b[span], self.slopes.part(span))


class AdapterBank:
    """What is trained: one row of `values` for each slot, seen by each layer as its A and B.

    With `flat`, all layers are views of one block [K, parameters]; else each tensor is a block of
    its own, which compilers of whole graphs like better. Gradients have blocks of the same shapes,
    into which autograd adds: they must be zeroed in place and never replaced. Where products are
    computed in a lower type (`cast`), a flat block is cast as a whole, and so are its gradients.
    """

    def __init__(
        self,
        drawn: InitialAdapter,
        slots: int,
        rank: int,
        device: torch.device,
        *,
        flat: bool = True,
        cast: torch.dtype | None = None,
    ) -> None:
        self.slots = slots
        self.rank = rank
        self.device = device
        self.flat = flat
        self.places = BatchPositions()
        self.picked: torch.Tensor | None = None
        """Slots that the batch at hand holds, in its order; None for all."""
        self.span: slice | None = ALL
        """The same as a slice; None where they do not lie side by side, or it would cost a wait."""
        self.count = slots
        """How many slots the batch at hand holds."""
        self.positions = 0
        """Rows times columns of the batch at hand."""
        self.drops: list[float] = [0.0] * slots
        self._thresholds: torch.Tensor | None = None
        self._factors: torch.Tensor | None = None
        shapes = [
            shape
            for layer in drawn.layers
            for shape in ((rank, layer.a.shape[1]), (layer.b.shape[0], rank))
        ]
        self.blocks: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Values and gradients, each [K, ...]."""
        tensors = list(self._flat(shapes) if flat else self._apart(shapes))
        self.scales = torch.zeros(len(drawn.layers), slots, 1, 1, device=device)
        self.layers = [
            SlotLayer(layer.name, a, b, scale, layer.site)
            for layer, a, b, scale in zip(
                drawn.layers, tensors[::2], tensors[1::2], self.scales, strict=True
            )
        ]
        self._lower: tuple[torch.Tensor, torch.Tensor] | None = None
        if flat:
            values, grads = self.blocks[0]
            if cast is not None:
                values, grads = (torch.zeros_like(values, dtype=cast) for _ in range(2))
                self._lower = (values, grads)
            anchor = torch.zeros((), device=device, requires_grad=True)
            pairs = zip(self._pairs([values]), self._pairs([grads]), strict=True)
            for layer, ((a, b), slopes) in zip(self.layers, pairs, strict=True):
                layer.direct = Direct(a, b, GradBuffers(*slopes, anchor))

    def _flat(self, shapes: Sequence[tuple[int, int]]) -> Iterator[torch.Tensor]:
        size = sum(rows * columns for rows, columns in shapes)
        value, grad = (torch.zeros(self.slots, size, device=self.device) for _ in range(2))
        self.blocks.append((value, grad))
        at = 0
        for rows, columns in shapes:
            here = slice(at, at + rows * columns)
            at = here.stop
            yield _leaf(
                value[:, here].unflatten(1, (rows, columns)),
                grad[:, here].unflatten(1, (rows, columns)),
            )

    def _apart(self, shapes: Sequence[tuple[int, int]]) -> Iterator[torch.Tensor]:
        for rows, columns in shapes:
            value, grad = (torch.zeros(self.slots, rows, columns, device=self.device) for _ in "vg")
            self.blocks.append((value, grad))
            yield _leaf(value, grad)

    # One slot

    def load(self, slot: int, drawn: InitialAdapter, dropout: float) -> None:
        """Put a fresh adapter into a slot; nothing of what was there remains, NaN included."""
        self.clear(slot)
        self.write(slot, [(layer.a, layer.b) for layer in drawn.layers])
        with torch.no_grad():
            scales = torch.tensor([layer.scale for layer in drawn.layers])
            self.scales[:, slot] = scales.view(-1, 1, 1).to(self.device)
        self.drops[slot] = dropout

    def clear(self, slot: int) -> None:
        """Empty a slot: it then adds nothing to its rows."""
        with torch.no_grad():
            for value, grad in self.blocks:
                value[slot].zero_()
                grad[slot].zero_()
            self.scales[:, slot] = 0.0
        self.drops[slot] = 0.0

    def read(
        self, slot: int, drawn: InitialAdapter, of: Sequence[torch.Tensor] | None = None
    ) -> list[Any]:
        """A and B of every layer at the trial's true rank, on the CPU; of other blocks if given."""
        here = [block[slot].detach().cpu() for block in self._values(of)]
        return [
            (a[: len(fresh.a)].clone(), b[:, : len(fresh.a)].clone())
            for (a, b), fresh in zip(self._pairs(here), drawn.layers, strict=True)
        ]

    def write(
        self, slot: int, tensors: Sequence[Any], of: Sequence[torch.Tensor] | None = None
    ) -> None:
        """What `read` gave, back into a slot."""
        blocks = self._values(of)
        here = [torch.zeros(block.shape[1:]) for block in blocks]
        for (a, b), (saved_a, saved_b) in zip(self._pairs(here), tensors, strict=True):
            a[: len(saved_a)] = saved_a
            b[:, : len(saved_a)] = saved_b
        # One copy for each block: a GPU takes hundreds of small ones as slowly as large ones.
        with torch.no_grad():
            for block, whole in zip(blocks, here, strict=True):
                block[slot].copy_(whole)

    def _values(self, of: Sequence[torch.Tensor] | None) -> Sequence[torch.Tensor]:
        return [value for value, _ in self.blocks] if of is None else of

    def _pairs(self, tensors: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """A and B of every layer, of one slot's row of each block or of all slots'."""
        parts: Sequence[torch.Tensor] = tensors
        if self.flat:
            shapes = [like.shape[1:] for layer in self.layers for like in (layer.a, layer.b)]
            pieces = tensors[0].split([shape.numel() for shape in shapes], dim=-1)
            parts = [
                piece.unflatten(-1, shape) for piece, shape in zip(pieces, shapes, strict=True)
            ]
        return list(zip(parts[::2], parts[1::2], strict=True))

    # The batch at hand

    def company(self, slots: Sequence[int]) -> Given:
        """What a batch of these slots, in equally many rows each, tells the layers; on the host."""
        if list(slots) == list(range(self.slots)):
            return {}
        return {"picked": torch.tensor(list(slots))}

    def dropping(self, slots: Sequence[int], rows: Sequence[int]) -> Given:
        """What a training batch adds to that for dropout: `rows` are its rows' keys.

        Where nobody drops that is nothing, unless leaving it out were another graph.
        """
        drops = [self.drops[slot] for slot in slots]
        if self.flat and not any(drops):
            return {}
        share = len(rows) // len(slots)
        limits = [threshold(p) if p else KEEP_ALL for p in drops for _ in range(share)]
        gains = [1.0 - p for p in drops for _ in range(share)]
        return {
            "rows": torch.tensor(rows, dtype=torch.int32),
            "thresholds": torch.tensor(limits, dtype=torch.int32).view(-1, 1, 1),
            "gains": torch.tensor(gains).view(-1, 1, 1),
        }

    def take(self, given: Given, columns: int) -> None:
        """Go by what `company` and `dropping` have said, once it is on the device."""
        self.picked = given.get("picked")
        self.count = self.slots if self.picked is None else len(self.picked)
        self.span = _span(self.picked)
        self.positions = given["input_ids"].numel()
        if self._lower is not None and self.span is not None:
            values, grads = self._lower
            values[self.span].copy_(self.blocks[0][0][self.span])
            grads[self.span].zero_()
        self._thresholds = self._factors = None
        if "rows" in given:
            self._thresholds, self._factors = given["thresholds"], 1.0 / given["gains"]
            self.places.set(given["rows"], columns, self.device)

    def gather(self) -> None:
        """After a backward pass: take up the gradients that it left in a lower type."""
        if self._lower is not None and self.span is not None:
            self.blocks[0][1][self.span].add_(self._lower[1][self.span])

    def drop_of(self, keys: torch.Tensor) -> DropoutMask | None:
        """What a layer's input is multiplied with; None where nobody drops."""
        places, limits, factors = self.places.keys, self._thresholds, self._factors
        if places is None or limits is None or factors is None:
            return None
        return dropout_mask(places, keys, limits, factors)

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The slots at hand of a tensor over slots."""
        if self.picked is None:
            return tensor
        if self.span is not None:
            return tensor[self.span]
        return tensor.index_select(0, self.picked)


def _span(picked: torch.Tensor | None) -> slice | None:
    if picked is None:
        return ALL
    if picked.device.type != "cpu":
        return None
    slots = picked.tolist()
    found = slice(slots[0], slots[0] + len(slots))
    return found if slots == list(range(found.start, found.stop)) else None


def _leaf(value: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    leaf = value.detach().requires_grad_()
    leaf.grad = grad
    return leaf


class SlotLinear(nn.Module):
    """A frozen linear layer with one adapter for each slot of the batch."""

    def __init__(self, base: nn.Module, layer: SlotLayer, bank: AdapterBank) -> None:
        super().__init__()
        self.base = base
        self.layer = layer
        self.bank = bank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [slots * rows, columns, in]; as PEFT's own layer does for each slot's rows."""
        bank, layer = self.bank, self.layer
        a, b, scale = bank.of(layer.a), bank.of(layer.b), bank.of(layer.scale)
        kind, by = x.device.type, bank.drop_of(layer.keys)
        cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        if x.numel() != bank.positions * x.shape[-1]:
            raise NotPackableError(f"{layer.name} gets a part of the batch")
        rows = x.reshape(bank.count, -1, x.shape[-1])
        # A compiler of whole graphs sees by itself what can be done where it lies.
        own, direct = self.base, layer.direct
        if bank.flat and is_plain(own) and (cast or own.weight.dtype == a.dtype):
            slopes = None
            # What is done behind autograd's back no compiler must see.
            eager = not torch.compiler.is_compiling()
            wanted = cast or own.weight.dtype
            if direct is not None and direct.a.dtype == wanted and bank.span is not None and eager:
                direct = direct.part(bank.span)
                a, b, slopes = direct.a, direct.b, direct.slopes
            whole = adapted(rows, own.weight, own.bias, a, b, scale, by, cast, slopes)
            return whole.view(*x.shape[:-1], -1)
        base = own(x)
        # Autocast takes the products' inputs down again: to float32 and back changes nothing.
        inner = rows if cast and by is None else rows.to(a.dtype)
        inner = inner if by is None else apply_dropout(inner, by)
        inner = torch.bmm(inner, a.transpose(1, 2)) * scale
        if cast or base.dtype == inner.dtype:
            whole = base.reshape(bank.count, -1, base.shape[-1])
            inner, b = inner.to(base.dtype), b.to(base.dtype)
            return torch.baddbmm(whole, inner, b.transpose(1, 2)).view_as(base)
        return (base + torch.bmm(inner, b.transpose(1, 2)).view_as(base)).to(base.dtype)


def install(model: Any, bank: AdapterBank) -> None:
    """Put the bank's layers over the layers of the base model that they adapt."""
    for layer in bank.layers:
        parent, name = parent_of(model, layer.name)
        setattr(parent, name, SlotLinear(getattr(parent, name), layer, bank))


def uninstall(model: Any, bank: AdapterBank) -> None:
    """Give the base model its own layers back, untouched."""
    for layer in bank.layers:
        parent, name = parent_of(model, layer.name)
        if isinstance(wrapped := getattr(parent, name), SlotLinear):
            setattr(parent, name, wrapped.base)


def parent_of(model: Any, path: str) -> tuple[Any, str]:
    """The module that holds the one at `path`, and under which name."""
    head, _, name = path.rpartition(".")
    return model.get_submodule(head), name
