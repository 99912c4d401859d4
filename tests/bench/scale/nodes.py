"""A sweep over 32 simulated nodes of 8 devices: does the driver keep them busy, at a flat cost?

python tests/bench/scale/nodes.py [--trials 10000] [--nodes 32] [--devices 8] [--seconds 300]

Trials replay recorded learning curves, stretched so that a whole one takes `--seconds`. Driver,
study, journal and trial folders are real, and every second that they take passes on the simulated
clock as well: a device that waits for the driver counts as idle. Then the finished study is opened
again, as a resume would. Exit code 1 when devices are less than 90 % busy.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY))

from sweep.driver.driver import Driver  # noqa: E402
from sweep.driver.executor import Event, Finished  # noqa: E402
from sweep.driver.progress import SweepProgress  # noqa: E402
from sweep.driver.simulated_executor import RecordedCurve, RecordedGrid, SimulatedExecutor  # noqa: E402
from sweep.spec.dimension import Choices, Range  # noqa: E402
from sweep.spec.spec import PrunerSpec, SamplerSpec, StopSpec, SweepSpec  # noqa: E402
from sweep.storage.open import open_storage  # noqa: E402
from sweep.study.decider import OptunaDecider  # noqa: E402
from trial.config.trial_config import TrialConfig  # noqa: E402
from trial.store.folders import StudyFolder  # noqa: E402
from trial.store.records import StudyRecord  # noqa: E402

CURVES = REPOSITORY / "tests/bench/curves/tiny_llama.csv"
RANK, RATE = "lora.r", "training.learning_rate"
BUSY = 0.9


@dataclass
class Watch:
    """A view that notes when trials end, and what memory the driver holds then."""

    executor: SimulatedExecutor
    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    def update(self, progress: SweepProgress) -> None: ...

    def note(self, text: str) -> None: ...

    def on_event(self, event: Event, progress: SweepProgress) -> None:
        if isinstance(event, Finished):
            self.seconds.append(self.executor.driver_seconds)
            if len(self.seconds) % 100 == 1:
                self.megabytes.append(psutil.Process().memory_info().rss / 1e6)


def sweep_spec(recorded: RecordedGrid, trials: int, sampler: str) -> SweepSpec:
    """Rank and rate of the recorded grid, any rate between its ends."""
    ranks, rates = recorded.axes[RANK], recorded.axes[RATE]
    return SweepSpec(
        name="scale",
        base={"training": {"max_steps": recorded.steps[-1], "eval_steps": recorded.steps[0]}},
        space={
            RANK: (Choices(choices=tuple(int(rank) for rank in ranks)),),
            RATE: (Range(type="float", low=rates[0], high=rates[-1], log=True),),
        },
        sampler=SamplerSpec(name=sampler),
        pruner=PrunerSpec(name="successive_halving", options={"reduction_factor": 2}),
        stop=StopSpec(trials=trials),
    )


def simulate(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the sweep; what it came to."""
    recorded = RecordedGrid.read(CURVES)
    spec = sweep_spec(recorded, asked.trials, asked.sampler)
    plain = recorded.curve({RANK: 8, RATE: 1e-3}, 0)
    whole = plain.load_seconds + plain.steps[-1] * plain.step_seconds
    stretch = asked.seconds / (whole + len(plain.steps) * plain.eval_seconds)

    def curve(number: int, config: TrialConfig) -> RecordedCurve:
        point = {RANK: config.lora.r, RATE: config.training["learning_rate"]}
        found = recorded.curve(point, number)
        # No two trials take equally long.
        pace = stretch * random.Random(number).uniform(0.8, 1.25)
        return replace(
            found,
            step_seconds=found.step_seconds * pace,
            eval_seconds=found.eval_seconds * pace,
            load_seconds=found.load_seconds * pace,
        )

    startup = recorded.costs.startup
    executor = SimulatedExecutor(
        curve, asked.nodes, asked.devices, startup_seconds=startup, counts_driver=True
    )
    executor.start()
    study = StudyFolder(folder / "scale")
    study.write_record(StudyRecord(name="scale", spec=spec.content()))
    decider = OptunaDecider(spec, "scale", open_storage(study))
    watch = Watch(executor)
    progress = SweepProgress(planned=asked.trials, clock=executor.clock)
    Driver(study, decider, executor, spec.stop, watch, progress, poll=3600.0).run()
    return told(asked, executor, watch) | reopened(study, spec)


def told(asked: argparse.Namespace, executor: SimulatedExecutor, watch: Watch) -> dict[str, Any]:
    """Utilisation over the whole sweep, its last trials included; the driver's cost by trial."""
    part = max(1, min(1000, asked.trials // 4))
    ends = watch.seconds
    held = executor.capacity() * executor.now
    return {
        "trials": len(ends),
        "devices": executor.capacity(),
        "simulated_hours": round(executor.now / 3600, 2),
        "utilisation": round(executor.busy_seconds / held, 4),
        "driver_seconds": round(executor.driver_seconds, 1),
        "driver_busy": round(executor.driver_seconds / executor.now, 4),
        "ms_per_trial_first": round(1e3 * (ends[part - 1] - ends[0]) / part, 2),
        "ms_per_trial_last": round(1e3 * (ends[-1] - ends[-part]) / part, 2),
        "driver_mb_first": round(watch.megabytes[0]),
        "driver_mb_last": round(watch.megabytes[-1]),
    }


def reopened(study: StudyFolder, spec: SweepSpec) -> dict[str, Any]:
    """Seconds that a resume takes to know all that has been."""
    began = time.perf_counter()
    decider = OptunaDecider(spec, "scale", open_storage(study))
    known = len(decider.finished())
    return {"reopened_trials": known, "reopen_seconds": round(time.perf_counter() - began, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=300.0, help="of a whole trial")
    parser.add_argument("--sampler", default="random")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = simulate(asked, Path(folder))
    print(json.dumps(measured, indent=1))
    return 0 if measured["utilisation"] >= BUSY else 1


if __name__ == "__main__":
    sys.exit(main())
