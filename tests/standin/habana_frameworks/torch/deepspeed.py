"""STAND-IN: tells DeepSpeed's own `hpu` accelerator that the tensors of the stand-in are its own.

Stage 3 compares devices by name, and those of the stand-in's tensors are the CPU's.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder

MODULE = "deepspeed.accelerator.hpu_accelerator"


class _Mending(Loader):
    def __init__(self, loader):
        self.create_module = loader.create_module
        self._loader = loader

    def exec_module(self, module):
        self._loader.exec_module(module)
        accelerator = module.HPU_Accelerator
        accelerator.current_device_name = lambda self: "cpu"
        accelerator.on_accelerator = lambda self, tensor: tensor.device.type == "cpu"


class _Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != MODULE or (found := PathFinder.find_spec(name, path)) is None:
            return None
        found.loader = _Mending(found.loader)
        return found


def install():
    sys.meta_path.insert(0, _Finder())
