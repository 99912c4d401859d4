"""The replaying executor: recorded curves, a simulated clock, the real driver and study."""

from __future__ import annotations

import csv
import math

import fakes
import pytest

from sweep.dimension import Choices
from sweep.driver import Driver
from sweep.progress import Progress
from sweep.replay import PHASES, Curve, Recorded, ReplayExecutor
from sweep.spec import StopSpec, SweepSpec
from sweep.study import OptunaDecider, memory
from trial.folder import StudyFolder

STEPS = (10, 20)
CURVE = Curve(STEPS, (2.0, 1.0), step_seconds=1.0, eval_seconds=5.0, load_seconds=2.0)
ALONE = 2 + 10 + 5 + 10 + 5
RANKS = (1, 2, 4, 8)


def play(tmp_path, *, curve=CURVE, pruner="none", **settings) -> tuple[ReplayExecutor, StudyFolder]:
    """Four trials, one for each rank."""
    executor = ReplayExecutor(lambda number, config: curve, startup_seconds=100.0, **settings)
    executor.start()
    spec = SweepSpec(
        name="played",
        space={"lora.r": (Choices(choices=RANKS),)},
        sampler={"name": "grid"},
        pruner={"name": pruner},
    )
    folder = StudyFolder(tmp_path / "played")
    progress = Progress(clock=executor.clock)
    Driver(
        folder, OptunaDecider(spec, "played", memory()), executor, StopSpec(), fakes.Silent(),
        progress, poll=1e9, patience=None, ask_ahead=0,
    ).run()  # fmt: skip
    return executor, folder


@pytest.mark.parametrize(
    ("settings", "makespan"),
    [
        ({"devices": 1}, 100 + 4 * ALONE),
        ({"devices": 2}, 100 + 2 * ALONE),
        ({"devices": 1, "nodes": 2}, 100 + 2 * ALONE),
        ({"devices": 1, "warm": False}, 4 * (100 + ALONE)),
        # Four at once, each for half of what it takes alone.
        ({"devices": 1, "pack": 4, "share": 0.5}, 100 + 4 * ALONE * 0.5),
        ({"devices": 2, "pack": 2, "share": 1.0}, 100 + 2 * ALONE),
    ],
)
def test_time_is_what_the_devices_take(tmp_path, settings, makespan):
    executor, folder = play(tmp_path, **settings)
    assert executor.now == pytest.approx(makespan)
    results = [trial.read_result() for _, trial in folder.all_trials()]
    assert [result.value for result in results] == [1.0] * len(RANKS)
    assert all(
        [row.step for row in t.read_evaluations()] == [10, 20] for _, t in folder.all_trials()
    )


def test_device_seconds_are_the_devices_own(tmp_path):
    executor, _ = play(tmp_path, devices=1, pack=4, share=0.5)
    assert executor.busy_seconds == pytest.approx(executor.now)


def test_a_pruned_trial_leaves_one_step_later(tmp_path):
    executor = ReplayExecutor(lambda number, config: CURVE)
    executor.start()
    decider = fakes.ScriptedDecider(prune=lambda number, step: True)
    folder = StudyFolder(tmp_path / "pruned")
    Driver(
        folder, decider, executor, StopSpec(trials=1), fakes.Silent(),
        Progress(planned=1, clock=executor.clock), poll=1e9, patience=None, ask_ahead=0,
    ).run()  # fmt: skip
    assert executor.now == pytest.approx(2 + 10 + 5 + 1)
    assert folder.trial(0).read_result().state == "pruned"


def test_the_clock_can_wait_for_the_driver(tmp_path):
    timed, _ = play(tmp_path / "a", devices=2, counts_driver=True)
    ideal, _ = play(tmp_path / "b", devices=2)
    # What the driver thinks while trials run keeps no device waiting.
    assert ideal.now < timed.now <= ideal.now + timed.driver_seconds


def test_curves_between_the_points_of_the_grid(tmp_path):
    path = tmp_path / "grid.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["lora.r", "training.seed", *PHASES, 5, 10])
        for rank in (2, 8):
            for seed in (1, 2):
                writer.writerow([rank, seed, *[1.0] * len(PHASES), rank + seed, rank])
    recorded = Recorded.read(path)
    assert recorded.at({"lora.r": 2}) == (3.5, 2.0)
    assert recorded.at({"lora.r": 8}, seed=1) == (10.0, 8.0)
    # Half-way in the logarithm of the rank.
    assert recorded.at({"lora.r": math.sqrt(2 * 8)}) == pytest.approx((6.5, 5.0))
    assert recorded.at({"lora.r": 99}) == recorded.at({"lora.r": 8})
    assert recorded.costs.step == pytest.approx(2.0 / 10)


def test_a_grid_with_a_hole_is_refused(tmp_path):
    path = tmp_path / "grid.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["lora.r", "training.seed", *PHASES, 5])
        for rank, seed in ((2, 1), (2, 2), (8, 1)):
            writer.writerow([rank, seed, *[1.0] * len(PHASES), 3.0])
    with pytest.raises(ValueError, match="do not fill a grid"):
        Recorded.read(path)
