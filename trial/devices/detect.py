"""Which accelerators this machine has, as far as can be told without loading torch."""

from __future__ import annotations

import contextlib
import importlib.util
import math
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


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup"), group: str | None = None) -> int:
    """CPU cores that this process may use: its affinity, and the CPU quota of its container.

    Args:
        cgroups: Where control groups are mounted (cgroup v2, or v1 with its `cpu` controller).
        group: Path of this process's group below it; from `/proc/self/cgroup` by default.
    """
    cores = float(len(os.sched_getaffinity(0)))
    own = _own_cgroup() if group is None else group
    for part in (own, *(str(parent) for parent in Path(own).parents)):
        cores = min(cores, *(_quota(root / part.strip("/")) for root in (cgroups, cgroups / "cpu")))
    return max(1, int(cores))


def _own_cgroup() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "cpu" in controllers.split(","):
                return path
    return "/"


def _quota(group: Path) -> float:
    """Cores' worth of time that a control group gets in each period; infinity without a limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota, period = ((group / f"cpu.cfs_{n}_us").read_text() for n in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    return math.inf


def detected_device() -> str:
    """The name of the device that `device: auto` means on this machine."""
    return "hpu" if has_gaudi_software() else "cuda" if has_cuda_device() else "cpu"
