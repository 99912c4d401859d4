"""Names of torch that are not public and that trials depend on.

`tests/test_trial/devices/test_compat_torch.py` says which of them a torch release has lost.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint

TESTED_TORCH = "2.13.0"
"""The release whose private names are used here."""
PRIVATE_NAMES = (
    "torch.ops.mkldnn._linear_pointwise",
    "torch.utils.checkpoint._checkpoint_without_reentrant_generator",
)
"""All of them, by their full names."""


def mkldnn_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`x W' + bias` by oneDNN: the operator that torch's own compiler emits on a CPU.

    `x` is float32 [..., in], `weight` [out, in], `bias` [out]; returns [..., out].
    """
    output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return output


def checkpoint_generator_stops_early() -> bool:
    """Whether the generator behind torch's gradient checkpointing has a parameter `early_stop`."""
    generator = torch.utils.checkpoint._checkpoint_without_reentrant_generator
    return "early_stop" in inspect.signature(generator).parameters


@contextmanager
def parameters_replaced(module: Any, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """A module whose own parameters are other tensors, which need not be parameters, inside.

    `torch.func.functional_call` does the same, and calls the module too, hooks included.
    """
    own = module._parameters
    held = {name: own[name] for name in tensors}
    own.update(tensors)
    try:
        yield
    finally:
        own.update(held)
