"""Sweeps replayed from recorded learning curves: the executor, its clock, and the curves."""

from __future__ import annotations

import argparse

import pytest
from bench.scale.nodes import CURVES, RANK, RATE, simulate, sweep_spec
from helpers.sweeps import fakes

from sweep.driver.driver import Driver
from sweep.driver.executor import Evaluated, Finished, Interrupted, Job, Started, TrialRef
from sweep.driver.progress import SweepProgress
from sweep.driver.simulated_executor import RecordedCurve, RecordedGrid, SimulatedExecutor
from sweep.spec.dimension import Choices
from sweep.spec.spec import StopSpec, SweepSpec
from sweep.storage.open import in_memory, open_storage
from sweep.study.decider import OptunaDecider
from trial.config.trial_config import TrialConfig
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import StudyRecord

CURVE = RecordedCurve(steps=(2, 4, 6), losses=(3.0, 1.0, 2.0), step_seconds=5.0, eval_seconds=1.0)


@pytest.fixture
def executor() -> SimulatedExecutor:
    made = SimulatedExecutor(lambda number, config: CURVE, devices=2, startup_seconds=10.0)
    made.start()
    return made


def submit(executor: SimulatedExecutor, path, number: int) -> TrialFolder:
    folder = TrialFolder.create(path / str(number), TrialConfig())
    executor.submit(Job((TrialRef(number, folder.path),)))
    return folder


def play(executor: SimulatedExecutor, until: float = 1e6) -> list[tuple[float, object]]:
    """All that happens until nothing runs, with its times."""
    seen = []
    while executor.running and executor.now < until:
        seen += [(executor.now, event) for event in executor.events(until - executor.now)]
    return seen


def test_time_passes_as_recorded_and_a_worker_starts_once(executor, tmp_path):
    folder = submit(executor, tmp_path, 0)
    seen = play(executor)
    assert [(time, type(event)) for time, event in seen] == [
        (10.0, Started), (21.0, Evaluated), (32.0, Evaluated), (43.0, Evaluated), (43.0, Finished),
    ]  # fmt: skip
    result = folder.read_result()
    assert (result.state, result.eval_loss) == ("complete", 1.0)
    assert (result.best_step, result.steps) == (4, 6)
    assert [row.eval_loss for row in folder.read_evaluations()] == [3.0, 1.0, 2.0]
    began = executor.now
    submit(executor, tmp_path, 1)
    assert play(executor)[-1][0] - began == 33.0
    assert executor.busy_seconds == 43.0 + 33.0


def test_a_pruned_trial_leaves_its_device_a_step_later(executor, tmp_path):
    folder = submit(executor, tmp_path, 0)
    play(executor, until=21.0)
    executor.stop(0, "prune")
    ((time, event),) = play(executor)
    assert (time, event.result.state, event.result.eval_loss) == (26.0, "pruned", 3.0)
    assert folder.read_result() == event.result


def test_an_interrupted_trial_goes_on_where_it_was(executor, tmp_path):
    folder = submit(executor, tmp_path, 0)
    play(executor, until=32.0)
    executor.stop(0, "interrupt")
    assert isinstance(play(executor)[-1][1], Interrupted)
    executor.submit(Job((TrialRef(0, folder.path),)))
    again = [event for _, event in play(executor)]
    assert [event.evaluation.step for event in again if isinstance(event, Evaluated)] == [6]
    assert len(folder.read_evaluations()) == 3


def test_the_recorded_grid_is_whole_and_is_played_at_its_points():
    recorded = RecordedGrid.read(CURVES)
    assert recorded.losses.shape == (5, 7, 3, len(recorded.steps))
    point = {RANK: recorded.axes[RANK][2], RATE: recorded.axes[RATE][3]}
    assert recorded.at(point, 1) == pytest.approx(recorded.losses[2, 3, 1].tolist())
    below, above = recorded.losses[2, 3, 1], recorded.losses[2, 4, 1]
    middle = (recorded.axes[RATE][3] * recorded.axes[RATE][4]) ** 0.5
    assert recorded.at({**point, RATE: middle}, 1) == pytest.approx(((below + above) / 2).tolist())
    assert recorded.at({RANK: 1e9, RATE: 1e9}, 0) == pytest.approx(
        recorded.losses[4, 6, 0].tolist()
    )


def test_a_grid_with_a_hole_is_refused(tmp_path):
    lines = CURVES.read_text().splitlines()
    (tmp_path / "hole.csv").write_text("\n".join([*lines[:7], *lines[8:]]))
    with pytest.raises(ValueError, match="do not fill a grid"):
        RecordedGrid.read(tmp_path / "hole.csv")


def test_a_whole_sweep_is_played_and_the_same_twice(tmp_path):
    recorded = RecordedGrid.read(CURVES)
    spec = sweep_spec(recorded, 30, "tpe")
    bests = []
    for name in ("first", "second"):
        study = StudyFolder(tmp_path / name)
        study.write_record(StudyRecord(name=name, spec=spec.content()))

        def curve(number: int, config: TrialConfig) -> RecordedCurve:
            point = {RANK: config.lora.r, RATE: config.training["learning_rate"]}
            return recorded.curve(point, number)

        executor = SimulatedExecutor(curve, devices=3)
        executor.start()
        decider = OptunaDecider(spec, name, open_storage(study))
        progress = SweepProgress(planned=30, clock=executor.clock)
        view = argparse.Namespace(
            update=lambda p: None, note=lambda t: None, on_event=lambda e, p: None
        )
        driver = Driver(
            study, decider, executor, spec.stop, view, progress, patience=None, ask_ahead=0
        )
        driver.run()
        assert progress.ended == 30
        assert progress.states["pruned"] > 5
        bests.append((progress.best.value, executor.now))
    assert bests[0] == bests[1]
    assert bests[0][0] < recorded.losses[..., -1].min() + 0.2


def test_simulated_nodes_are_kept_busy(tmp_path):
    asked = argparse.Namespace(trials=60, nodes=2, devices=4, seconds=3000.0, sampler="random")
    measured = simulate(asked, tmp_path)
    assert measured["trials"] == measured["reopened_trials"] == 60
    assert measured["driver_busy"] < 0.05
    assert 0.6 < measured["utilisation"] <= 1.0


STEPS = (10, 20)
LONG = RecordedCurve(STEPS, (2.0, 1.0), step_seconds=1.0, eval_seconds=5.0, load_seconds=2.0)
ALONE = 2 + 10 + 5 + 10 + 5
RANKS = (1, 2, 4, 8)


def ranks(path, **settings) -> tuple[SimulatedExecutor, StudyFolder]:
    """Four trials, one for each rank."""
    executor = SimulatedExecutor(lambda number, config: LONG, startup_seconds=100.0, **settings)
    executor.start()
    spec = SweepSpec(
        name="ranks", space={"lora.r": (Choices(choices=RANKS),)}, sampler={"name": "grid"}
    )
    folder, decider = StudyFolder(path / "ranks"), OptunaDecider(spec, "ranks", in_memory())
    progress = SweepProgress(clock=executor.clock)
    Driver(
        folder, decider, executor, StopSpec(), fakes.RecordingView(), progress,
        poll=1e9, patience=None, ask_ahead=0,
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
    executor, folder = ranks(tmp_path, **settings)
    assert executor.now == pytest.approx(makespan)
    results = [trial.read_result() for _, trial in folder.all_trials()]
    assert [result.eval_loss for result in results] == [1.0] * len(RANKS)


def test_device_seconds_are_the_devices_own(tmp_path):
    executor, _ = ranks(tmp_path, devices=1, pack=4, share=0.5)
    assert executor.busy_seconds == pytest.approx(executor.now)


def test_the_clock_can_wait_for_the_driver(tmp_path):
    timed, _ = ranks(tmp_path / "a", devices=2, counts_driver=True)
    ideal, _ = ranks(tmp_path / "b", devices=2)
    # What the driver thinks while trials run keeps no device waiting.
    assert ideal.now < timed.now <= ideal.now + timed.driver_seconds


def test_a_grid_of_losses_alone_takes_the_seconds_of_another():
    joint = CURVES.with_name("tiny_llama_joint.csv")
    with pytest.raises(ValueError, match="it holds no seconds"):
        RecordedGrid.read(joint)
    timed = RecordedGrid.read(CURVES)
    recorded = RecordedGrid.read(joint, costs=timed.costs)
    assert recorded.costs == timed.costs
    point = {"alpha_over_r": 1.4, "lora.r": 8, "lora.lora_dropout": 0.0, RATE: 7e-3}
    undropped, dropped = recorded.at(point), recorded.at({**point, "lora.lora_dropout": 0.2})
    halfway = recorded.at({**point, "lora.lora_dropout": 0.1})
    # An axis that begins at 0 has no logarithm: halfway is halfway.
    middle = [(one + other) / 2 for one, other in zip(undropped, dropped, strict=True)]
    assert halfway == pytest.approx(middle)
    assert undropped != dropped
