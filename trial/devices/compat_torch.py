"""Names of torch that are not public and that trials depend on.

`tests/test_trial/devices/test_compat_torch.py` says which of them a torch release has lost.
"""

from __future__ import annotations

import torch

TESTED_TORCH = "2.13.0"
"""The release whose private names are used here."""
PRIVATE_NAMES = ("torch.ops.mkldnn._linear_pointwise",)
"""All of them, by their full names."""


def mkldnn_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`x W' + bias` by oneDNN: the operator that torch's own compiler emits on a CPU.

    `x` is float32 [..., in], `weight` [out, in], `bias` [out]; returns [..., out].
    """
    output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return output
