"""The kinds of kills: who gets which signal."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable

import psutil
from faults.sweeps.killed_sweep import Sweep


def kill_driver(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the driver alone: Ray and its workers are left to themselves."""
    driver.kill()


def kill_worker(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
    """SIGKILL to one process that trains; the sweep goes on."""
    workers = [process for process in sweep.ours() if _is_worker(process)]
    if workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            sweep.dice.choice(workers).kill()


def kill_group(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the driver's process group, as a terminal or a batch system does it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGKILL)


def of_ray(program: str) -> Callable[[Sweep, subprocess.Popen[bytes]], None]:
    """SIGKILL to one of Ray's own processes; the sweep goes on with a new Ray."""

    def kill(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
        # While Ray starts again there may be none.
        while not (found := _named(sweep, program)) and driver.poll() is None:
            time.sleep(0.05)
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    return kill


def _named(sweep: Sweep, program: str) -> list[psutil.Process]:
    """Processes of the run with a word of their command line that ends so."""
    found = []
    for process in sweep.ours():
        with contextlib.suppress(psutil.Error):
            if any(word.strip().endswith(program) for word in process.cmdline()[:4]):
                found.append(process)
    return found


def kill_node(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a node of the cluster; another one joins, and the sweep goes on."""
    if sweep.nodes:
        sweep.nodes.lose_one(sweep.dice)


def kill_tree(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
    """SIGKILL to every process of the run, the reaper included."""
    for process in sweep.ours():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def kill_with_reaper(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the driver and its reaper, which has no moment to act."""
    reapers = [process for process in sweep.ours() if _is_reaper(process)]
    for process in reapers:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    driver.kill()
    for process in reapers:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def terminate(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
    """SIGTERM: checkpoint and leave."""
    driver.terminate()


def to_group(sent: signal.Signals) -> Callable[[Sweep, subprocess.Popen[bytes]], None]:
    """A signal to the driver's process group, as `timeout` and service managers send it."""

    def send(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, sent)

    return send


def to_session(sent: signal.Signals) -> Callable[[Sweep, subprocess.Popen[bytes]], None]:
    """A signal to every process of the driver's session, as a terminal and Slurm send it."""

    def send(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == driver.pid:
                    os.kill(pid, sent)

    return send


def interrupt(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
    """Ctrl-C in a terminal: SIGINT to the whole group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGINT)


def interrupt_twice(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
    """Ctrl-C, and once more before the driver has ended."""
    interrupt(sweep, driver)
    with contextlib.suppress(subprocess.TimeoutExpired):
        driver.wait(sweep.dice.uniform(0.0, 0.4))
    interrupt(sweep, driver)


def _is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()[:1] == ["ray::TrialWorker.run"] or any(
            word.startswith("ray::TrialWorker") for word in process.cmdline()
        )
    return False


def _is_reaper(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "sweep.ray_backend.reaper" in process.cmdline()
    return False


KILLS: dict[str, Callable[[Sweep, subprocess.Popen[bytes]], None]] = {
    "driver": kill_driver,
    "worker": kill_worker,
    "group": kill_group,
    "tree": kill_tree,
    "reaper": kill_with_reaper,
    "node": kill_node,
    "raylet": of_ray("raylet/raylet"),
    "gcs": of_ray("gcs/gcs_server"),
    "dashboard agent": of_ray("ray::DashboardAgent"),
    "runtime environment agent": of_ray("ray::RuntimeEnvAgent"),
    "sigterm": terminate,
    "sigterm group": to_group(signal.SIGTERM),
    "sigterm session": to_session(signal.SIGTERM),
    "sighup group": to_group(signal.SIGHUP),
    "sighup session": to_session(signal.SIGHUP),
    "sigint": interrupt,
    "sigint twice": interrupt_twice,
}
GENTLE = (
    "sigterm", "sigterm group", "sigterm session", "sighup group", "sighup session", "sigint",
)  # fmt: skip
"""After these the driver writes checkpoints and exits by itself."""
WITHOUT_REAPER = ("tree", "reaper")
"""After these only the next run can remove the temporary folder."""
OF_RAY = ("raylet", "gcs", "dashboard agent", "runtime environment agent")
SURVIVED = ("worker", "node", *OF_RAY)
"""After these the driver lives on."""
ON_A_CLUSTER = ("node", "driver", "group", "sigterm", "sigint")
ALONE = tuple(kind for kind in KILLS if kind != "node")
