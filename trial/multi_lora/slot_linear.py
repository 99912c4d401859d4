"""The layer that applies every slot's own LoRA adapter to its rows, in place of a frozen one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trial.model.dropout.lora_dropout import DropoutMask, apply_dropout
from trial.multi_lora.adapter_bank import AdapterBank, LayerBuffers, SlotLayer
from trial.multi_lora.fused_lora import lora_linear
from trial.multi_lora.onednn_linear import is_plain_linear
from trial.multi_lora.packable import NotPackableError


class SlotLinear(nn.Module):
    """A frozen linear layer with one adapter for each slot of the batch."""

    def __init__(self, base: Any, layer: SlotLayer, bank: AdapterBank) -> None:
        super().__init__()
        self.base = base
        self.layer = layer
        self.bank = bank

    @property
    def weight(self) -> torch.Tensor:
        """The frozen layer's weight, as PEFT's adapted layers have it: some models look at it."""
        weight: torch.Tensor = self.base.weight
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The frozen layer's bias."""
        bias: torch.Tensor | None = self.base.bias
        return bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output [slots * rows, columns, out] of `x` [slots * rows, columns, in].

        Each slot's rows are computed as PEFT's own layer does.

        Raises:
            NotPackableError: `x` is not the whole batch, as for an expert of a mixture.
        """
        view, kind = self.bank.view, x.device.type
        if x.numel() != view.positions * x.shape[-1]:
            raise NotPackableError(f"{self.layer.name} gets a part of the batch")
        cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        dropout = view.dropout(self.layer.feature_keys)
        rows = x.reshape(view.slots, -1, x.shape[-1])
        if not self._can_fuse(cast):
            return self._composed(x, rows, dropout, cast)
        buffers = self._layer_buffers(cast)
        if buffers is not None:
            output = self._fused_into_buffers(rows, buffers, dropout, cast)
        else:
            output = self._fused(rows, dropout, cast)
        return output.view(*x.shape[:-1], -1)

    def _can_fuse(self, cast: torch.dtype | None) -> bool:
        """Whether layer and adapters can be one autograd function: their products have one type.

        Not where the bank is not flat: there the device's compiler fuses operations.
        """
        if not self.bank.flat or not is_plain_linear(self.base):
            return False
        return cast is not None or self.base.weight.dtype == self.layer.a.dtype

    def _layer_buffers(self, cast: torch.dtype | None) -> LayerBuffers | None:
        """The batch's slots of A, B and gradients in the products' type; None if there are none.

        They are filled outside of autograd, which torch.compile cannot trace.
        """
        buffers, slots = self.layer.buffers, self.bank.view.slot_slice
        if buffers is None or slots is None or torch.compiler.is_compiling():
            return None
        if buffers.a.dtype != (cast or self.base.weight.dtype):
            return None
        return buffers.select(slots)

    def _fused_into_buffers(
        self,
        rows: torch.Tensor,
        buffers: LayerBuffers,
        dropout: DropoutMask | None,
        cast: torch.dtype | None,
    ) -> torch.Tensor:
        """One autograd function, which adds the gradients of A and B to the bank's buffers."""
        base, scale = self.base, self.bank.view.select(self.layer.scale)
        return lora_linear(
            rows, base.weight, base.bias, buffers.a, buffers.b, scale, dropout, cast, buffers.grads
        )

    def _fused(
        self, rows: torch.Tensor, dropout: DropoutMask | None, cast: torch.dtype | None
    ) -> torch.Tensor:
        """One autograd function, which returns the gradients of A and B to autograd."""
        view, base, layer = self.bank.view, self.base, self.layer
        a, b, scale = (view.select(tensor) for tensor in (layer.a, layer.b, layer.scale))
        return lora_linear(rows, base.weight, base.bias, a, b, scale, dropout, cast)

    def _composed(
        self,
        x: torch.Tensor,
        rows: torch.Tensor,
        dropout: DropoutMask | None,
        cast: torch.dtype | None,
    ) -> torch.Tensor:
        """The output of any kind of base layer, with the adapters' products added to it."""
        view, layer, base = self.bank.view, self.layer, self.base(x)
        a, b, scale = (view.select(tensor) for tensor in (layer.a, layer.b, layer.scale))
        # Autocast rounds the inputs of products anyway: a cast to float32 would change nothing.
        inner = rows if cast and dropout is None else rows.to(a.dtype)
        inner = inner if dropout is None else apply_dropout(inner, dropout)
        inner = torch.bmm(inner, a.transpose(1, 2)) * scale
        if cast or base.dtype == inner.dtype:
            by_slot = base.reshape(view.slots, -1, base.shape[-1])
            inner, b = inner.to(base.dtype), b.to(base.dtype)
            return torch.baddbmm(by_slot, inner, b.transpose(1, 2)).view_as(base)
        # Add in the adapters' float32, and round once to the layer's lower type.
        return (base + torch.bmm(inner, b.transpose(1, 2)).view_as(base)).to(base.dtype)


def install(model: Any, bank: AdapterBank) -> None:
    """Replace the base model's layers that the bank adapts by `SlotLinear`, in place."""
    for layer in bank.layers:
        parent, name = parent_of(model, layer.name)
        setattr(parent, name, SlotLinear(getattr(parent, name), layer, bank))


def uninstall(model: Any, bank: AdapterBank) -> None:
    """Undo `install`; the base model's own layers are untouched."""
    for layer in bank.layers:
        parent, name = parent_of(model, layer.name)
        if isinstance(wrapped := getattr(parent, name), SlotLinear):
            setattr(parent, name, wrapped.base)


def parent_of(model: Any, path: str) -> tuple[Any, str]:
    """The parent of the module at `path`, and the attribute of it that holds that module."""
    head, _, name = path.rpartition(".")
    return model.get_submodule(head), name
