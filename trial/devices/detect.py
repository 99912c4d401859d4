"""Which accelerators this machine has, as far as can be told without loading torch."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

CUDA_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Device files, one of which every machine with a GPU has (native, WSL, AMD)."""


def has_gaudi_software() -> bool:
    """Whether Habana's software is installed; its driver and cards are not looked at."""
    return importlib.util.find_spec("habana_frameworks") is not None


def has_cuda_device(
    files: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ
) -> bool:
    """Whether a GPU is visible: a device file exists, and CUDA_VISIBLE_DEVICES does not hide it."""
    if environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(Path(file).exists() for file in files or CUDA_FILES)


def detected_device() -> str:
    """The name of the device that `device: auto` means on this machine."""
    return "hpu" if has_gaudi_software() else "cuda" if has_cuda_device() else "cpu"
