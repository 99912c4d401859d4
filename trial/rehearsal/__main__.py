"""`python -m trial.rehearsal REQUEST ANSWER`: rehearse, in a process of its own.

Both are files; the answer is written last and at once, so that a process that has died shows.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from trial.devices.environment import ALWAYS
from trial.rehearsal.request import Request, answer_text
from trial.store.files import write_atomically


def main(request_file: str, answer_file: str) -> int:
    """Rehearse the request; returns the exit code."""
    request = Request.from_text(Path(request_file).read_text(encoding="utf-8"))
    for name, value in ALWAYS.items():
        os.environ.setdefault(name, value)
    from trial.model.load import is_local

    if all(is_local(config.model) for config in request.configs):
        # huggingface_hub reads it when it is imported.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from trial.preload import preload

    preload(request.device or "cpu")
    from trial.rehearsal.rehearse import Rehearsal

    logging.disable(logging.WARNING)
    problems = Rehearsal(request.device).problems(request.configs)
    write_atomically(Path(answer_file), answer_text(problems) + "\n")
    return 0


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing is left to do: freeing torch's modules would take a tenth of a second.
    os._exit(code)
