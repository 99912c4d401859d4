"""Does the cost of a trial stay flat over a long study, and is it opened again in seconds?

python tests/bench/scale/trials.py [--trials 10000]

Trials that do nothing, with five evaluations each, through the real driver, journal file, trial
folders and two Ray workers; then the finished study once more, as a resume opens it. Devices by the
hundred are simulated by tests/bench/scale/nodes.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from ours import trivial

from sweep.driver.disk_guard import DiskGuard
from sweep.driver.driver import Driver
from sweep.driver.executor import Event, Finished
from sweep.driver.progress import SweepProgress
from sweep.driver.simulated_executor import SimulatedExecutor
from sweep.ray_backend.executor import RayExecutor
from sweep.ray_backend.node.settings import RaySettings
from sweep.spec.spec import PrunerSpec, SweepSpec
from sweep.storage.open import open_storage
from sweep.study.decider import OptunaDecider
from trial.config.trial_config import TrialConfig
from trial.store.folders import StudyFolder
from trial.store.records import StudyRecord


@dataclass
class Milestones:
    """A view that notes clock and memory at every thousandth end."""

    every: int
    count: int = 0
    rows: list[tuple[int, float, float]] = field(default_factory=list)

    def update(self, progress: SweepProgress) -> None: ...

    def note(self, text: str) -> None: ...

    def on_event(self, event: Event, progress: SweepProgress) -> None:
        if isinstance(event, Finished):
            self.count += 1
            if self.count == 1 or self.count % self.every == 0:
                memory = psutil.Process().memory_info().rss / 1e6
                self.rows.append((self.count, time.perf_counter(), memory))


def trials(count: int) -> None:
    """So many trivial trials, then the same study once more."""
    import ray

    # Workers do not have this folder on their path.
    ray.cloudpickle.register_pickle_by_value(trivial)
    with tempfile.TemporaryDirectory() as scratch:
        spec = trivial.spec(Path(scratch), count)
        spec = spec.model_copy(update={"pruner": PrunerSpec(name="successive_halving")})
        study = StudyFolder(Path(scratch) / "trivial")
        study.write_record(StudyRecord(name="trivial", spec=spec.content()))
        view = Milestones(max(1, count // 10))
        settings = RaySettings(
            device="cpu", concurrency=2, expected_jobs=count, worker=trivial.TrivialWorker
        )
        executor = RayExecutor(settings)
        executor.start()
        try:
            _drive(spec, study, executor, view, count)
        finally:
            executor.close()
        print("| trials | ms a trial since the last row | driver, MB |\n|---|---|---|")
        for (before, then, _), (now, clock, megabytes) in zip(
            view.rows, view.rows[1:], strict=False
        ):
            print(f"| {now} | {1e3 * (clock - then) / (now - before):.1f} | {megabytes:.0f} |")
        began = time.perf_counter()
        outcome = _drive(spec, study, SimulatedExecutor(no_curve), Milestones(1), count)
        seconds, size = time.perf_counter() - began, study.journal.stat().st_size / 1e6
        print(f"opened again in {seconds:.1f} s ({outcome.reason}); journal {size:.1f} MB")


def no_curve(number: int, config: TrialConfig) -> Any:
    """Nothing is trained a second time."""
    raise AssertionError(f"trial {number} runs twice")


def _drive(spec: SweepSpec, study: StudyFolder, executor: Any, view: Any, count: int) -> Any:
    decider = OptunaDecider(spec, "trivial", open_storage(study))
    progress = SweepProgress("eval_loss", False, planned=count)
    disk = DiskGuard(study, spec.resources, spec.objectives)
    return Driver(study, decider, executor, spec.stop, view, progress, disk=disk).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    trials(parser.parse_args().trials)


if __name__ == "__main__":
    main()
