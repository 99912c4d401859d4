"""Number of examples of fuzzing tests: `make test-faults` raises it by FUZZ_TIMES."""

import os

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))


def examples(usual: int) -> int:
    """Number of examples of a fuzzing test; `usual` in `make test`."""
    return usual * TIMES
