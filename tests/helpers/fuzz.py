"""How long fuzzing goes on: `make test-faults` sets FUZZ_TIMES."""

import os

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))


def examples(usual: int) -> int:
    """Examples of a fuzzing test, of which there are `usual` many in `make test`."""
    return usual * TIMES
