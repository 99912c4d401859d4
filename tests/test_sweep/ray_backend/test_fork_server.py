"""Workers that are forked from one process which has imported everything."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.other_user import as_nobody, needs_root, shared_folder
from helpers.paths import TESTS
from helpers.training.train import Material

from sweep.driver.executor import Finished, Job, Lost, Started, TrialRef
from sweep.ray_backend import fork_client, fork_server
from sweep.ray_backend.executor import RayExecutor
from sweep.ray_backend.fork_client import FORK_SERVER
from sweep.ray_backend.fork_server import ForkServerHandle
from sweep.ray_backend.node.local_ray import FORK_CLIENT, LocalRay
from sweep.ray_backend.node.settings import RaySettings
from trial.config.trial_config import TrialConfig
from trial.store.folders import TrialFolder

WORKER = """
import json, os, signal, sys, threading
had = "torch" in sys.modules
import trial.preload
print(json.dumps({
    "arguments": sys.argv[1:], "had": had, "main": __name__, "folder": os.getcwd(),
    "pid": os.getpid(), "parent": os.getppid(),
    "set": os.environ.get("SET"), "left": os.environ.get("ONLY_SERVER"),
    "unpaid": trial.preload.uncharged_seconds(), "alone": os.getpgid(0) == os.getpid(),
    "score": open("/proc/self/oom_score_adj").read().strip(),
    "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "flag": sys.flags.no_user_site,
}), flush=True)
match sys.argv[1]:
    case "wait":
        signal.pause()
    case "die":
        os.kill(os.getpid(), signal.SIGKILL)
    case "fail":
        raise ValueError("a worker's own mistake")
    case code:
        sys.exit(int(code))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("fork-server")
    (made / "default_worker.py").write_text(WORKER)
    (made / "setup_worker.py").write_text("import sys; print(['set up', *sys.argv[1:]])")
    return made


@pytest.fixture(scope="module")
def server(home) -> Iterator[ForkServerHandle]:
    # Where another user could reach it, if its mode allowed that.
    with shared_folder() as shared:
        variables = {"OMP_NUM_THREADS": "1", "ONLY_SERVER": "yes"}
        made = ForkServerHandle(shared / "socket", "cpu", variables)
        made.start()
        yield made
        made.close()


def client(
    home: Path,
    *words: str,
    server: ForkServerHandle | None,
    flags: Sequence[str] = (),
    **environment: str,
) -> subprocess.Popen[str]:
    own: Mapping[str, str] = {**os.environ, **environment}
    if server is not None:
        own = {**own, FORK_SERVER: str(server.path)}
    # As Ray does, which lets the kernel end workers first.
    begin = 'echo 7 > /proc/self/oom_score_adj; exec "$@"'
    script = str(home / "default_worker.py")
    client = [sys.executable, str(FORK_CLIENT), *flags, script, *words]
    command = ["sh", "-c", begin, "sh", *client]
    return subprocess.Popen(
        command, env=own, cwd=home, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def report_of(worker: subprocess.Popen[str]) -> dict[str, Any]:
    return json.loads(worker.stdout.readline())


def test_a_worker_is_a_child_that_has_imported_everything(home, server):
    words = ("0", "--language=PYTHON", "--serialized-runtime-env-context={}", "--more=x y")
    worker = client(home, *words, server=server, flags=["-s"], SET="something")
    report = report_of(worker)
    assert worker.wait(60) == 0
    assert report.pop("pid") != worker.pid
    assert report == {
        "arguments": ["0", "--more=x y"], "had": True, "main": "__main__", "folder": str(home),
        "parent": server.process.pid, "set": "something", "left": None, "unpaid": 0,
        "alone": True, "score": "7", "interrupt": True, "flag": 0,
    }  # fmt: skip


@pytest.mark.parametrize(("how", "code"), [("7", 7), ("die", 128 + signal.SIGKILL), ("fail", 1)])
def test_its_exit_code_is_returned(home, server, how, code):
    worker = client(home, how, server=server)
    assert report_of(worker)["had"]
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == code
    assert ("own mistake" in errors) == (how == "fail")


def test_a_client_that_is_ended_takes_its_worker_along(home, server):
    worker, other = client(home, "wait", server=server), client(home, "wait", server=server)
    child, stays = (psutil.Process(report_of(each)["pid"]) for each in (worker, other))
    worker.kill()
    child.wait(60)
    assert stays.is_running()
    other.kill()
    stays.wait(60)
    for each in (worker, other):
        each.communicate()


@pytest.mark.parametrize("path", [None, "nobody-listens"])
def test_without_a_server_it_becomes_the_worker(home, path):
    environment = {} if path is None else {FORK_SERVER: str(home / path)}
    worker = client(home, "3", "--language=PYTHON", server=None, flags=["-s"], **environment)
    assert worker.wait(60) == 3
    found = report_of(worker)
    assert (found["had"], found["pid"], found["arguments"]) == (False, worker.pid, ["3"])
    assert found["flag"] == 1
    worker.communicate()


@pytest.mark.parametrize(
    "word", ['--serialized-runtime-env-context={"env_vars": {"A": "1"}}', "--language=JAVA"]
)
def test_a_worker_with_an_environment_of_its_own_is_rays_to_start(home, server, word):
    output, _ = client(home, "0", word, server=server, flags=["-s"]).communicate(timeout=60)
    assert eval(output) == ["set up", "-s", str(home / "default_worker.py"), "0", word]


def test_it_ends_with_its_driver_and_leaves_nobody(home, tmp_path):
    made = ForkServerHandle(tmp_path / "socket", "cpu", {})
    worker = client(home, "wait", server=made)
    made.start()
    child = psutil.Process(report_of(worker)["pid"])
    made.close()
    child.wait(60)
    assert made.process.returncode == 0
    worker.communicate(timeout=60)


@needs_root
def test_another_user_gets_no_worker(home, server):
    """Even where the mode lets anybody connect: the kernel says whose end it is."""
    server.path.chmod(0o777)
    path, script = str(server.path), [str(home / "default_worker.py"), "0"]
    assert as_nobody(lambda: fork_client.request_worker(path, script)) is None
    with open(os.devnull, "r+b") as nothing:
        assert fork_client.request_worker(path, script, (nothing.fileno(),) * 3) == 0


@needs_root
def test_no_environment_goes_to_another_users_server():
    with shared_folder() as shared:
        path = str(shared / "socket")
        ready, go = os.pipe()

        def listen() -> bytes:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                listener.bind(path)
                os.chmod(path, 0o777)
                listener.listen()
                os.write(go, b"+")
                return listener.accept()[0].recv(1)

        with ThreadPoolExecutor(1) as pool:
            got = pool.submit(as_nobody, listen)
            os.read(ready, 1)
            assert fork_client.request_worker(path, ["script"]) is None
            assert got.result(60) == b""


# In a real Ray


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("fork-server-ray"))


def until(executor: RayExecutor, kind: type) -> Any:
    while True:
        fresh = executor.events(60.0)
        if not fresh:
            raise TimeoutError("nothing happened for a minute")
        for event in fresh:
            if isinstance(event, kind):
                return event


def test_a_forked_worker_trains_as_a_fresh_process(material):
    """And so does the one that takes its place once it is killed; nothing is left in the end."""
    config: TrialConfig = material.config(training={"max_steps": 10})
    reference = material.folder(config)
    code = (
        f"from helpers.training.train import train_to_end; train_to_end({str(reference.path)!r}, 1)"
    )
    tests = str(TESTS)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tests, timeout=120)
    before = set(psutil.Process().children(recursive=True))
    executor = RayExecutor(RaySettings(device="cpu", concurrency=1, fork_server=True))
    executor.start()
    try:
        server = executor.cluster.fork_server.process.pid
        folders = [material.folder(config) for _ in range(2)]
        endless = material.folder(material.config(training={"max_steps": 10**5}))
        for number, folder in enumerate((folders[0], endless, folders[1])):
            executor.submit(Job((TrialRef(number, folder.path),)))
            until(executor, Started)
            assert psutil.Process(worker_of(folder)).ppid() == server
            if folder is endless:
                os.kill(worker_of(folder), signal.SIGKILL)
                until(executor, Lost)
            else:
                until(executor, Finished)
                assert losses(folder) == losses(reference)
        assert worker_of(folders[0]) != worker_of(folders[1])
    finally:
        executor.close()
    left = set(psutil.Process().children(recursive=True)) - before
    psutil.wait_procs(left, timeout=30)
    assert not [process for process in left if process.is_running()]


def losses(folder: TrialFolder) -> list[tuple[int, float]]:
    return [(row.step, row.eval_loss) for row in folder.read_evaluations()]


def worker_of(folder: TrialFolder) -> int:
    return folder.read_attempts()[-1].pid


def test_two_ends_at_once_are_one_end(tmp_path):
    """A child and the client that waited for it have ended between two looks."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        server = fork_server.ForkServer(listener)
        server.client_gone(2**22 + 1)
        assert not server.clients


def test_where_no_socket_can_be_made_workers_start_by_themselves(tmp_path, caplog):
    ray = LocalRay(RaySettings(device="cpu", fork_server=True))
    own = ray.folder.path
    ray.folder.path = tmp_path / "nowhere"
    with ray.with_fork_server({}) as start_server:
        assert start_server is None
    ray.close()
    assert FORK_SERVER not in os.environ
    assert not own.exists()
    assert "each imports by itself" in caplog.text
