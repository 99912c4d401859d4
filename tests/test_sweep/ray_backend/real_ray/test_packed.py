"""Packed jobs through a real local Ray: trials join, leave, and wait for their kind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.training.train import DEVICE, Material

from sweep.driver.executor import (
    Evaluated,
    Event,
    Finished,
    Interrupted,
    Job,
    Lost,
    Started,
    TrialRef,
)
from sweep.ray_backend.executor import RayExecutor
from sweep.ray_backend.node.settings import RaySettings
from trial.config.packing_rules import packing_key
from trial.config.trial_config import TrialConfig


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("ray-packed"))


@pytest.fixture(scope="module")
def executor() -> Iterator[RayExecutor]:
    made = RayExecutor(RaySettings(device=DEVICE, concurrency=1, pack=2, expected_jobs=8))
    made.start()
    yield made
    made.close()


class Sweep:
    """Trials given to an executor, and all events of them."""

    def __init__(self, executor: RayExecutor, material: Material) -> None:
        self.executor = executor
        self.material = material
        self.seen: list[Event] = []
        self.configs: list[TrialConfig] = []
        self.folders: list[Path] = []

    def submit(self, **sections: object) -> int:
        config = self.material.config(packed=True, **sections)
        number = len(self.configs)
        folder = self.material.folder(config)
        self.configs.append(config)
        self.folders.append(folder.path)
        self.executor.submit(Job((TrialRef(number, folder.path),), packing_key(config)))
        return number

    def until(self, done: Callable[[], bool]) -> None:
        while not done():
            fresh = self.executor.events(60.0)
            if not fresh:
                raise TimeoutError(f"nothing happened for a minute after {self.seen}")
            self.seen += fresh

    def of(self, kind: type) -> dict[int, list[Event]]:
        found: dict[int, list[Event]] = {}
        for event in self.seen:
            if isinstance(event, kind):
                found.setdefault(event.number, []).append(event)
        return found


def test_trials_share_a_worker_and_end_as_alone(executor, material):
    sweep = Sweep(executor, material)
    short = {"max_steps": 6, "eval_steps": 3}
    shared = [sweep.submit(lora={"r": r}, training={**short, "seed": r}) for r in (2, 3, 5)]
    # Of another kind: it waits until the packed job has drained, as does what trains alone.
    other = sweep.submit(lora={"r": 17}, training=short)
    whole = sweep.submit(lora={"r": 0}, training=short)
    assert executor.capacity() == 1
    sweep.until(lambda: len(sweep.of(Finished)) == 5)
    finished = {number: events[0].result for number, events in sweep.of(Finished).items()}
    assert {result.state for result in finished.values()} == {"complete"}
    assert all(len(events) == 2 for events in sweep.of(Evaluated).values())
    attempts = [path.joinpath("attempts.jsonl").read_text() for path in sweep.folders]
    assert ['"slots":2' in attempts[number] for number in (*shared, other)] == [True] * 4
    assert '"slots":1' in attempts[whole]
    for number in (*shared, other):
        config = sweep.configs[number].model_copy(update={"packed": False})
        _, alone = material.train(config)
        assert finished[number].eval_loss == pytest.approx(alone.eval_loss, abs=2e-5)


def test_a_trial_is_pruned_and_one_interrupted_beside_it(executor, material):
    sweep = Sweep(executor, material)
    training = {"max_steps": 10**5, "eval_steps": 3}
    first, second = (sweep.submit(training=training) for _ in range(2))
    waiting = sweep.submit(training=training)
    assert executor.capacity() == 2
    sweep.until(lambda: len(sweep.of(Evaluated)) == 2)
    assert waiting not in sweep.of(Started)
    executor.stop(first, "prune")
    sweep.until(lambda: first in sweep.of(Finished) and waiting in sweep.of(Started))
    assert sweep.of(Finished)[first][0].result.state == "pruned"
    late = sweep.submit(training=training)
    for number in (late, second, waiting):
        executor.stop(number, "interrupt")
    sweep.until(lambda: len(sweep.of(Interrupted)) == 3)
    assert not sweep.folders[late].joinpath("attempts.jsonl").exists()


def test_a_worker_that_dies_with_several_trials_is_given_half_as_many(executor, material):
    """As one that the kernel kills for its memory; the trials go on from their checkpoints."""
    sweep = Sweep(executor, material)
    training = {"max_steps": 10**5, "eval_steps": 3}
    both = [sweep.submit(data={"max_length": 40}, training=training) for _ in range(2)]
    sweep.until(lambda: len(sweep.of(Evaluated)) == 2)
    (pid,) = {attempts(sweep.folders[number])[-1]["pid"] for number in both}
    assert attempts(sweep.folders[both[0]])[-1]["slots"] == 2
    os.kill(pid, signal.SIGKILL)
    sweep.until(lambda: len(sweep.of(Lost)) == 2)
    for number in both:
        job = Job((TrialRef(number, sweep.folders[number]),), packing_key(sweep.configs[number]))
        executor.submit(job)
    sweep.until(lambda: any(len(events) == 2 for events in sweep.of(Started).values()))
    again = [attempts(sweep.folders[number])[1:] for number in both]
    for number in both:
        executor.stop(number, "interrupt")
    sweep.until(lambda: len(sweep.of(Interrupted)) == 2)
    assert [attempt["slots"] for found in again for attempt in found] == [1]


def attempts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
