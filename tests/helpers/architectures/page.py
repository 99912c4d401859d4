"""Writes docs/architectures.md: every architecture of the tests against a plain PEFT loop.

PYTHONPATH=.:tests .venv/bin/python -m helpers.architectures.page docs/architectures.md
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
import transformers
from helpers.architectures.families import FAMILIES
from helpers.architectures.loop import STEPS, Architectures, Outcome

HEAD = f"""# Architectures, each against a plain PEFT loop

Written by
`PYTHONPATH=.:tests .venv/bin/python -m helpers.architectures.page docs/architectures.md`;
`tests/test_trial/effects/test_architectures.py` holds the same.

Tiny models of transformers {transformers.__version__} with random weights, on a CPU in float32:
eval losses in nats per token before and after {STEPS} optimizer steps, and what differs from that
loss: of a loop of twenty lines with transformers, PEFT and AdamW over the same rows
(`plain_loss` in `tests/helpers/architectures/loop.py`), and of the same trial in a packed job.
"alone": `pack` does not pack it, and trains it alone. "refused": by `check` and by a worker.

| model | before | after | plain loop | packed |
|---|---|---|---|---|"""


def row(name: str, outcome: Outcome) -> str:
    """One line of the table."""
    loss = outcome.solo.eval_loss
    if loss is None:
        (problem,) = outcome.problems
        return f"| {name} | refused: `{problem.key}` | | | |"
    packed = "alone" if outcome.packed is None else f"{outcome.packed - loss:+.0e}"
    before = f"{outcome.before:.4f}"
    return f"| {name} | {before} | {loss:.4f} | {outcome.plain - loss:+.0e} | {packed} |"


def render(folder: Path) -> str:
    """The page."""
    models = Architectures(folder)
    lines = [HEAD, *(row(name, models.outcome(name, FAMILIES[name])) for name in FAMILIES)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as work:
        Path(sys.argv[1]).write_text(render(Path(work)), encoding="utf-8")
