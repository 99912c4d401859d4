"""Does the cost of a trial stay flat, and does the driver keep many devices busy?

python tests/bench/scale.py trials [--trials 10000]
python tests/bench/scale.py devices [--nodes 32] [--devices 8] [--trials 2000]

`trials` runs trials that do nothing, with five evaluations each, through the real driver, journal
file, trial folders and two Ray workers; then opens the finished study again, as a resume does.
`devices` plays recorded learning curves on simulated devices, with real draws and real folders: its
clock goes on while the driver thinks. Lengths of trials are those of the recorded tiny Llama, times
what each row says.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ours_trivial
import replay_policies as policies

from sweep.disk import Disk
from sweep.driver import Driver
from sweep.executor import Event, Finished
from sweep.progress import Progress
from sweep.ray_executor import RayExecutor
from sweep.replay import Recorded, ReplayExecutor
from sweep.spec import PrunerSpec, SamplerSpec, StopSpec, SweepSpec
from sweep.study import OptunaDecider, memory, open_storage
from trial.config import TrialConfig
from trial.folder import StudyFolder, StudyRecord


@dataclass
class Milestones:
    """A view that notes clock and memory at every thousandth end."""

    every: int
    count: int = 0
    rows: list[tuple[int, float, float]] = field(default_factory=list)

    def update(self, progress: Progress) -> None: ...

    def note(self, text: str) -> None: ...

    def happened(self, event: Event, progress: Progress) -> None:
        if isinstance(event, Finished):
            self.count += 1
            if self.count == 1 or self.count % self.every == 0:
                memory = psutil.Process().memory_info().rss / 1e6
                self.rows.append((self.count, time.perf_counter(), memory))


def trials(count: int) -> None:
    """So many trivial trials, then the same study once more."""
    import ray

    # Workers do not have this folder on their path.
    ray.cloudpickle.register_pickle_by_value(ours_trivial)
    with tempfile.TemporaryDirectory() as scratch:
        spec = ours_trivial.spec(Path(scratch), count)
        spec = spec.model_copy(update={"pruner": PrunerSpec(name="successive_halving")})
        study = StudyFolder(Path(scratch) / "trivial")
        study.write_record(StudyRecord(name="trivial", spec=spec.content()))
        view = Milestones(max(1, count // 10))
        executor = RayExecutor(
            device="cpu", concurrency=2, expected_jobs=count, worker=ours_trivial.TrivialWorker
        )
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
        ending = _drive(spec, study, ReplayExecutor(no_curve), Milestones(1), count)
        seconds, size = time.perf_counter() - began, study.journal.stat().st_size / 1e6
        print(f"opened again in {seconds:.1f} s ({ending.reason}); journal {size:.1f} MB")


def no_curve(number: int, config: TrialConfig) -> Any:
    """Nothing is trained a second time."""
    raise AssertionError(f"trial {number} runs twice")


def _drive(spec: SweepSpec, study: StudyFolder, executor: Any, view: Any, count: int) -> Any:
    decider = OptunaDecider(spec, "trivial", open_storage(study))
    progress = Progress("eval_loss", False, planned=count)
    disk = Disk(study, spec.resources, spec.objectives[0])
    return Driver(study, decider, executor, spec.stop, view, progress, disk=disk).run()


def simulate(recorded: Recorded, executor: ReplayExecutor, count: int, sampler: str) -> float:
    """Play one sweep; returns its makespan in simulated seconds."""
    spec = policies.sweep_spec(
        recorded, SamplerSpec(name=sampler, seed=0), PrunerSpec(name="successive_halving")
    )
    spec = spec.model_copy(update={"stop": StopSpec(trials=count)})
    executor.start()
    decider = OptunaDecider(spec, "scale", memory())
    progress = Progress(planned=count, clock=executor.clock)
    with tempfile.TemporaryDirectory(dir=policies.scratch()) as folder:
        study = StudyFolder(Path(folder) / "scale")
        Driver(
            study, decider, executor, spec.stop, Milestones(count), progress,
            poll=3600.0, patience=None, ask_ahead=0,
        ).run()  # fmt: skip
    return executor.now


def row(asked: argparse.Namespace, recorded: Recorded, sampler: str, times: float) -> str:
    """One sweep, with a driver that takes its time and with one that takes none."""

    def curve(number: int, config: TrialConfig) -> Any:
        point = {
            policies.RANK: config.lora.r,
            policies.RATE: config.training["learning_rate"],
        }
        found = recorded.curve(point, random.Random(number).randrange(1000))
        longer = ("step_seconds", "eval_seconds", "load_seconds")
        return replace(found, **{name: getattr(found, name) * times for name in longer})

    startup, count = recorded.costs.startup, asked.trials or 2000
    makespans, executors = [], []
    for counts in (True, False):
        executor = ReplayExecutor(
            curve, asked.nodes, asked.devices, startup_seconds=startup, counts_driver=counts
        )
        makespans.append(simulate(recorded, executor, count, sampler))
        executors.append(executor)
    real = executors[0]
    used = real.busy_seconds / (real.now * asked.nodes * asked.devices)
    return (
        f"| {sampler} | {real.busy_seconds / count:.0f} | {makespans[0]:.0f} | {used:.1%} | "
        f"{real.driver_seconds / real.now:.1%} | {makespans[1] / makespans[0]:.1%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["trials", "devices"])
    parser.add_argument("--trials", type=int)
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--devices", type=int, default=8)
    asked = parser.parse_args()
    if asked.what == "trials":
        trials(asked.trials or 10_000)
        return
    recorded = Recorded.read(policies.CURVES)
    print(f"{asked.nodes} nodes of {asked.devices} devices, {asked.trials or 2000} trials")
    print("| sampler | seconds of a trial | makespan, s | devices in use | driver at work | "
          "makespan of a driver that takes no time / this one |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    for sampler in ("random", "tpe"):
        for times in (1.0, 10.0, 100.0):
            print(row(asked, recorded, sampler, times), flush=True)


if __name__ == "__main__":
    main()
