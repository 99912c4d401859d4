"""Peak resident memory of this process, from Linux's /proc: psutil neither reads nor resets it."""

from __future__ import annotations

import resource
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def reset_peak() -> None:
    """Reset the peak to the present size, where the kernel allows it (`proc(5)`, clear_refs)."""
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        # The peak then covers all earlier trials of the process: too high, never too low.
        return


def read_peak() -> int:
    """Peak resident memory in bytes since `reset_peak`."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
