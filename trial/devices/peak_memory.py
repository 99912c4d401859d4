"""Peak memory of this process, as Linux counts it."""

from __future__ import annotations

import resource
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def reset_peak() -> None:
    """Start the peak anew at the present size, where the kernel lets us."""
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        # Without it the peak is the process's own, of all its trials: high, never low.
        return


def read_peak() -> int:
    """Bytes of resident memory at the highest since `reset_peak`."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
