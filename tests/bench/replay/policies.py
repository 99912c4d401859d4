"""Which sampler and pruner find a good configuration soonest? Sweeps replayed from real curves.

python tests/bench/replay/policies.py [--seeds 20] [--first 0] [--slots 2] [--grid joint]
    [--only ours] [--policy NAME ...] [--jobs 2] [--json FILE]

The curves are full grids of real trials: `curves/tiny_llama.csv` (rank x learning rate) and
`curves/tiny_llama_joint.csv` (rank x alpha/r x learning rate x dropout), each over several seeds.
Each sweep is the real driver, study and trial folders with a replaying executor. What counts is the
device-seconds a sweep holds until the trial it would name its best is, on the mean of the recorded
seeds, within noise of the grid's best cell. Noise is the standard deviation of the difference of
two runs that differ in the seed alone.

Ray Tune is played by its own classes (`OptunaSearch`, `AsyncHyperBandScheduler`), called in the
order its controller calls them, one trial asked for ahead as it does; that controller is the
only part of it that is a model. It pays a worker's start-up for every trial (a new actor each), or
once with `reuse_actors`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from grids import MOST_TRIALS, Grid, grids, target
from ray_tune import RayTune

from sweep.driver.driver import Driver
from sweep.driver.executor import Event, Finished
from sweep.driver.interfaces import Decider
from sweep.driver.progress import SweepProgress
from sweep.driver.simulated_executor import RecordedCosts, RecordedGrid, SimulatedExecutor
from sweep.spec.spec import PrunerSpec, SamplerSpec
from sweep.storage.open import in_memory
from sweep.study.decider import OptunaDecider
from trial.config.trial_config import TrialConfig
from trial.store.folders import StudyFolder

PACK, SHARE = 4, 0.57
"""Trials that share a device, and what each takes of it over what it takes alone; measured by
`replay/record.py --share`."""
FORKED = 0.31
"""Seconds of start-up of a worker that is forked from a process with all imports done, as ours are
on CPUs (`sweep/ray_backend/fork_server.py`); measured by `replay/record.py --start`. It comes up
while Ray does, for which nobody pays here."""

IMPORTED = 3.45
"""Seconds of start-up of a process that imports everything for itself, as a peer's do; measured by
`replay/record.py --imports` on the machine of the recording."""


@dataclass
class Watch:
    """A view that looks for the moment at which the sweep's best is good enough."""

    executor: SimulatedExecutor
    devices: int
    truth: Callable[[int], float]
    goal: float
    counts_stopped: bool
    """Whether a trial that was stopped early may be named the best (Ray Tune's scope `last`)."""
    stop: Callable[[], None] = lambda: None
    best: float = np.inf
    reached: float | None = None
    ended: int = 0
    steps: int = 0

    def update(self, progress: SweepProgress) -> None: ...

    def note(self, text: str) -> None: ...

    def on_event(self, event: Event, progress: SweepProgress) -> None:
        if not isinstance(event, Finished) or self.reached is not None:
            return
        result = event.result
        self.ended, self.steps = self.ended + 1, self.steps + result.steps
        eligible = self.counts_stopped or result.state == "complete"
        if eligible and result.eval_loss is not None and result.eval_loss < self.best:
            self.best = result.eval_loss
            if self.truth(event.number) <= self.goal:
                self.reached = self.executor.now * self.devices
                self.stop()


@dataclass(frozen=True)
class Policy:
    """A way to run the sweep."""

    name: str
    sampler: SamplerSpec = field(default_factory=lambda: SamplerSpec(name="random"))
    pruner: PrunerSpec = field(default_factory=lambda: PrunerSpec(name="none"))
    ray: dict[str, Any] | None = None
    """Keywords of ASHAScheduler."""
    warm: bool = True
    startup: float = FORKED
    """Seconds of a worker's start."""
    pack: int = 1
    steps: tuple[int, ...] | None = None
    """Evaluations of a peer's trials, where they are not all that were recorded."""


def ours(
    name: str, sampler: str, pruner: str, s: Any = None, p: Any = None, evaluate: Any = "steps",
    **more: Any,
) -> Policy:  # fmt: skip
    tpe = {"multivariate": True, "group": True, "constant_liar": True} if sampler == "tpe" else {}
    return Policy(
        name,
        SamplerSpec(name=sampler, options={**tpe, **(s or {})}),
        PrunerSpec(name=pruner, options=p or {}, evaluate=evaluate),
        **more,
    )


def policies(recorded: RecordedGrid) -> list[Policy]:
    """The table's rows: ours first, then the peers'."""
    asha = {"max_t": len(recorded.steps)}
    plain = SamplerSpec(name="tpe")
    halving = {"reduction_factor": 2}
    default = ("tpe", "successive_halving")
    return [
        ours("ours: default", *default, p=halving),
        ours("ours: default, evaluated at its rungs", *default, p=halving, evaluate="rungs"),
        ours("ours: default, evaluated at its rungs, packed", *default, p=halving,
             evaluate="rungs", pack=PACK),
        ours("ours: default, packed", *default, p=halving, pack=PACK),
        ours("ours: default, start-up free", *default, p=halving, startup=0.0),
        ours("ours: default, workers not forked", *default, p=halving, startup=IMPORTED),
        ours("ours: default, first rung at the first evaluation", *default,
             p={**halving, "min_resource": recorded.steps[0]}),
        ours("ours: successive halving / 3", *default, p={"reduction_factor": 3}),
        ours("ours: successive halving / 4, Optuna's own", *default),
        ours("ours: median", "tpe", "median", p={"n_startup_trials": 4}),
        ours("ours: hyperband / 3", "tpe", "hyperband", p={"reduction_factor": 3,
             "max_resource": recorded.steps[-1]}),
        ours("ours: no pruner", "tpe", "none"),
        ours("ours: random, successive halving / 2", "random", "successive_halving", p=halving),
        Policy("random search", SamplerSpec(name="random")),
        Policy("plain TPE", plain),
        Policy("Ray Tune: OptunaSearch, ASHA", plain, ray=asha, warm=False, startup=IMPORTED),
        Policy("Ray Tune: the same, reuse_actors", plain, ray=asha, startup=IMPORTED),
        Policy("Ray Tune: evaluated half as often", plain, startup=IMPORTED, warm=False,
               ray={"max_t": len(recorded.steps) // 2}, steps=recorded.steps[1::2]),
        Policy("Ray Tune: reuse_actors, evaluated half as often", plain, startup=IMPORTED,
               ray={"max_t": len(recorded.steps) // 2}, steps=recorded.steps[1::2]),
        Policy("Ray Tune: reuse_actors, start-up free", plain, ray=asha, startup=0.0),
    ]  # fmt: skip


def play(grid: Grid, policy: Policy, seed: int, slots: int, goal: float) -> Watch:
    """One sweep of a policy, until it has reached the goal or run all its trials."""
    recorded, points = grid.recorded, {}

    def curve(number: int, config: TrialConfig) -> Any:
        points[number] = config.origin.params if config.origin else {}
        return recorded.curve(points[number], random.Random(f"{seed}/{number}").randrange(1000))

    executor = SimulatedExecutor(
        curve, devices=slots, startup_seconds=policy.startup, warm=policy.warm,
        pack=policy.pack, share=SHARE if policy.pack > 1 else 1.0,
    )  # fmt: skip
    executor.start()
    np.random.seed(seed)
    spec = grid.spec(policy.sampler.model_copy(update={"seed": seed}), policy.pruner)
    decider: Decider
    if policy.ray is None:
        decider = OptunaDecider(spec, "replay", in_memory())
    else:
        decider = RayTune(grid.drawn, seed, policy.ray, policy.steps and list(policy.steps))
    shown = policy.steps or (spec.base.get("evaluation") or {}).get("steps") or recorded.steps

    def truth(number: int) -> float:
        """What the trial is worth: the best that it was seen to be, on the mean of the seeds."""
        losses = zip(recorded.steps, recorded.at(points[number]), strict=True)
        return min(loss for step, loss in losses if step in {*shown, recorded.steps[-1]})

    watch = Watch(
        executor, slots, truth, goal,
        counts_stopped=policy.ray is not None,
    )  # fmt: skip
    progress = SweepProgress(planned=MOST_TRIALS, clock=executor.clock)
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        driver = Driver(
            StudyFolder(Path(folder) / "replay"), decider, executor, spec.stop, watch, progress,
            poll=3600.0, patience=None, ask_ahead=0,
        )  # fmt: skip
        watch.stop = driver.interrupt
        driver.run()
    return watch


def scratch() -> str | None:
    """In memory where that can be: nothing here needs to be durable."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@dataclass(frozen=True)
class Outcome:
    """What one sweep came to."""

    spent: float
    """Device-seconds until the goal, or all that it took."""
    trials: int
    steps: int
    arrived: bool


def outcome(grid: Grid, policy: Policy, slots: int, goal: float, seed: int) -> Outcome:
    """One sweep, played."""
    watch = play(grid, policy, seed, slots, goal)
    spent = watch.executor.now * slots if watch.reached is None else watch.reached
    return Outcome(spent, watch.ended, watch.steps, watch.reached is not None)


def row(name: str, found: Sequence[Outcome]) -> dict[str, Any]:
    """Medians and spread of one policy; a sweep that did not arrive counts with all it spent."""
    low, middle, high = np.percentile([one.spent for one in found], [25, 50, 75])
    return {
        "policy": name,
        "device_seconds": round(float(middle), 1),
        "quartiles": [round(float(low), 1), round(float(high), 1)],
        "trials": float(np.median([one.trials for one in found])),
        "steps": float(np.median([one.steps for one in found])),
        "arrived": sum(one.arrived for one in found),
        "seeds": len(found),
    }


def measure(
    pool: Executor, grid: Grid, policy: Policy, seeds: Sequence[int], slots: int, goal: float
) -> dict[str, Any]:
    """One policy's row."""
    one = partial(outcome, grid, policy, slots, goal)
    return row(policy.name, list(pool.map(one, seeds, chunksize=5)))


HEAD = """\
| policy | device-seconds: median (quartiles) | beside Ray Tune | trials | steps | arrived |
|---|---|---|---|---|---|"""


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    peer = next((r for r in rows if r["policy"] == "Ray Tune: OptunaSearch, ASHA"), None)
    lines = [HEAD]
    for r in rows:
        ratio = f"{r['device_seconds'] / peer['device_seconds']:.2f}" if peer else "-"
        low, high = r["quartiles"]
        lines.append(
            f"| {r['policy']} | {r['device_seconds']:.0f} ({low:.0f} to {high:.0f}) | {ratio} "
            f"| {r['trials']:g}"
            f" | {r['steps']:g} | {r['arrived']} of {r['seeds']} |"
        )
    return "\n".join(lines)


def floor(costs: RecordedCosts, steps: Sequence[int], slots: int) -> float:
    """Device-seconds before which no sweep can name a trial it has trained whole.

    Every device is held from the start until then: a worker's start-up and one whole trial.
    """
    whole = costs.load + steps[-1] * costs.step + len(steps) * costs.evaluation
    return slots * (FORKED + whole)


def table(grid: Grid, asked: argparse.Namespace) -> dict[str, Any]:
    """All policies on one grid."""
    recorded = grid.recorded
    best, goal = target(recorded, asked.noise)
    seeds = range(asked.first, asked.first + asked.seeds)
    with ProcessPoolExecutor(asked.jobs, multiprocessing.get_context("spawn")) as pool:
        rows = [
            measure(pool, grid, policy, seeds, asked.slots, goal)
            for policy in policies(recorded)
            if asked.only in policy.name and policy.name in (asked.policy or [policy.name])
        ]
    lowest = floor(recorded.costs, recorded.steps, asked.slots)
    finals = recorded.losses.min(axis=-1).mean(axis=-1)
    return {
        "grid": grid.name, "best": best, "goal": goal, "cells": finals.size,
        "good_cells": int((finals <= goal).sum()), "floor": lowest, "rows": rows,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--noise", type=float, default=1.0, help="widths of the noise allowed")
    parser.add_argument("--grid", default="", help="grids with this in their name")
    parser.add_argument("--only", default="", help="policies with this in their name")
    parser.add_argument("--policy", action="append", help="a policy's name; may be repeated")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="sweeps at a time")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    tables = [table(grid, asked) for grid in grids() if asked.grid in grid.name]
    for found in tables:
        print(
            f"\n{found['grid']}: best cell {found['best']:.4f}, within noise {found['goal']:.4f} "
            f"({found['good_cells']} of {found['cells']} cells); {asked.slots} devices, "
            f"no sooner than {found['floor']:.1f} device-seconds\n"
        )
        print(markdown(found["rows"]))
    for found in tables:
        told = {row["policy"]: row["device_seconds"] for row in found["rows"]}
        print(json.dumps(told | {"floor": round(found["floor"], 1)}))
    if asked.json:
        asked.json.write_text(json.dumps(tables, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
