"""Runs an agent of Ray's, and ends it with the raylet: `agent.py PROGRAM ARGUMENTS...`.

When a driver and its reaper are killed together, the kernel ends the raylet. Its agents notice that
after ten seconds, and then wait a minute for the rest of Ray, which is gone as well. This script is
put before an agent's program and asks the kernel to end the agent too.
"""

import sys

if __name__ == "__main__":
    # The folder of this script comes first, and its modules are not for this process.
    del sys.path[0]

import ctypes
import os
import runpy
import signal

RAYLET = "RAY_RAYLET_PID"
"""Environment variable that Ray sets for its agents."""

PR_SET_PDEATHSIG = 1
"""Of `prctl(2)`: the signal that this process gets when its parent ends."""


def end_with_raylet() -> None:
    """Ask the kernel to end this process when its parent ends; at once if it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ.get(RAYLET, os.getppid())):
            sys.exit("the raylet is gone")


def main(arguments: list[str]) -> None:
    """Run the program in this process."""
    end_with_raylet()
    sys.argv[:] = arguments
    sys.path.insert(0, os.path.dirname(arguments[0]))
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
