"""Trained weights in float32 over a base model of a lower type.

An optimizer step changes a weight of 1.0 by about the learning rate. bfloat16 has no number between
1.0 and 0.996: at usual rates such a weight would never move. So what is trained is held in float32,
and cast to the type that it had for each pass, whose results stay those of the lower type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trial.devices.compat import is_zero_parameter
from trial.devices.compat_torch import parameters_replaced

LOWER_TYPES = (torch.bfloat16, torch.float16)
_CONTAINERS = (nn.ParameterDict, nn.ParameterList)
"""Modules without a forward pass: PEFT casts what they hold where it is used."""


def hold_in_float32(model: Any) -> None:
    """Hold every trained weight of the model in float32, in place; modules compute as before.

    Weights that ZeRO-3 has partitioned are left alone. Modules that share a weight go on sharing
    it.
    """
    wrapped: list[tuple[Any, dict[str, torch.dtype]]] = []
    for module in model.modules():
        lower = {
            name: weight.dtype
            for name, weight in module.named_parameters(recurse=False)
            if weight.requires_grad
            and weight.dtype in LOWER_TYPES
            and not is_zero_parameter(weight)
        }
        if lower:
            wrapped.append((module, lower))
    for module, lower in wrapped:
        for name in lower:
            weight = getattr(module, name)
            weight.data = weight.data.float()
        if not isinstance(module, _CONTAINERS):
            module.forward = _LowerForward(module, lower)


class _LowerForward:
    """A module's forward pass with some of its float32 weights cast to lower types."""

    def __init__(self, module: Any, types: dict[str, torch.dtype]) -> None:
        self.module = module
        self.types = types
        self.forward: Callable[..., Any] = module.forward

    def __call__(self, *args: Any, **named: Any) -> Any:
        lower = {name: getattr(self.module, name).to(kind) for name, kind in self.types.items()}
        with parameters_replaced(self.module, lower):
            return self.forward(*args, **named)
