"""STAND-IN: tensors asked for on `hpu` are made on the CPU; devices are still named `hpu`.

Every way to name a device that the tests meet is wrapped. One that is not fails loudly: torch has
no kernels for `hpu`, so nothing can be computed elsewhere by mistake.
"""

import functools
from datetime import timedelta

import torch
import torch._dynamo
from torch.distributed import Backend, ProcessGroupGloo

_FACTORIES = (
    "arange", "as_tensor", "asarray", "empty", "empty_like", "empty_strided", "eye", "full",
    "full_like", "linspace", "ones", "ones_like", "rand", "rand_like", "randint", "randn",
    "randn_like", "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros",
    "zeros_like",
)  # fmt: skip
_METHODS = ("to", "new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")


def plain(value):
    """The CPU for anything that names an HPU; everything else as it is."""
    if isinstance(value, torch.device) and value.type == "hpu":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value.split(":")[0] == "hpu" else value


def _on_cpu(function):
    @functools.wraps(function)
    def mapped(*args, **named):
        if "device" in named:
            named["device"] = plain(named["device"])
        return function(*map(plain, args), **named)

    return mapped


def _autocast_on_cpu(original):
    def __init__(self, device_type, *rest, **named):  # noqa: N807
        original(self, plain(device_type), *rest, **named)

    return __init__


def _gloo(store, rank, size, timeout=timedelta(minutes=30)):
    return ProcessGroupGloo(store, rank, size, timeout=timeout)


compiled = 0


def _compile(graph, inputs):
    global compiled
    compiled += 1
    return graph.forward


def _install() -> None:
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    for name in _METHODS:
        setattr(torch.Tensor, name, _on_cpu(getattr(torch.Tensor, name)))
    torch.amp.autocast_mode.autocast.__init__ = _autocast_on_cpu(
        torch.amp.autocast_mode.autocast.__init__
    )
    torch.Tensor.record_stream = lambda self, stream: None
    Backend.register_backend("hccl", _gloo, devices=["cpu", "hpu"])
    torch._dynamo.register_backend(_compile, name="hpu_backend")


_install()

from habana_frameworks.torch import core, deepspeed, hpex, hpu  # noqa: E402, F401

torch.hpu = hpu
deepspeed.install()
