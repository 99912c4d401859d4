"""Has an export loaded again in a fresh process, and compares its loss with the trial's.

The process (`trial.export.reload`) knows nothing of this project; it gets the held-out tokens in a
file. This module loads no torch until it writes that file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from trial.config.trial_config import TrialConfig
from trial.store.records import Result

if TYPE_CHECKING:
    from trial.data.tokens import TokenDataset

FLOAT32_TOLERANCE = 2e-3
"""Nats per token between the trial's eval loss and that of its export, all of it in float32. What
differs is the order of sums; measured on the tiny models of the tests it is below 1e-5."""
HALF_TOLERANCE = 1e-2
"""The same where weights or computation have 8 (bfloat16) or 11 (float16) significant bits. A merge
rounds each changed weight once, by at most 2**-9 of it, and logits are rounded alike;
docs/export.md has the differences measured. A wrong merge is off by tenths."""
LAST_LINES = 3
"""Lines of a failed process' standard error that are shown."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The loss of an export, as measured in a fresh process."""

    loss: float
    """Nats per completion token over the trial's held-out set."""
    tokens: int
    """Completion tokens of that set."""
    device: str
    libraries: str
    """Names and versions of what loaded it."""
    tolerance: float

    def __str__(self) -> str:
        return (
            f"{self.loss:.4f} over {self.tokens} tokens, by {self.libraries} on {self.device} "
            f"(at most {self.tolerance:g} from the table's)"
        )


@dataclass(frozen=True, slots=True)
class Exported:
    """An export to measure: its folder, and what it is loaded with."""

    folder: Path
    config: TrialConfig
    merged: bool

    def job(self) -> dict[str, Any]:
        """What `trial.export.reload` is told about it."""
        from trial.model.load import pretrained_path, source_arguments

        model = self.config.model
        if self.merged or not self.config.lora.r:
            arguments = {"torch_dtype": "auto", "trust_remote_code": model.trust_remote_code}
            return {"folder": str(self.folder), "base": None, "arguments": arguments}
        arguments = {"torch_dtype": model.dtype, **source_arguments(model)}
        base = pretrained_path(model.name_or_path)
        return {"folder": str(self.folder), "base": base, "arguments": arguments}


def tolerance(config: TrialConfig, dtype: str | None = None) -> float:
    """The most nats per token by which an export may differ; `dtype` is that of merged weights."""
    training = config.training
    types = {config.model.dtype, dtype or "float32"}
    half = training.get("bf16") or training.get("fp16") or types != {"float32"}
    return HALF_TOLERANCE if half else FLOAT32_TOLERANCE


def measure(
    exports: Sequence[Exported], rows: TokenDataset
) -> list[tuple[float, int, str, str] | str]:
    """Loss, tokens, device and libraries of each export, or why it could not be measured.

    One fresh process loads all of them. `rows` is the held-out set.

    Raises:
        ValueError: the process failed as a whole.
    """
    with TemporaryDirectory(prefix="export-") as name:
        folder = Path(name)
        jobs, answers = folder / "jobs.json", folder / "answers.json"
        write_rows(rows, folder / "rows.npz")
        content = {"rows": str(folder / "rows.npz"), "exports": [e.job() for e in exports]}
        jobs.write_text(json.dumps(content), encoding="utf-8")
        words = [sys.executable, "-m", "trial.export.reload", str(jobs), str(answers)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode or not answers.is_file():
            last = " ".join(done.stderr.strip().splitlines()[-LAST_LINES:])
            raise ValueError(
                f"the process that loads exports again failed ({done.returncode}): {last}"
            )
        found = json.loads(answers.read_text(encoding="utf-8"))
    return [
        answer.get("error")
        or (answer["loss"], answer["tokens"], answer["device"], answer["libraries"])
        for answer in found
    ]


def write_rows(rows: TokenDataset, file: Path) -> None:
    """Write `ids`, `trained` and `ends` of a data set, as `trial.export.reload` reads them."""
    import numpy as np

    ids, trained, ends = [], [], []
    for index in range(len(rows)):
        row = rows[index]
        size = int(row["attention_mask"].sum())
        ids.append(row["input_ids"][:size].numpy().astype(np.int32))
        trained.append((row["labels"][:size] >= 0).numpy())
        ends.append(size)
    np.savez(file, ids=np.concatenate(ids), trained=np.concatenate(trained), ends=np.cumsum(ends))


def verify(export: Exported, result: Result, rows: TokenDataset, allowed: float) -> Measured:
    """Measure an export and compare it with the trial's eval loss.

    Raises:
        ValueError: it cannot be loaded, or its loss differs by more than `allowed`.
    """
    (found,) = measure([export], rows)
    if isinstance(found, str):
        raise ValueError(f"the export cannot be loaded again: {found}")
    measured = Measured(*found, tolerance=allowed)
    if result.eval_loss is None or not abs(measured.loss - result.eval_loss) <= allowed:
        raise ValueError(
            f"the export is not the trained model: its loss is {measured.loss:.4f} when loaded by "
            f"{measured.libraries}, the trial's {result.eval_loss:.4f}; they may differ by "
            f"{allowed:g}"
        )
    return measured
