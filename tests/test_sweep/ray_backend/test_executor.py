"""The Ray executor against a real local Ray; only the training inside the actor is scripted."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from helpers.ray import scripted_worker
from helpers.ray.scripted_worker import ScriptedWorker, UnfitWorker

from sweep.driver.executor import (
    Evaluated,
    Event,
    ExecutorLostError,
    Finished,
    Interrupted,
    Job,
    Lost,
    Started,
    TrialRef,
)
from sweep.ray_backend.executor import RESTART_SECONDS, RESTARTS, RayExecutor, Restarts
from sweep.ray_backend.node.settings import RaySettings
from trial.config.sections import LoraSection
from trial.config.trial_config import TrialConfig
from trial.store.folders import TrialFolder


@pytest.fixture(scope="module")
def executor() -> Iterator[RayExecutor]:
    settings = RaySettings(device="cpu", concurrency=2, worker=ScriptedWorker, hang_seconds=5.0)
    made = RayExecutor(settings)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    # The tests' folder is not on a worker's path: send the class itself.
    ray.cloudpickle.register_pickle_by_value(scripted_worker)
    made.start()
    yield made
    made.close()


@pytest.fixture
def submit(executor, tmp_path) -> Callable[[int], int]:
    numbers = itertools.count()

    def submit(script: int) -> int:
        number = next(numbers)
        config = TrialConfig(lora=LoraSection(r=script))
        folder = TrialFolder.create(tmp_path / f"{number:05d}", config)
        executor.submit(Job((TrialRef(number, folder.path),)))
        return number

    submit.folder = lambda number: tmp_path / f"{number:05d}"
    return submit


def gather(executor: RayExecutor, until: Callable[[list[Event]], bool]) -> list[Event]:
    found: list[Event] = []
    while not until(found):
        fresh = executor.events(60.0)
        if not fresh:
            raise TimeoutError(f"nothing happened for a minute after {found}")
        found += fresh
    return found


def ends(count: int) -> Callable[[list[Event]], bool]:
    final = (Finished, Interrupted, Lost)
    return lambda found: sum(isinstance(event, final) for event in found) >= count


def test_events_arrive_in_order_and_complete(executor, submit):
    number = submit(1)
    events = gather(executor, ends(1))
    assert [type(event) for event in events] == [Started, Evaluated, Evaluated, Finished]
    assert {event.number for event in events} == {number}
    assert [event.evaluation.step for event in events[1:3]] == [1, 2]


def test_workers_are_warm_and_threads_are_divided(executor, submit):
    pids = set()
    for _ in range(3):
        submit(1)
        result = gather(executor, ends(1))[-1].result
        pids.add(result.metrics["pid"])
        assert result.metrics["threads"] == 1
    assert len(pids) == 1


@pytest.mark.parametrize(("reason", "kind"), [("prune", Finished), ("interrupt", Interrupted)])
def test_a_running_trial_hears_that_it_should_stop(executor, submit, reason, kind):
    number = submit(2)
    gather(executor, lambda found: any(isinstance(event, Started) for event in found))
    executor.stop(number, reason)
    assert isinstance(gather(executor, ends(1))[-1], kind)


def test_a_stop_that_comes_before_the_start_is_heard(executor, submit):
    number = submit(2)
    executor.stop(number, "interrupt")
    assert isinstance(gather(executor, ends(1))[-1], Interrupted)


def test_a_dead_worker_is_reported_and_replaced(executor, submit):
    dead = submit(3)
    alive = submit(1)
    events = gather(executor, ends(2))
    assert [event.number for event in events if isinstance(event, Lost)] == [dead]
    assert [event.number for event in events if isinstance(event, Finished)] == [alive]
    submit(1), submit(1)
    assert len(gather(executor, ends(2))) == 8


def test_a_worker_that_cannot_start_says_why_in_one_line(executor, submit, monkeypatch):
    submit(3), submit(3)
    gather(executor, ends(2))
    unfit = executor.cluster.ray.remote(UnfitWorker)
    monkeypatch.setattr(executor.cluster, "actor_class", unfit)
    submit(1)
    last = gather(executor, ends(1))[-1]
    assert last.message == "the worker could not start: ModuleNotFoundError: No module named 'peft'"


def test_a_worker_that_cannot_be_cleaned_is_replaced(executor, submit):
    submit(4)
    spoiled = gather(executor, ends(1))[-1].result.metrics["pid"]
    submit(1), submit(1)
    finished = [e for e in gather(executor, ends(2)) if isinstance(e, Finished)]
    assert spoiled not in {event.result.metrics["pid"] for event in finished}


@pytest.mark.parametrize("script", [6, 7], ids=["its thread", "its process"])
def test_a_hung_trial_is_ended_and_its_worker_replaced(executor, submit, script):
    number = submit(script)
    events = gather(executor, ends(1))
    assert (events[-1].number, events[-1].kind) == (number, "hung")
    submit(1), submit(1)
    assert all(not isinstance(event, Lost) for event in gather(executor, ends(2)))


def test_an_exception_that_escapes_the_trial_is_still_a_result(executor, submit, tmp_path):
    number = submit(5)
    event = gather(executor, ends(1))[-1]
    assert event.result.cause.message == "MemoryError: cannot allocate"
    assert TrialFolder(tmp_path / f"{number:05d}").read_result() == event.result


def of_ray(program: str) -> psutil.Process:
    """The process of Ray's that runs under this driver."""
    children = psutil.Process().children(recursive=True)
    return next(each for each in children if program in " ".join(each.cmdline()))


@pytest.mark.parametrize("program", ["raylet/raylet", "gcs_server"])
def test_trials_go_on_with_a_new_ray_when_a_process_of_rays_ends(executor, submit, program):
    executor.restarts = Restarts()
    handler = signal.getsignal(signal.SIGTERM)
    running, _ = submit(2), submit(1)
    started = gather(executor, lambda found: sum(isinstance(e, Started) for e in found) == 2)
    started += gather(executor, ends(1)) if not ends(1)(started) else []
    before = executor.cluster.ray.get(executor.scheduler.groups[0].up)
    of_ray(program).kill()
    begun = time.monotonic()
    (lost,) = gather(executor, ends(1))
    assert time.monotonic() - begun < 30
    # Nothing that ended before is given back, and the trial is no failure.
    assert (lost.number, lost.again) == (running, True)
    assert program.split("/")[0] in lost.message
    assert not psutil.pid_exists(before)
    assert executor.capacity() == 2
    executor.submit(Job((TrialRef(running, submit.folder(running)),)))
    executor.stop(running, "prune")
    assert isinstance(gather(executor, ends(1))[-1], Finished)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_stop_before_ray_is_there_again_is_harmless(executor):
    executor.stop(7, "interrupt")
    assert executor.events(0.0) == []


def test_ray_is_not_started_again_for_ever():
    now = [0.0]
    restarts = Restarts(clock=lambda: now[0])
    for _ in range(RESTARTS):
        restarts.note("its raylet ended")
        now[0] += 60.0
    with pytest.raises(ExecutorLostError, match=f"{RESTARTS + 1} times .* its raylet ended"):
        restarts.note("its raylet ended")
    now[0] += RESTART_SECONDS
    restarts.note("its raylet ended")


CLOSING = """
import psutil
from sweep.ray_backend.node.settings import RaySettings
from sweep.ray_backend.executor import RayExecutor

executor = RayExecutor(RaySettings(device="cpu", concurrency=1, expected_jobs=1))
executor.start()
started = psutil.Process().children(recursive=True)
executor.close()
_, alive = psutil.wait_procs(started, timeout=30)
print(len(started) > 2, [process.name() for process in alive])
"""


def test_closing_leaves_no_process():
    done = subprocess.run(
        [sys.executable, "-c", CLOSING], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "True []"
