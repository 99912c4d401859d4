"""Ray places the jobs: whole devices as resources, warm actors as workers. Ray's only home.

Ray Core rather than Ray Tune: Tune's searcher would replace Optuna's pruners and tell a stopped
trial as complete.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from sweep.driver.executor import Event, Evicted, Finished, Interrupted, Job, Lost, SlotsChanged
from sweep.ray_backend import local_cluster, temp_dir
from sweep.ray_backend.fork_client import FORK_SERVER
from sweep.ray_backend.fork_server import ForkServerHandle
from sweep.ray_backend.job_queue import JobQueue
from sweep.ray_backend.rank_placement import PlacementRequest
from sweep.ray_backend.worker import TrialWorker
from sweep.ray_backend.worker_group import WorkerGroup
from sweep.spec.hpu_groups import GROUP_SIZES, hpus_per_node
from trial.devices.detect import detected_device
from trial.store.control import StopReason
from trial.store.records import CauseKind

log = logging.getLogger(__name__)

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_prestart_worker_first_driver": "0",
}
"""Set before Ray is imported: no telemetry, no metrics agent, no notices, and no process for each
core of the machine that waits for work: workers are started as they are needed."""

OBJECT_STORE_BYTES = 100 * 1024 * 1024
"""Only small events pass through the object store."""

MOST_SLOTS = 16
"""No packed job takes more trials by itself."""

LOOK_AGAIN = 5.0
"""Seconds after which the cluster is asked for its size again, and a worker for its pulse."""

PATIENCE = 60.0
"""Seconds that a worker gets to start before an idle one takes its job over."""

KEEP_MODULES = {"RAY_EXPERIMENTAL_NOSET_HABANA_VISIBLE_MODULES": "1"}
"""Keeps Ray from choosing HPU modules itself."""

RESOURCE = {"hpu": "HPU", "cuda": "GPU", "cpu": "CPU"}


@dataclass(slots=True)
class RayExecutor:
    """Runs jobs on the devices of a local Ray or of a cluster."""

    device: str = "auto"
    devices_per_trial: int = 1
    cpus_per_trial: int = 1
    concurrency: int | None = None
    expected_jobs: int | None = None
    """How many jobs will come at most, when known: no more workers than that are started."""
    address: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    hang_seconds: float | None = None
    """A trial without a sign of life for so long is ended."""
    pack: int = 1
    """Trials that a job trains at once, where they may share it; 0: as many as pay."""
    fork_server: bool = False
    """Fork workers on this machine's CPUs from one process that imports for all: see
    `sweep.ray_backend.fork_server`."""
    worker: type = TrialWorker
    resources: Mapping[str, float] = field(default_factory=dict)
    """Ray resources that a Ray of our own is told to have: tests place HPU jobs without any."""
    _worker_groups: list[WorkerGroup] = field(default_factory=list)
    _backlog: JobQueue = field(default_factory=JobQueue)
    _said: list[Event] = field(default_factory=list)
    """Events that did not come from a worker."""
    _packing: bool = False
    """Whether the latest trial may share a job."""
    _width: int = 1
    """Trials that a packed job holds, as far as that is known."""
    _most: dict[str, int] = field(default_factory=dict)
    """Most trials of a packed job by its key, where a worker has died with more of them."""
    _folder: str = ""
    _held: FileLock | None = None
    _reaper: subprocess.Popen[bytes] | None = None
    _fork_server: ForkServerHandle | None = None
    _ray: Any = None
    _actor_class: Any = None
    _capacity: tuple[float, int] = (0.0, 1)

    def start(self) -> None:
        """Connect to `address`, or start a Ray of our own; begin to warm the first workers."""
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        self._ray = ray
        # Once for all workers: Ray takes a class apart and sends it to its nodes each time.
        self._actor_class = ray.remote(self.worker)
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address:
            self._join(options)
        else:
            self._folder, self._held = temp_dir.make()
            self._reaper = _start_reaper(self._folder)
            cores = len(os.sched_getaffinity(0))
            with (
                local_cluster.loopback(),
                self._with_fork_server() as begin,
                local_cluster.lean(begin),
            ):
                ray.init(
                    address="local",
                    include_dashboard=False,
                    # Ranks on the CPU may share cores; that is slow and not wrong.
                    num_cpus=max(cores, self.cpus_per_trial * self.devices_per_trial),
                    resources=dict(self.resources),
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=self._folder,
                    **options,
                )
        if self.device == "auto":
            total = ray.cluster_resources()
            self.device = next((d for d, name in RESOURCE.items() if total.get(name)), "cpu")
        self._refuse_impossible()
        self._demand(self.concurrency or 0)
        first = min(self.capacity(), self.expected_jobs or self.capacity())
        self._worker_groups = [self._new_crew() for _ in range(first)]

    def _join(self, options: dict[str, Any]) -> None:
        """Connect to a Ray that is there already."""
        try:
            self._ray.init(address=self.address, **options)
        except ConnectionError as error:
            raise ConnectionError(
                f"{error}. Is Ray up there, and was it started with the RAY_AUTH_MODE and "
                "RAY_AUTH_TOKEN that are set here? See docs/cluster.md"
            ) from error

    @contextlib.contextmanager
    def _with_fork_server(self) -> Iterator[Callable[[], None] | None]:
        """Tell a Ray that starts here of a nursery, if there is to be one; yields how it begins."""
        here = self.device if self.device != "auto" else detected_device()
        if not self.fork_server or here != "cpu" or sys.platform != "linux":
            yield None
            return
        try:
            self._fork_server = ForkServerHandle(
                Path(self._folder, "nursery"), here, self._environment()
            )
        except OSError as error:
            log.warning("workers are not forked, each imports by itself: %s", error)
            yield None
            return
        os.environ[FORK_SERVER] = str(self._fork_server.path)
        try:
            yield self._fork_server.start
        finally:
            del os.environ[FORK_SERVER]

    def _demand(self, jobs: int) -> None:
        """Tell a cluster's autoscaler how many jobs there will be at once; 0 takes it back."""
        if self.address is None or self.concurrency is None:
            return
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[self._each()] * (jobs * self.devices_per_trial))

    def _refuse_impossible(self) -> None:
        """A machine of its own does not grow; a cluster may."""
        self._bundle_width()
        if self.address is None and not self._fitting():
            name = RESOURCE[self.device]
            here = sum(node.get(name, 0) for node in self._nodes())
            raise ValueError(
                f"resources.devices_per_trial: this machine has {here:g} {name}, "
                f"got {self.devices_per_trial}"
            )

    def capacity(self) -> int:
        """How many trials fit the cluster as it is now; at least one, to let a cluster grow."""
        asked_at, capacity = self._capacity
        if time.monotonic() - asked_at > LOOK_AGAIN:
            capacity = self._fitting()
            self._capacity = (time.monotonic(), capacity)
        return self._places(capacity) * (self._width if self._packing else 1)

    def _places(self, capacity: int) -> int:
        """How many workers there may be."""
        return max(1, min(capacity, self.concurrency or capacity))

    def describe(self) -> str:
        """Devices and workers in words."""
        slots = self.capacity()
        each = f"{self.cpus_per_trial} CPU thread{'s' * (self.cpus_per_trial > 1)}"
        if self.device != "cpu":
            each = f"{self.devices_per_trial} {RESOURCE[self.device]}"
        elif self.devices_per_trial > 1:
            each = f"{self.devices_per_trial} ranks, {each} a rank,"
        return f"{slots} worker{'s' * (slots > 1)} of {each} each"

    def submit(self, job: Job) -> None:
        """Give the job to a worker: one with room in its packed job, an idle one, or a new one.

        Raises:
            ValueError: several trials for several ranks.
        """
        if self.devices_per_trial > 1 and len(job.trials) > 1:
            raise ValueError("a job that is not packed trains one trial on several devices")
        if self.pack == 1:
            job = replace(job, key=None)
        self._packing = job.key is not None
        self._width = max(self._width, self.pack)
        self._backlog.add(job)
        self._backlog.dispatch(self._place)

    def _place(self, job: Job) -> bool:
        """Give the job to a worker, unless all are busy with what it cannot join."""
        idle = next(
            (worker_group for worker_group in self._worker_groups if worker_group.job is None), None
        )
        if idle is None and (
            self.pack == 1 or len(self._worker_groups) < self._places(self._fitting())
        ):
            idle = self._new_crew()
            self._worker_groups.append(idle)
        joined = [
            worker_group
            for worker_group in self._worker_groups
            if job.key and worker_group.has_room(job.key)
        ]
        if joined:
            least = min(joined, key=lambda worker_group: len(worker_group.open))
            if idle is None or not least.open:
                least.join(job)
                return True
        idle = idle or next(
            (worker_group for worker_group in self._worker_groups if worker_group.idle), None
        )
        if idle is None:
            return False
        idle.turn_to(job, *self._width_of(job))
        return True

    def _width_of(self, job: Job) -> tuple[int, int]:
        """How many slots a job gets, and how many at most where it measures what pays."""
        if job.key is None:
            return 1, 1
        most = self._most.get(job.key, MOST_SLOTS)
        if self.expected_jobs is not None:
            most = min(most, -(-self.expected_jobs // self._places(self._fitting())))
        return min(self.pack, self._most.get(job.key, self.pack)), most

    def events(self, timeout: float) -> list[Event]:
        """Everything that has happened, waiting at most `timeout` seconds for the first."""
        until = time.monotonic() + timeout
        while True:
            self._feel_pulses(time.monotonic())
            found, self._said = self._said, []
            for worker_group, rank in self._speaking(time.monotonic() if found else until):
                if rank in worker_group.streams:
                    found += self._take(worker_group, rank)
            for worker_group in [
                worker_group
                for worker_group in self._worker_groups
                if worker_group.troubled is not None
            ]:
                found += self._judge(worker_group)
            self._relieve()
            self._backlog.dispatch(self._place)
            if found or time.monotonic() >= until:
                return found

    def _speaking(self, until: float) -> list[tuple[WorkerGroup, int]]:
        """Ranks that have something to say, as soon as one has."""
        now = time.monotonic()
        streams = {
            id(s): (worker_group, rank)
            for worker_group in self._worker_groups
            for rank, s in worker_group.streams.items()
        }
        limits = [
            left
            for worker_group in self._worker_groups
            if (left := worker_group.left(now)) is not None
        ]
        if self.hang_seconds is not None and streams:
            limits.append(LOOK_AGAIN)
        wait = max(0.0, min([until - now, *limits]))
        if not streams:
            time.sleep(wait)
            return []
        waiting = [
            stream
            for worker_group in self._worker_groups
            for stream in worker_group.streams.values()
        ]
        ready, _ = self._ray.wait(waiting, num_returns=1, timeout=wait)
        return [streams[id(stream)] for stream in ready]

    def stop(self, number: int, reason: StopReason) -> None:
        """Pass the request to the worker that has the trial; of several ranks to the first."""
        for worker_group in self._worker_groups:
            waits = worker_group.after is not None and worker_group.after.trials[0].number == number
            if number in worker_group.open or waits:
                worker_group.actors[0].stop.remote(number, reason)
        if self._backlog.drop(number):
            # It has not begun: its folder is as it was.
            self._said.append(Interrupted(number))

    def close(self, *, wait: bool = True) -> None:
        """End the workers and the Ray we started.

        Without `wait` Ray goes down in a thread that the process does not end before.
        """
        if self._ray is None:
            return
        for worker_group in list(self._worker_groups):
            self._retire(worker_group)
        with contextlib.suppress(Exception):  # A cluster that is gone wants nothing.
            self._demand(0)
        down = threading.Thread(target=self._shut_down, args=(self._ray,))
        self._ray = None
        down.start()
        if wait:
            down.join()

    def _shut_down(self, ray: Any) -> None:
        ray.shutdown()
        if self._fork_server is not None:
            self._fork_server.close()
        if self._reaper and self._reaper.stdin:
            # Ray is down: only its folder is left to remove.
            self._reaper.communicate(b".")

    def _each(self) -> dict[str, float]:
        """What one rank holds."""
        if self.device == "cpu":
            return {"CPU": float(self.cpus_per_trial)}
        return {RESOURCE[self.device]: 1.0}

    def _fitting(self) -> int:
        """How many jobs the living nodes hold; only what no single node can hold is spread."""
        nodes = self._nodes()
        need = {name: count * self.devices_per_trial for name, count in self._each().items()}
        fitting = sum(_times(node, need) for node in nodes)
        if fitting or self.devices_per_trial == 1:
            return fitting
        width = self._bundle_width()
        part = {name: count * width for name, count in self._each().items()}
        return sum(_times(node, part) for node in nodes) * width // self.devices_per_trial

    def _nodes(self) -> list[dict[str, float]]:
        """The resources of every living node."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _bundle_width(self) -> int:
        """Ranks that must share a node: those of an aligned group of HPUs."""
        if self.device != "hpu":
            return 1
        width = hpus_per_node(self.devices_per_trial)
        if width is None:
            sizes = ", ".join(map(str, GROUP_SIZES))
            raise ValueError(
                f"resources.devices_per_trial: a trial holds {sizes} HPUs or a multiple of "
                f"{GROUP_SIZES[-1]}, got {self.devices_per_trial}"
            )
        return width

    def _new_crew(self) -> WorkerGroup:
        if self.devices_per_trial == 1:
            # Nodes are filled evenly: a lost one takes as few trials with it as can be.
            worker_group = WorkerGroup([self._new_actor(scheduling_strategy="SPREAD")])
            wishes = [PlacementRequest(cards=1)] if self.device == "hpu" else []
        else:
            worker_group, wishes = self._new_gang()
        pairs = zip(worker_group.actors, wishes, strict=False)
        worker_group.placements = [actor.placement.remote(wish) for actor, wish in pairs]
        worker_group.up = worker_group.actors[0].pid.remote()
        return worker_group

    def _new_gang(self) -> tuple[WorkerGroup, list[PlacementRequest]]:
        """One actor for each rank, on one node when some node is large enough."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        size, width = self.devices_per_trial, self._bundle_width()
        whole = {name: count * size for name, count in self._each().items()}
        fits = size == width or any(_times(node, whole) for node in self._nodes())
        bundle = {name: count * width for name, count in self._each().items()}
        bundles = [bundle] * (size // width)
        group = placement_group(bundles, strategy="STRICT_PACK" if fits else "PACK")
        actors = [
            self._new_actor(
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=rank // width
                )
            )
            for rank in range(size)
        ]
        wishes = [
            PlacementRequest(
                rank == 0, width if self.device == "hpu" and rank % width == 0 else 0, fits
            )
            for rank in range(size)
        ]
        return WorkerGroup(actors, group=group), wishes

    def _new_actor(self, **options: Any) -> Any:
        need = self._each()
        if self.device == "hpu":
            # Cards are ours to choose; see `sweep.ray_backend.device_locks`. Habana's settings
            # count from the moment Python starts.
            habana = {k: v for k, v in self.environment.items() if k.startswith("PT_HPU_")}
            options["runtime_env"] = {"env_vars": {**KEEP_MODULES, **habana}}
        # Three threads: one trains, one hears that it should stop, one says where it sits.
        actor = self._actor_class.options(
            max_concurrency=3,
            max_restarts=0,
            num_cpus=need.pop("CPU", 0),
            num_gpus=need.pop("GPU", 0),
            resources=need,
            **options,
        )
        return actor.remote(self._environment(), self.device, self.hang_seconds)

    def _environment(self) -> dict[str, str]:
        """What must be set in a worker before it imports torch."""
        threads = str(self.cpus_per_trial)
        return {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
            **self.environment,
        }

    def _take(self, worker_group: WorkerGroup, rank: int) -> list[Event]:
        """The next event of a rank's stream, which is ready."""
        try:
            event, reusable = self._ray.get(next(worker_group.streams[rank]))
        except StopIteration:
            if worker_group.key is not None and not worker_group.open:
                self._let_go(worker_group)
                return []
            worker_group.end(rank, None, time.monotonic())
            return self._judge(worker_group)
        except self._ray.exceptions.RayError as error:
            return self._gone(worker_group, rank, error)
        worker_group.heard = True
        if isinstance(event, SlotsChanged | Evicted):
            self._repack(worker_group, event)
            return []
        if not isinstance(event, Finished | Interrupted | Lost):
            return [event] if rank == 0 else []
        if not worker_group.single and worker_group.key is None:
            worker_group.end(rank, event, time.monotonic())
            return self._judge(worker_group)
        if rank:
            return []
        worker_group.open.discard(event.number)
        if not worker_group.open and worker_group.key is None:
            worker_group.job, worker_group.used = None, True
            worker_group.streams.clear()
            if not reusable:
                self._retire(worker_group)
        return [event]

    def _let_go(self, worker_group: WorkerGroup) -> None:
        """A packed job has ended as it was told, or by a fault after its trials had left it."""
        worker_group.streams.clear()
        after = worker_group.after
        worker_group.job, worker_group.key, worker_group.used = None, None, True
        if after is None:
            self._retire(worker_group)
        elif worker_group.single:
            worker_group.take(after, *self._width_of(after))
        else:
            # Ranks meet once: the door that they met at is closed.
            self._retire(worker_group)
            self._backlog.add(after)

    def _repack(self, worker_group: WorkerGroup, event: SlotsChanged | Evicted) -> None:
        """A packed job says how much it holds, or puts a trial out."""
        if isinstance(event, SlotsChanged):
            worker_group.width = self._width = event.slots
            return
        worker_group.open.discard(event.number)
        again = Job((worker_group.placed[event.number],), None if event.alone else worker_group.key)
        self._backlog.add(again)

    def _gone(self, worker_group: WorkerGroup, rank: int, error: Exception) -> list[Event]:
        """A worker process is dead, or its node is."""
        message = reason_of(error)
        log.warning("a worker was lost: %s", error)
        if worker_group.key is not None and not worker_group.open:
            # It died idle; what it was to do next is for another.
            self._retire(worker_group)
            if worker_group.after is not None:
                self._backlog.add(worker_group.after)
            return []
        if worker_group.used and not worker_group.heard and worker_group.job:
            # It died idle, with its node perhaps: nothing has happened to the trial.
            self._retire(worker_group)
            self._worker_groups.append(fresh := self._new_crew())
            fresh.take(worker_group.job)
            return []
        if worker_group.key is not None and worker_group.width > 1:
            # Where memory runs out, processes die without a word, and trials one by one take less.
            self._most[worker_group.key] = worker_group.width // 2
        full = isinstance(error, self._ray.exceptions.OutOfMemoryError)
        kind: CauseKind = "out_of_memory" if full else "lost"
        worker_group.end(rank, Lost(min(worker_group.open), kind, message), time.monotonic())
        return self._judge(worker_group)

    def _feel_pulses(self, now: float) -> None:
        """Give up a worker whose whole process stands still: it cannot see itself that it hangs."""
        if self.hang_seconds is None:
            return
        for worker_group in self._worker_groups:
            if not (worker_group.job and worker_group.open and self._is_there(worker_group.up)):
                worker_group.pulses.clear()
                continue
            for rank in list(worker_group.streams):
                asked_at, answer = worker_group.pulses.get(rank, (now, None))
                if answer is None or (self._is_there(answer) and now - asked_at > LOOK_AGAIN):
                    worker_group.pulses[rank] = (now, worker_group.actors[rank].pid.remote())
                elif now - asked_at > self.hang_seconds and not self._is_there(answer):
                    message = f"its process has not answered in {(now - asked_at) / 60:.3g} minutes"
                    worker_group.end(rank, Lost(min(worker_group.open), "hung", message), now)

    def _is_there(self, reference: Any) -> bool:
        return bool(self._ray.wait([reference], timeout=0)[0])

    def _judge(self, worker_group: WorkerGroup) -> list[Event]:
        """The end of a crew that is not used again, once it is clear how its job ended."""
        last = worker_group.verdict(time.monotonic())
        if last is None:
            return []
        self._retire(worker_group)
        if isinstance(last, Lost):
            return [Lost(number, last.kind, last.message) for number in sorted(worker_group.open)]
        return [last]

    def _relieve(self) -> None:
        """Let an idle worker do the job of one that finds no place, on a cluster that shrank.

        Idle, it would hold for ever what the other waits for. One that there is a place for is only
        slow to start: ended, it would be started again and be no sooner.
        """
        if not any(c.single and c.used and c.job is None for c in self._worker_groups):
            return
        for worker_group in self._worker_groups:
            if (
                worker_group.job is None
                or worker_group.used
                or worker_group.heard
                or not worker_group.single
            ):
                continue
            if self._is_there(worker_group.up):
                continue
            surplus = len(self._worker_groups) > self._places(self._fitting())
            if surplus or time.monotonic() - worker_group.since > PATIENCE:
                self._retire(worker_group)
                for number in sorted(worker_group.open):
                    self._backlog.add(Job((worker_group.placed[number],), worker_group.key))
                return

    def _retire(self, worker_group: WorkerGroup) -> None:
        """A worker that failed, or that cannot be cleaned, is replaced and never reused."""
        with contextlib.suppress(ValueError):
            self._worker_groups.remove(worker_group)
        worker_group.streams.clear()
        for actor in worker_group.actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        if worker_group.group is not None:
            self._ray.util.remove_placement_group(worker_group.group)


def reason_of(error: Exception) -> str:
    """Ray's word on a lost worker in one line; what kept it from starting comes last."""
    from rich.text import Text

    plain = Text.from_ansi(str(error)).plain
    lines = [line.strip() for line in plain.splitlines() if line.strip()] or [repr(error)]
    started = "creation task" not in lines[0]
    return lines[0] if started else f"the worker could not start: {lines[-1]}"


def _times(node: Mapping[str, float], need: Mapping[str, float]) -> int:
    """How often a node holds what is needed."""
    return int(min(node.get(name, 0.0) // count for name, count in need.items()))


def _start_reaper(folder: str) -> subprocess.Popen[bytes]:
    """Watch over this process from outside; see `sweep.ray_backend.reaper`."""
    command = [sys.executable, "-m", "sweep.ray_backend.reaper", str(os.getpid()), folder]
    # In a session of its own: it is needed most when the whole process group is killed.
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
