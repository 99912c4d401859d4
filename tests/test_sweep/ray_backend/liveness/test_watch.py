"""What the watch of Ray sees: real processes that end, a server that goes away and comes back."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading

import pytest

from sweep.ray_backend.liveness.watch import (
    RayLostError,
    Watch,
    of_cluster,
    of_processes,
    raylet_of,
)


def endless() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )


def test_the_end_of_a_process_is_seen_with_its_name_and_signal():
    with endless() as first, endless() as second:
        look = of_processes([first, second])
        assert look() == ""
        second.kill()
        second.wait()
        assert look().endswith("ended (signal 9)")
        assert "python" in look()
        first.communicate()
    assert "ended (exit code 0)" in of_processes([first])()


def test_a_head_may_be_out_of_reach_for_a_while():
    seconds = itertools.count(step=10.0)
    answers = iter([True, False, False, True, False, False, False, False])
    look = of_cluster("", lambda: next(answers), clock=lambda: next(seconds), grace=25.0)
    seen = [look() for _ in range(8)]
    assert seen[:7] == [""] * 6 + ["its head has not answered for 30 s"]


def test_the_raylet_of_this_host_is_known_by_its_socket(tmp_path):
    socket = str(tmp_path / "raylet.sock")
    assert raylet_of(socket) is None
    program = "import sys; sys.stdin.read()"
    words = [str(tmp_path / "raylet"), "-c", program, f"--raylet_socket_name={socket}"]
    with subprocess.Popen(words, executable=sys.executable, stdin=subprocess.PIPE) as raylet:
        assert raylet_of(socket).pid == raylet.pid
        look = of_cluster(socket, lambda: True)
        assert look() == ""
        raylet.kill()
        raylet.wait()
        assert look() == "the raylet on this host ended"


def test_the_thread_notices_by_itself_and_beats_until_then():
    beats, gone = threading.Semaphore(0), threading.Event()
    watch = Watch(lambda: "it ended" if gone.is_set() else "", beats.release, quick=False)
    watch.start()
    assert beats.acquire(timeout=30)
    watch.check()
    gone.set()
    while not watch.lost:
        assert beats.acquire(timeout=30)
    with pytest.raises(RayLostError, match="it ended"):
        watch.check()
    watch.close()


def test_a_beat_that_fails_does_not_end_the_watch():
    beats = threading.Semaphore(0)

    def beat() -> None:
        beats.release()
        raise RuntimeError("not now")

    watch = Watch(lambda: "", beat)
    watch.start()
    assert beats.acquire(timeout=30)
    assert beats.acquire(timeout=30)
    watch.close()


def test_a_question_gets_its_answer_or_its_error():
    watch = Watch(lambda: "")
    assert watch.call(lambda: 7) == 7
    with pytest.raises(KeyError):
        watch.call(lambda: {}["x"])


def test_a_question_that_is_never_answered_ends_with_ray():
    gone, asked = [""], threading.Event()

    def never() -> None:
        asked.set()
        gone[0] = "its gcs_server ended"
        threading.Event().wait()

    with pytest.raises(RayLostError, match="gcs_server"):
        Watch(lambda: gone[0]).call(never)
    assert asked.is_set()


def test_a_question_has_a_limit():
    watch = Watch(lambda: "")
    with pytest.raises(RayLostError, match="not answered for 0 s"):
        watch.call(threading.Event().wait, seconds=0.0)
    with pytest.raises(RayLostError):
        watch.check()
