"""A local Ray that does not come up: one sentence with the cause, after one more try."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from types import SimpleNamespace

import pytest

from sweep.ray_backend import compat
from sweep.ray_backend.node import local_ray
from sweep.ray_backend.node.local_ray import reason_of_failed_start, start_local_ray
from sweep.ray_backend.node.settings import RaySettings

Usage = namedtuple("Usage", "total used free")


class Ray:
    """Ray's module, whose `init` raises what it is given, one after the other."""

    def __init__(self, *errors: BaseException | None) -> None:
        self.errors = list(errors)
        self.shut_down = 0

    def init(self, **_: object) -> None:
        if (error := self.errors.pop(0)) is not None:
            raise error

    def shutdown(self) -> None:
        self.shut_down += 1


def start(ray: Ray) -> local_ray.LocalRay:
    return start_local_ray(ray, RaySettings(device="cpu"), {}, {})


def test_the_second_try_counts():
    ray = Ray(compat.NotUpError("its raylet ended while it started"), None)
    start(ray).close()
    assert ray.shut_down == 1


def test_two_failures_are_one_sentence():
    ray = Ray(RuntimeError("first"), RuntimeError("Timed out waiting for a file\nTraceback ..."))
    with pytest.raises(ConnectionError) as raised:
        start(ray)
    text = str(raised.value)
    assert "also when tried again: Timed out waiting for a file" in text
    assert "\n" not in text
    assert ray.errors == []


@pytest.mark.parametrize("error", [RuntimeError("Timed out"), OSError(errno.ENOSPC, "No space")])
def test_a_full_disk_is_the_cause_and_not_tried_again(error, monkeypatch):
    free = 0 if isinstance(error, RuntimeError) else 10**9
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10, 10, free))
    ray = Ray(error)
    with pytest.raises(ConnectionError, match=r"is full .* set TMPDIR"):
        start(ray)


def test_ctrl_c_while_ray_starts_ends_it_and_is_passed_on():
    ray = Ray(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        start(ray)
    assert ray.shut_down == 1


@pytest.mark.parametrize(("load", "busy"), [(3.9, False), (40.0, True)])
def test_a_busy_machine_is_named(load, busy):
    text = reason_of_failed_start(RuntimeError("it was not up within 90 s"), load, cores=2)
    assert text.startswith("it was not up within 90 s")
    assert ("a load of 40 on 2 cores" in text) is busy


def test_a_process_that_ends_while_ray_starts_is_noticed_at_once(monkeypatch):
    class Node:
        plasma_store_socket_name = "/nowhere"
        _ray_params = SimpleNamespace()
        all_processes: dict[str, list[object]] = {}

        def start_ray_processes(self) -> None:
            ended = SimpleNamespace(process=SimpleNamespace(poll=lambda: 1))
            self.all_processes = {"raylet": [ended]}

        def get_gcs_client(self) -> object:
            raise RuntimeError("nobody answers")

    from ray._private import node

    monkeypatch.setattr(node, "Node", Node)
    with compat.minimal_node("script.py"), pytest.raises(compat.NotUpError, match="its raylet"):
        Node().start_ray_processes()
