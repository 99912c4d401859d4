"""The driver's account of a run: device-seconds over retries and several devices."""

from __future__ import annotations

import pytest

from sweep.driver.progress import SweepProgress
from trial.store.records import Result, Seconds


def test_a_retried_trial_counts_each_of_its_device_seconds_once():
    now = [0.0]
    progress = SweepProgress(clock=lambda: now[0], devices_per_trial=2)
    progress.set_running(0)
    now[0] = 10.0
    assert progress.device_seconds == 20.0
    progress.set_waiting(0)
    now[0] = 15.0
    assert progress.device_seconds == 20.0
    progress.set_running(0)
    now[0] = 19.0
    assert progress.device_seconds == 28.0
    # A result holds the seconds of both attempts: 10 and 4.
    progress.add_result(0, Result(state="complete", seconds=Seconds(train=14.0), devices=2))
    assert progress.device_seconds == pytest.approx(28.0)
