"""A sweep that is asked to leave, that loses its terminal, and whose machine is short of room."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from faults import kill_sweeps
from faults.sweeps.killed_sweep import Sweep
from faults.sweeps.kills import KILLS

from trial.training.checkpoints import Checkpoints

SLOW = """
import os, time
from trial.objectives.losses import sft

def loss(model, batch):
    with open(os.environ["SLOW_STEPS"], "a") as file:
        file.write("begun ")
    time.sleep(float(os.environ["SLOW_SECONDS"]))
    return sft(model, batch)
"""
"""An objective whose steps take as long as they are told, and say when they begin."""

LIMIT_SECONDS = 30.0
"""What Kubernetes waits between SIGTERM and SIGKILL."""


@pytest.fixture
def faults() -> Iterator[kill_sweeps.Faults]:
    # A short path: Ray's sockets lie below it.
    root = Path(tempfile.mkdtemp(prefix="gf"))
    made = kill_sweeps.Faults(0, root, rates=(1e-2,))
    yield made
    made.close()
    shutil.rmtree(root)


@pytest.fixture
def slow(faults, monkeypatch) -> Sweep:
    """A sweep whose first step is at hand, and will be for a while."""
    (faults.root / "slow_objective.py").write_text(SLOW)
    path = os.pathsep.join([str(faults.root), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("SLOW_STEPS", str(faults.root / "steps"))
    sweep = faults.sweep("s", resources={"concurrency": 1})
    content = yaml.safe_load(sweep.source.read_text())
    content["base"]["objective"] = "slow_objective:loss"
    sweep.source.write_text(yaml.safe_dump(content))
    return sweep


def leave(faults: kill_sweeps.Faults, sweep: Sweep, kind: str) -> None:
    """Send the signal while the second step is computed; what must hold then."""
    driver, steps = sweep.start(), faults.root / "steps"
    until = time.monotonic() + 120
    while not steps.exists() or len(steps.read_text().split()) < 2:
        assert driver.poll() is None, sweep.output.read_text()
        assert time.monotonic() < until
        time.sleep(0.05)
    begun = time.monotonic()
    KILLS[kind](sweep, driver)
    code = driver.wait(LIMIT_SECONDS)
    said = sweep.output.read_text()
    assert code == 130, said
    assert "go on with: gaudi-sweep run" in said
    assert "Traceback" not in said
    assert time.monotonic() - begun < LIMIT_SECONDS
    sweep.check_clean()
    # No evaluation has come yet: this checkpoint was written because of the signal.
    assert Checkpoints(sweep.study.trial(0)).newest().name == "checkpoint-2"
    assert sweep.study.trial(0).read_evaluations() == []
    sweep.check()


def test_a_signal_to_the_group_writes_a_checkpoint_after_the_step_at_hand(
    faults, slow, monkeypatch
):
    monkeypatch.setenv("SLOW_SECONDS", "1")
    leave(faults, slow, "sigterm group")


@pytest.mark.faults
@pytest.mark.parametrize(
    "kind", ["sigterm", "sigterm group", "sigterm session", "sighup group", "sighup session"]
)
def test_a_step_of_14_seconds_is_waited_for(faults, slow, kind, monkeypatch):
    monkeypatch.setenv("SLOW_SECONDS", "14")
    leave(faults, slow, kind)


@pytest.mark.faults
def test_the_second_signal_does_not_wait_for_the_step(faults, slow, monkeypatch):
    monkeypatch.setenv("SLOW_SECONDS", "60")
    driver, steps = slow.start(), faults.root / "steps"
    while not steps.exists():
        assert driver.poll() is None
        time.sleep(0.05)
    KILLS["sigint"](slow, driver)
    while "stopping" not in slow.output.read_text():
        time.sleep(0.05)
    begun = time.monotonic()
    KILLS["sigint"](slow, driver)
    assert driver.wait(LIMIT_SECONDS) == 130
    assert time.monotonic() - begun < LIMIT_SECONDS
    slow.check_clean()


# A lost terminal


@pytest.mark.faults
@pytest.mark.parametrize("opened", [os.pipe, pty.openpty], ids=["pipe", "terminal"])
def test_a_sweep_outlives_its_terminal(faults, opened):
    sweep = faults.sweep("t", resources={"concurrency": 2})
    reading, writing = opened()
    driver = sweep.start(output=writing)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    assert driver.wait(240) == 0, sweep.output.read_text()
    assert "standard output is lost" in sweep.study.log.read_text()
    sweep.check()
    sweep.check_end(None)


@pytest.mark.faults
def test_a_full_device_as_output_is_not_taken_for_the_disk(faults):
    sweep = faults.sweep("f", resources={"concurrency": 2})
    with open("/dev/full", "w") as full:
        assert sweep.start(output=full.fileno()).wait(240) == 0
    assert "the disk" not in sweep.output.read_text()
    assert "standard output is lost" in sweep.study.log.read_text()
    sweep.check_end(None)


# A machine without room


def mounted(place: str, size: str) -> list[str]:
    """Words that run a command where `place` is a tmpfs of this size."""
    words = ["unshare", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*words, "true"]).returncode:
        pytest.skip("mount namespaces are not permitted here")
    script = f'mount -t tmpfs -o size={size} tmpfs {place} && exec "$@"'
    return [*words, "bash", "-c", script, "bash"]


@pytest.mark.faults
@pytest.mark.parametrize("size", ["64m", "1m"])
def test_a_small_dev_shm_is_enough(faults, size):
    """Containers get 64 MB unless they ask for more."""
    sweep = faults.sweep("m", resources={"concurrency": 2})
    assert sweep.start(mounted("/dev/shm", size)).wait(240) == 0, sweep.output.read_text()
    sweep.check_clean()
    sweep.check_end(None)


@pytest.mark.faults
def test_without_room_for_rays_files_the_cause_is_one_sentence(faults):
    sweep = faults.sweep("d", resources={"concurrency": 1})
    within = mounted(str(sweep.temporary), "8k")
    assert sweep.start(within).wait(240) == 2
    said = sweep.output.read_text()
    assert "Ray did not start" in said
    assert "make room there, or set TMPDIR" in said
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 2
    assert sweep.study.all_trials() == []
    sweep.check_clean(folders=False)
