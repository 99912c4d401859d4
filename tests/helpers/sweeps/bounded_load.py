"""`python bounded_load.py FILE...`: loads sweep files with a limit on CPU time and memory for each.

Prints a JSON line per file: its name, seconds of CPU, MiB that it added to the peak, the number of
problems. A file beyond the limit ends the process: by SIGPROF, or with a MemoryError.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
from pathlib import Path

from sweep.loading import loader
from sweep.planning.lint import advice
from sweep.spec.grid import extreme_points, grid_size
from sweep.spec.space import Space
from trial.config.errors import ConfigError

SECONDS = 10.0
"""Of CPU, so that a busy machine does not count."""
MEGABYTES = 200
MIB = 2**20


def load(path: Path) -> int:
    """Load a file and what a check derives from it; returns the number of problems."""
    try:
        spec = loader.load(path)
        space = Space.of(spec)
        for params in extreme_points(space, limit=5):
            space.configure(params, 0)
        grid_size(space)
        advice(spec)
    except ConfigError as error:
        # The command prints all of it.
        len(str(error))
        return len(error.problems)
    return 0


def peak() -> float:
    """Peak of this process's memory in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def main(paths: list[str]) -> None:
    """Load each file in turn; the first is loaded before any limit holds."""
    load(Path(paths[0]))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEGABYTES * MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in paths[1:]:
        print(json.dumps({"begun": Path(path).name}), flush=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        before, at = peak(), time.process_time()
        problems = load(Path(path))
        seconds = time.process_time() - at
        signal.setitimer(signal.ITIMER_PROF, 0)
        row = {"name": Path(path).name, "seconds": round(seconds, 2), "problems": problems}
        print(json.dumps({**row, "mib": round(peak() - before, 1)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
