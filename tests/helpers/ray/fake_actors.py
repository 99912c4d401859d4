"""Stand-ins for Ray in unit tests: actors that record their calls, a cluster of a given size."""

from __future__ import annotations

from typing import Any

from sweep.ray_backend.node.settings import RaySettings
from sweep.ray_backend.worker_group import WorkerGroup


class FakeActor:
    """Records the names of the methods that are called, and their arguments."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        actor = self

        class Method:
            def remote(self, *args: Any, **kwargs: Any) -> object:
                actor.calls.append(name)
                actor.arguments.append((args, kwargs))
                return object()

        return Method()


class FakeCluster:
    """Has room for `size` worker groups; object references are ready when they are in `ready`."""

    def __init__(self, settings: RaySettings, size: int = 1) -> None:
        self.settings = settings
        self.size = size
        self.ready: set[Any] = set()
        self.ended: list[Any] = []

    def max_groups(self, *, refresh: bool = True) -> int:
        return max(1, min(self.size, self.settings.concurrency or self.size))

    def is_ready(self, reference: Any) -> bool:
        return reference in self.ready

    def end(self, actors: list[Any], placement_group: Any) -> None:
        self.ended += actors


def start_fake(cluster: Any) -> WorkerGroup:
    """A worker group without processes, of as many ranks as the settings say."""
    actors = [FakeActor() for _ in range(cluster.settings.devices_per_trial)]
    return WorkerGroup(actors, up=object())
