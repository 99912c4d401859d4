"""Export a trained trial: adapter or merged model, tokenizer, model card, configuration.

python -m trial.export runs/x/trials/00007 out [--merge] [--dtype float32] [--no-verify]
                                           [--trust-remote-code]
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from trial import trust
from trial.export.merge import DTYPES
from trial.export.write import export
from trial.store.folders import TrialFolder


def main() -> int:
    """Run the command; returns 0, or 2 after a message on standard error."""
    parser = argparse.ArgumentParser(prog="python -m trial.export", description=__doc__)
    parser.add_argument("trial", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--merge", action="store_true", help="the merged model")
    parser.add_argument("--dtype", choices=DTYPES, help="type of merged weights; the base's own")
    parser.add_argument("--no-verify", action="store_true", help="do not measure the loss again")
    parser.add_argument(trust.FLAG, action="store_true", help=trust.HELP)
    given = parser.parse_args()
    # What goes to standard error is why there is no export.
    warnings.simplefilter("ignore")
    try:
        if not given.trust_remote_code:
            config = TrialFolder(given.trial).read_config()
            trust.refuse_code(given.trial, trust.code_of_model(config))
        measured = export(
            TrialFolder(given.trial),
            given.target,
            given.merge,
            dtype=given.dtype,
            verified=not given.no_verify,
        )
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(given.target)
    print(measured or "not measured")
    return 0


if __name__ == "__main__":
    sys.exit(main())
