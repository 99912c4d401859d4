"""A report of 10,000 trials with 50 evaluations each: seconds, memory, size of the page.

python tests/bench/scale/report.py [--trials 10000] [--evaluations 50] [--keep FOLDER]

The study is made up (a bowl over learning rate and rank, two thirds pruned, some failed), written
without flushing to disk, and reported in a process of its own, whose peak memory is what counts.
Exit code 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from trial.config.sections import Origin
from trial.config.trial_config import TrialConfig
from trial.store.folders import StudyFolder
from trial.store.records import Attempt, Cause, Evaluation, Result, Seconds, StudyRecord

LIMITS = {"seconds": 20.0, "memory_gb": 2.0, "html_mb": 15.0}
START = 1_790_000_000.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--evaluations", type=int, default=50)
    parser.add_argument("--keep", type=Path, help="make the study here and leave it")
    parser.add_argument("--report", type=Path, help="only report this study (used inside)")
    asked = parser.parse_args()
    if asked.report:
        return report(asked.report)
    with tempfile.TemporaryDirectory() as scratch:
        path = asked.keep or Path(scratch) / "scale"
        if not (path / "study.json").exists():
            make(path, asked.trials, asked.evaluations)
        command = [sys.executable, __file__, "--report", str(path)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    measured = json.loads(told.splitlines()[-1])
    missed = [name for name, limit in LIMITS.items() if measured[name] > limit]
    print(json.dumps(measured | {"trials": asked.trials, "missed": missed}))
    return 1 if missed else 0


def report(path: Path) -> int:
    """Time a report, imports included."""
    started = time.perf_counter()
    from results import write_report

    page = write_report(StudyFolder(path))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    size = page.stat().st_size / 1e6
    print(json.dumps({"seconds": round(seconds, 2), "cpu_seconds": round(time.process_time(), 2),
                      "memory_gb": round(peak, 3),
                      "html_mb": round(size, 2)}))  # fmt: skip
    return 0


def make(path: Path, trials: int, evaluations: int) -> None:
    """Write the study."""
    study, draw = StudyFolder(path), np.random.default_rng(0)
    spec = {"question": "Does the report scale?", "pruner": {"name": "successive_halving"}}
    study.write_record(StudyRecord(name="scale", created=START, spec=spec))
    base = TrialConfig().model_dump(mode="json")
    for number in range(trials):
        rank, rate = int(draw.choice([4, 8, 16, 32, 64])), float(10 ** draw.uniform(-5, -2))
        dropout = float(draw.choice([0.0, 0.05, 0.1]))
        params = {"lora.r": rank, "training.learning_rate": rate, "lora.lora_dropout": dropout}
        value = 2.3 + 0.3 * (np.log10(rate) + 3) ** 2 + 0.02 * abs(np.log2(rank / 16))
        write(study, number, base, params, value + 0.01 * draw.standard_normal(), evaluations)


def write(
    study: StudyFolder, number: int, base: dict, params: dict, value: float, evaluations: int
) -> None:
    """One trial's folder: every third is complete, every fiftieth fails, the others are pruned."""
    state = "failed" if number % 50 == 7 else "complete" if number % 3 == 0 else "pruned"
    lora = base["lora"] | {"r": params["lora.r"], "lora_dropout": params["lora.lora_dropout"]}
    training = base["training"] | {"learning_rate": params["training.learning_rate"]}
    origin = Origin(study="scale", number=number, params=params).model_dump()
    config = base | {"lora": lora, "training": training, "origin": origin}
    folder, began = study.trial(number), START + number // 8 * 20
    folder.path.mkdir(parents=True)
    folder.config.write_text(json.dumps(config))
    rows = [
        Evaluation(step=10 * i, eval_loss=value + 2 * np.exp(-i / 8), tokens=8000 * i,
                   train_seconds=0.3 * i, time=began + 0.4 * i)
        for i in range(1, evaluations + 1)
    ]  # fmt: skip
    folder.metrics.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    attempt = Attempt(started=began, host=f"node{number % 8}", pid=number, device="cpu")
    folder.attempts.write_text(attempt.model_dump_json() + "\n")
    spent = Seconds(load=0.5, first_step=0.4, train=0.3 * evaluations, eval=0.1 * evaluations)
    cause = Cause(kind="out_of_memory", message="Allocation failed") if state == "failed" else None
    result = Result(
        state=state, eval_loss=None if cause else rows[-1].eval_loss, best_step=rows[-1].step,
        steps=rows[-1].step, max_steps=500, tokens=rows[-1].tokens, seconds=spent, cause=cause,
        trainable_parameters=1000 * params["lora.r"], peak_memory_bytes=500_000_000,
        finished=began + spent.total,
    )  # fmt: skip
    folder.result.write_text(result.model_dump_json())


if __name__ == "__main__":
    sys.exit(main())
