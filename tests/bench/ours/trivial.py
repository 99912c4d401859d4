"""Trials that do nothing through the real driver, journal, trial folders and Ray workers.

python tests/bench/ours/trivial.py FOLDER --trials N
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter()

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from rich.console import Console  # noqa: E402

from sweep import console  # noqa: E402
from sweep.driver.disk_guard import DiskGuard  # noqa: E402
from sweep.driver.driver import Driver  # noqa: E402
from sweep.driver.executor import Finished  # noqa: E402
from sweep.driver.progress import SweepProgress  # noqa: E402
from sweep.loading import loader  # noqa: E402
from sweep.ray_backend.executor import RayExecutor  # noqa: E402
from sweep.ray_backend.node.settings import RaySettings  # noqa: E402
from sweep.ray_backend.worker import TrialWorker, WorkerControl  # noqa: E402
from sweep.spec.spec import SweepSpec  # noqa: E402
from trial.store.folders import StudyFolder, TrialFolder  # noqa: E402
from trial.store.records import Evaluation, Result, StudyRecord  # noqa: E402

REPORTS, VALUE = 5, 0.5


class Reusable:
    """A process cache that lets the worker be used again."""

    reusable = True


class TrivialWorker(TrialWorker):
    """The real actor; the training writes the folder as a real one does, and nothing else."""

    def __init__(self, environment: dict[str, str], device: str, hang_seconds: float) -> None:
        super().__init__(environment, preload=None, hang_seconds=hang_seconds)

    def train(self, folder: TrialFolder, control: WorkerControl) -> Result | None:
        self.process_cache = self.process_cache or Reusable()
        folder.read_config()
        control.started(folder, "trivial", REPORTS)
        for step in range(1, REPORTS + 1):
            if control.stop_reason(folder) is not None:
                break
            evaluation = Evaluation(step=step, eval_loss=VALUE)
            folder.append(evaluation)
            control.evaluated(folder, evaluation)
        result = Result(state="complete", eval_loss=VALUE, steps=REPORTS)
        folder.write_result(result)
        return result


class Watch(console.PlainView):
    """The view of a sweep without a terminal; notes when trials end."""

    def __init__(self) -> None:
        super().__init__(Console(file=open("/dev/null", "w")), "eval_loss")  # noqa: SIM115
        self.ends: list[float] = []

    def on_event(self, event: Any, progress: SweepProgress) -> None:
        super().on_event(event, progress)
        if isinstance(event, Finished):
            self.ends.append(time.perf_counter())


def spec(folder: Path, trials: int) -> SweepSpec:
    """Two ranges, drawn at random, with a pruner that is asked at every report."""
    content = {
        "base": {"device": "cpu"},
        "space": {
            "training.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
            "lora.lora_alpha": {"low": 1.0, "high": 64.0},
        },
        "sampler": {"name": "random", "seed": 0},
        "pruner": "median",
        "stop": {"trials": trials},
    }
    source = folder / "trivial.yaml"
    source.write_text(json.dumps(content))
    return loader.load(source, ())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, required=True)
    asked = parser.parse_args()
    asked_spec, study = spec(asked.folder, asked.trials), StudyFolder(asked.folder / "trivial")
    study.write_record(StudyRecord(name="trivial", spec=asked_spec.content()))
    settings = RaySettings(
        device="cpu", concurrency=2, expected_jobs=asked.trials, worker=TrivialWorker
    )
    executor = RayExecutor(settings)
    executor.start()
    try:
        from sweep.storage.open import open_storage
        from sweep.study.decider import OptunaDecider

        watch = Watch()
        progress = SweepProgress("eval_loss", False, planned=asked.trials)
        decider = OptunaDecider(asked_spec, "trivial", open_storage(study))
        disk = DiskGuard(study, asked_spec.resources, asked_spec.objectives)
        Driver(study, decider, executor, asked_spec.stop, watch, progress, disk=disk).run()
    finally:
        executor.close()
    ends = watch.ends
    told = {
        "trials_per_second": (len(ends) - 1) / (ends[-1] - ends[0]),
        "trials_per_second_overall": len(ends) / (ends[-1] - BEGAN),
        "seconds_to_first_trial": ends[0] - BEGAN,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
