"""Placement on a Ray of our own that is told to have HPUs."""

from __future__ import annotations

import helpers_nodes
import pytest
from helpers_nodes import COMPLETE, LOCKS, WAIT, NodeWorker
from helpers_placing import Bench

from sweep.executor import Finished
from sweep.ray_executor import RayExecutor


@pytest.mark.parametrize("devices", [3, 8])
def test_a_machine_that_cannot_hold_a_trial_is_refused(devices):
    executor = RayExecutor(device="hpu", devices_per_trial=devices, resources={"HPU": 4})
    try:
        with pytest.raises(ValueError, match=rf"devices_per_trial: .* got {devices}"):
            executor.start()
    finally:
        executor.close()


def test_single_cards_on_a_ray_of_our_own(tmp_path, monkeypatch):
    import ray

    ray.cloudpickle.register_pickle_by_value(helpers_nodes)
    # Module ids may be any; the sweep's own environment names them.
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "6,2")
    executor = RayExecutor(
        device="auto",
        resources={"HPU": 2},
        worker=NodeWorker,
        environment={LOCKS: str(tmp_path / "locks")},
    )
    try:
        executor.start()
        assert (executor.device, executor.slots()) == ("hpu", 2)
        made = Bench(executor, tmp_path)
        trials = [made.submit(WAIT) for _ in range(2)]
        seats = [made.seats(number)[0] for number in trials]
        assert sorted(seat["HABANA_VISIBLE_MODULES"] for seat in seats) == ["2", "6"]
        assert {seat["RANK"] for seat in seats} == {None}
        made.prune(trials[0])
        again = made.submit(COMPLETE)
        made.until(lambda: bool(made.of(Finished, again)))
        assert made.seats(again)[0]["pid"] == seats[0]["pid"]
    finally:
        executor.close()
