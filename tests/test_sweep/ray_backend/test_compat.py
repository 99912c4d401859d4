"""Canary: every private name of Ray that `compat` relies on is still there."""

from __future__ import annotations

import inspect
import mmap
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import ray
from ray import _raylet
from ray._private import node, parameter, ray_constants, services
from ray.exceptions import ActorDiedError

from sweep.ray_backend import compat, fork_client
from sweep.ray_backend.local import agent

RAY = Path(ray.__file__).parent
WORKERS = RAY / "_private" / "workers"


def parameters_of(function: Callable[..., object]) -> set[str]:
    return set(inspect.signature(function).parameters)


@cache
def python_sources() -> str:
    folders = (RAY / "_private", RAY / "_common")
    files = [path for folder in folders for path in folder.rglob("*.py")]
    return "\n".join(
        path.read_text() for path in files if "tests" not in path.relative_to(RAY).parts
    )


def is_read(variable: str) -> bool:
    """Whether Ray's Python code names the environment variable, or its C++ code the setting."""
    if variable in python_sources():
        return True
    with Path(_raylet.__file__).open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return content.find(variable.removeprefix("RAY_").encode() + b"\0") >= 0


NAMES: dict[str, Callable[[], bool]] = {
    "ray._private.ray_constants.ENABLE_RAY_CLUSTER": lambda: hasattr(
        ray_constants, "ENABLE_RAY_CLUSTER"
    ),
    "ray._private.parameter.RayParams(setup_worker_path)": lambda: (
        "setup_worker_path" in parameters_of(parameter.RayParams)
    ),
    "ray._private.node.Node._ray_params": lambda: (
        "self._ray_params" in inspect.getsource(node.Node)
    ),
    "ray._raylet.InnerGcsClient.get_all_node_info": lambda: hasattr(
        _raylet.InnerGcsClient, "get_all_node_info"
    ),
    "ray.init(_temp_dir)": lambda: all(
        f'kwargs.pop("{name}"' in inspect.getsource(ray.init)
        for name in compat.temp_dir_option("folder")
    ),
    "ray._private.services." + compat.PYTHON_COMMAND: lambda: hasattr(
        services, compat.PYTHON_COMMAND
    ),
    "the names of the agents' programs": lambda: (
        compat.AGENTS
        == (
            ray_constants.PROCESS_TYPE_DASHBOARD_AGENT,
            ray_constants.PROCESS_TYPE_RUNTIME_ENV_AGENT,
        )
    ),
    f"ray._raylet.{compat.TOKEN_LOADER}.reset_cache": lambda: hasattr(
        getattr(_raylet, compat.TOKEN_LOADER), "reset_cache"
    ),
    "the words 'creation task' in ActorDiedError": lambda: (
        compat.CREATION_FAILED in inspect.getsource(ActorDiedError)
    ),
    "setup_worker.py and fork_client.py's name of it": lambda: (
        fork_client.SETUP_WORKER == compat.SETUP_WORKER
    ),
}
NAMES |= {
    f"ray._private.node.Node.{name}": lambda name=name: hasattr(node.Node, name)
    for name in (
        *compat.UNUSED_PROCESSES,
        compat.START_PROCESSES,
        "get_gcs_client",
        "plasma_store_socket_name",
    )
}
NAMES |= {
    f"the folder {name}": lambda name=name: RAY.parent.joinpath(name.strip("/")).is_dir()
    for name in compat.PROGRAM_FOLDERS
}
NAMES |= {
    f"ray/_private/workers/{name}": lambda name=name: (WORKERS / name).is_file()
    for name in (compat.SETUP_WORKER, compat.DEFAULT_WORKER)
}
NAMES |= {
    f"the environment variable {name}": lambda name=name: is_read(name)
    for name in (
        *compat.ENVIRONMENT,
        *compat.KEEP_MODULES,
        compat.CLUSTER_SWITCH,
        compat.TOKEN,
        agent.RAYLET,
    )
}
NAMES |= {
    f"the argument {name} of setup_worker.py": lambda name=name: (
        f'"{name}"' in (WORKERS / compat.SETUP_WORKER).read_text()
    )
    for name in fork_client.SETUP_ARGUMENTS
}


@pytest.mark.parametrize("name", NAMES)
def test_a_private_name_of_ray_is_still_there(name):
    assert NAMES[name](), (
        f"Ray {ray.__version__} has lost {name}, which sweep/ray_backend/compat.py reads "
        f"from Ray {compat.RAY_VERSION}"
    )


def test_the_canary_notices_a_setting_that_ray_does_not_have():
    assert not is_read("RAY_a_setting_that_never_was")


def test_compat_was_read_from_the_ray_that_is_installed():
    assert ray.__version__ == compat.RAY_VERSION, (
        f"Ray {ray.__version__} is installed; once the tests of this file pass, note it in "
        "compat.RAY_VERSION"
    )


def test_a_ray_without_these_methods_starts_by_itself(monkeypatch):
    class Other:
        """A node of a release that has none of them."""

    monkeypatch.setattr(node, "Node", Other)
    with compat.minimal_node("script.py"):
        assert not [name for name in vars(Other) if name.startswith("start")]
    assert not [name for name in vars(Other) if name.startswith("start")]


def test_what_is_replaced_is_put_back():
    names = (*compat.UNUSED_PROCESSES, compat.START_PROCESSES)
    originals = [getattr(node.Node, name) for name in names]
    with compat.minimal_node("script.py"):
        replaced = [getattr(node.Node, name) for name in names]
    assert all(new is not old for new, old in zip(replaced, originals, strict=True))
    assert originals == [getattr(node.Node, name) for name in names]


@pytest.mark.parametrize(("users", "expected"), [(None, False), ("1", True), ("0", False)])
def test_a_user_may_let_ray_listen_on_every_interface(monkeypatch, users, expected):
    monkeypatch.delenv(compat.CLUSTER_SWITCH, raising=False)
    if users is not None:
        monkeypatch.setenv(compat.CLUSTER_SWITCH, users)
    before = ray_constants.ENABLE_RAY_CLUSTER
    with compat.loopback_only():
        assert expected == ray_constants.ENABLE_RAY_CLUSTER
    assert before == ray_constants.ENABLE_RAY_CLUSTER
