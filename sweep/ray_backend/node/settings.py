"""What the sweep file and the command line say about devices and workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sweep.ray_backend.worker import TrialWorker

RESOURCE = {"hpu": "HPU", "cuda": "GPU", "cpu": "CPU"}
"""Ray's resource name of each device."""


@dataclass(frozen=True, slots=True)
class RaySettings:
    """What the sweep file and the command line say about devices and workers."""

    device: str = "auto"
    devices_per_trial: int = 1
    cpus_per_trial: int = 1
    concurrency: int | None = None
    """Most jobs at once; None: as many as the cluster holds."""
    expected_jobs: int | None = None
    """Most jobs that will come, when known: no more workers than that are started."""
    address: str | None = None
    """Address of a cluster; None: a local Ray."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the workers."""
    hang_seconds: float | None = None
    """A trial without a sign of life for so long is ended."""
    pack: int = 1
    """Trials that a packed job trains at once; 0: as many as raise the throughput."""
    fork_server: bool = False
    """Fork the workers of a local Ray on CPUs: see `sweep.ray_backend.fork_server`."""
    worker: type = TrialWorker
    """Class of the actors."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Custom resources of a local Ray: tests place HPU jobs on a machine that has no HPU."""
    refresh_seconds: float = 5.0
    """How long the cluster's size is remembered, and seconds between heartbeats of a worker."""
    startup_seconds: float = 60.0
    """How long a worker may take to start before an idle one takes its job over."""
