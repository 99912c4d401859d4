"""Packed jobs of two ranks each through a real local Ray."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from helpers.training.train import Material
from test_sweep.ray_backend.real_ray.test_packed import Sweep, attempts

from sweep.driver.executor import Evaluated, Finished, Interrupted, Job, Lost, Started, TrialRef
from sweep.ray_backend.executor import RayExecutor
from sweep.ray_backend.node.settings import RaySettings
from trial.config.packing_rules import packing_key


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("ray-packed-ranks"))


@pytest.fixture(scope="module")
def ranked() -> Iterator[RayExecutor]:
    settings = RaySettings(
        device="cpu", concurrency=1, devices_per_trial=2, pack=2, expected_jobs=8
    )
    made = RayExecutor(settings)
    made.start()
    yield made
    made.close()


HALF = {"max_steps": 6, "eval_steps": 3, "per_device_train_batch_size": 4}
"""Of a rank of two; one process by itself has 8 rows a batch."""


def test_two_ranks_share_trials_and_take_the_next_without_a_new_start(ranked, material):
    sweep = Sweep(ranked, material)
    numbers = [sweep.submit(lora={"r": r}, training={**HALF, "seed": r}) for r in (2, 3, 5)]
    other = sweep.submit(lora={"r": 17}, training=HALF)
    sweep.until(lambda: len(sweep.of(Finished)) == 4)
    found = {number: attempts(sweep.folders[number]) for number in (*numbers, other)}
    assert all(len(tries) == 1 for tries in found.values())
    assert {(tries[0]["devices"], tries[0]["slots"]) for tries in found.values()} == {(2, 2)}
    assert len({found[number][0]["pid"] for number in numbers}) == 1
    for number, events in sweep.of(Finished).items():
        config = sweep.configs[number]
        training = {**config.training, "per_device_train_batch_size": 8}
        update = {"packed": False, "training": training}
        _, alone = material.train(config.model_copy(update=update))
        assert events[0].result.eval_loss == pytest.approx(alone.eval_loss, abs=2e-5)


def test_a_dead_rank_costs_its_job_alone(ranked, material):
    """Rank 1, which writes nothing: its trials go on from their checkpoints in a new group."""
    sweep = Sweep(ranked, material)
    training = {**HALF, "max_steps": 10**5}
    both = [sweep.submit(data={"max_length": 40}, training=training) for _ in range(2)]
    # The checkpoint of an evaluation is there once the next one is reported.
    sweep.until(lambda: all(len(sweep.of(Evaluated).get(number, [])) > 1 for number in both))
    (group,) = [group for group in ranked.scheduler.groups if group.open]
    os.kill(ranked.cluster.ray.get(group.actors[1].pid.remote()), signal.SIGKILL)
    sweep.until(lambda: len(sweep.of(Lost)) == 2)
    assert "rank 1" in sweep.of(Lost)[both[0]][0].message
    for number in both:
        job = Job((TrialRef(number, sweep.folders[number]),), packing_key(sweep.configs[number]))
        ranked.submit(job)
    sweep.until(lambda: any(len(events) == 2 for events in sweep.of(Started).values()))
    started = [number for number, events in sweep.of(Started).items() if len(events) == 2]
    assert attempts(sweep.folders[started[0]])[-1]["resumed_from"] > 0
    for number in both:
        ranked.stop(number, "interrupt")
    sweep.until(lambda: len(sweep.of(Interrupted)) == 2)
