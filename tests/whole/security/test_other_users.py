"""A local Ray on a machine with other users: folders, sockets, token; and what is left of it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from helpers.other_user import as_nobody, needs_root, shared_folder
from helpers.paths import ROOT

from sweep.ray_backend.local import temp_folder

DRIVER = """
import json, os, sys
from sweep.ray_backend.node.settings import RaySettings
from sweep.ray_backend.executor import RayExecutor
executor = RayExecutor(
    RaySettings(device="cpu", concurrency=1, expected_jobs=1, fork_server=True)
)
executor.start()
local = executor.cluster._own
print(json.dumps({
    "folder": str(local.folder.path), "reaper": local._reaper.pid,
    "address": executor.cluster.ray.get_runtime_context().gcs_address,
    "token": os.environ.get("RAY_AUTH_TOKEN"),
}), flush=True)
input()
"""

ASK = """
import sys
from ray._raylet import GcsClient
try:
    print(GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, 10.0))
except Exception as error:
    print(type(error).__name__, error)
"""


@dataclass
class Running:
    """A driver with a Ray of its own, in a process of its own."""

    driver: subprocess.Popen[str]
    folder: Path
    address: str
    reaper: psutil.Process
    token: str | None
    home: Path

    def environment(self, name: str) -> dict[str, str]:
        """The variables that the process of that name was started with."""
        children = psutil.Process(self.driver.pid).children(recursive=True)
        return next(child.environ() for child in children if child.name() == name)


@contextmanager
def started(home: Path) -> Iterator[Running]:
    """Start a driver; the path of its TMPDIR is nearly as long as it may be."""
    with shared_folder() as shared:
        long = shared / ("x" * (temp_folder.longest_root() - len(str(shared)) - 3))
        long.mkdir()
        long.chmod(0o1777)
        environment = {**os.environ, "TMPDIR": str(long), "HOME": str(home)}
        environment |= {"PYTHONPATH": str(ROOT), "RAY_AUTH_TOKEN": "of a cluster"}
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        with driver:
            found = json.loads(driver.stdout.readline())
            reaper = psutil.Process(found["reaper"])
            folder = Path(found["folder"])
            yield Running(driver, folder, found["address"], reaper, found["token"], home)
            driver.kill()
        reaper.wait(60)


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Running]:
    with started(tmp_path_factory.mktemp("home")) as made:
        yield made


def sockets(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]


def test_all_of_it_lies_in_a_folder_that_nobody_else_can_enter(running):
    assert stat.S_IMODE(running.folder.stat().st_mode) == 0o700
    assert {"fork-server", "plasma_store", "raylet"} <= {p.name for p in sockets(running.folder)}
    mine = {process.pid for process in psutil.Process(running.driver.pid).children(recursive=True)}
    listening = [
        found.laddr
        for found in psutil.net_connections(kind="unix")
        if found.pid in mine | {running.driver.pid} and found.laddr
    ]
    assert listening
    assert [path for path in listening if not path.startswith(str(running.folder))] == []


def test_a_socket_has_the_length_that_is_reckoned_with(running):
    longest = max(len(str(path)) for path in sockets(running.folder))
    driver = len(str(running.driver.pid)) - len(str(os.getpid()))
    root = len(str(running.folder.parent))
    assert longest - root - driver == 107 - temp_folder.longest_root()


@needs_root
def test_another_user_reaches_no_socket_of_it(running):
    for path in sockets(running.folder):
        assert as_nobody(lambda path=path: os.rename(path, f"{path}.x")) == "PermissionError"
        assert as_nobody(lambda path=path: os.stat(path)) == "PermissionError"
    away = running.folder.with_name("away")
    assert as_nobody(lambda: os.rename(running.folder, away)) == "PermissionError"


def test_its_token_is_random_and_in_the_environment_alone(running):
    token = running.environment("raylet")["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    assert running.environment("gcs_server")["RAY_AUTH_TOKEN"] == token
    assert running.token == "of a cluster"
    assert list(running.home.rglob("*token*")) == []
    files = [path for path in running.folder.rglob("*") if path.is_file()]
    assert [path for path in files if token.encode() in path.read_bytes()] == []
    assert token not in " ".join(
        word
        for child in psutil.Process(running.driver.pid).children(recursive=True)
        for word in child.cmdline()
    )


@pytest.mark.parametrize("token", [None, "of a cluster", "right"])
def test_without_its_token_nobody_is_answered(running, token):
    environment = {**os.environ, "RAY_AUTH_MODE": "token" if token else "disabled"}
    environment["HOME"] = str(running.home)
    right = running.environment("raylet")["RAY_AUTH_TOKEN"]
    if token is not None:
        environment["RAY_AUTH_TOKEN"] = right if token == "right" else token
    command = [sys.executable, "-c", ASK, running.address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ("[" in done.stdout.split()[0]) == (token == "right"), done.stdout + done.stderr


def test_driver_and_reaper_killed_together_leave_no_process(tmp_path):
    with started(tmp_path) as running:
        children = psutil.Process(running.driver.pid).children(recursive=True)
        names = {process.name() for process in children}
        assert {"ray::DashboardAgent", "ray::RuntimeEnvAgent"} <= names
        running.reaper.suspend()
        running.driver.kill()
        running.reaper.kill()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert [process.name() for process in alive] == []
