"""Loads exports by plain transformers and PEFT, and measures their loss: a process of its own.

    python -m trial.export.reload JOBS.json ANSWERS.json

Nothing of this project is used here, so that a mistake of ours cannot hide itself:
`from_pretrained` as anybody would call it, and a loss over the stored tokens, row by row, without
padding.

JOBS.json: `rows`, a file of numpy arrays `ids` [tokens], `trained` [tokens] and `ends` [rows]; and
`exports`, a list of `folder`, `base` (None for a whole model) and `arguments` of `from_pretrained`.
ANSWERS.json: for each export its `loss` in nats per trained token, `tokens`, `device` and
`libraries`, or an `error`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers


def rows_of(file: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids, int64 [tokens of the row], and which of them count, bool, of every row."""
    with np.load(file) as arrays:
        ids, trained, ends = arrays["ids"], arrays["trained"], arrays["ends"]
    start = 0
    for end in ends:
        yield torch.from_numpy(ids[start:end]).long(), torch.from_numpy(trained[start:end]).bool()
        start = end


def load(folder: str, base: str | None, arguments: dict[str, Any]) -> Any:
    """The exported model in eval mode."""
    plain = transformers.AutoModelForCausalLM
    if base is None:
        return plain.from_pretrained(folder, **arguments).eval()
    import peft

    return peft.PeftModel.from_pretrained(plain.from_pretrained(base, **arguments), folder).eval()


def measure(model: Any, file: str) -> tuple[float, int]:
    """Cross-entropy in nats per trained token, and the number of these.

    The first token of a row is predicted from nothing and never counts.
    """
    total, count = 0.0, 0
    for ids, trained in rows_of(file):
        at = trained[1:].nonzero().flatten()
        if not len(at):
            continue
        with torch.inference_mode():
            logits = model(input_ids=ids[None].to(model.device)).logits[0, at.to(model.device)]
        log_probabilities = logits.double().log_softmax(dim=-1).cpu()
        total -= float(log_probabilities.gather(1, ids[at + 1].unsqueeze(1)).sum())
        count += len(at)
    return total / max(count, 1), count


def answer(export: dict[str, Any], rows: str) -> dict[str, Any]:
    """Loss of one export, or what a user's own script would meet instead."""
    libraries = f"transformers {transformers.__version__}"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = load(export["folder"], export["base"], export["arguments"]).to(device)
        loss, tokens = measure(model, rows)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    if export["base"] is not None:
        import peft

        libraries = f"PEFT {peft.__version__} and {libraries}"
    return {"loss": loss, "tokens": tokens, "device": device, "libraries": libraries}


def main(jobs: str, answers: str) -> None:
    """Measure every export of the file `jobs` and write the file `answers`."""
    given = json.loads(Path(jobs).read_text(encoding="utf-8"))
    found = [answer(export, given["rows"]) for export in given["exports"]]
    Path(answers).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
