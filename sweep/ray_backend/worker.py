"""The Ray actor that holds devices and trains: warm between trials, replaced after a failure.

Its module imports neither Optuna nor, at the top, Ray or torch: Ray loads it in every worker.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from sweep.driver.executor import (
    Evaluated,
    Event,
    Evicted,
    Finished,
    Interrupted,
    Job,
    Lost,
    SlotsChanged,
    Started,
    TrialRef,
    WorkerMessage,
)
from sweep.ray_backend.liveness import lease
from sweep.ray_backend.rank_placement import (
    HeldResources,
    NoFreeHpusError,
    PlacementRequest,
    RankPlacement,
    reserve,
    set_rank_environment,
)
from trial.distributed.rank_group import PeerLost, folder_of_rank
from trial.packed.trial_source import PackedTrial, TrialSource
from trial.store.control import StopReason
from trial.store.disk_full import DiskFullError
from trial.store.folders import TrialFolder
from trial.store.records import Cause, Evaluation, Result

POLL_SECONDS = 2.0
"""Seconds between two looks at whether a trial hangs."""

EventQueue = queue.SimpleQueue[WorkerMessage | None]
"""Events of a job in their order; None is its end."""


class WorkerControl:
    """A trial's `Control` inside the worker: events go out, the stop reason comes in."""

    def __init__(self, trial: TrialRef, events: EventQueue) -> None:
        self.trial = trial
        self.events = events
        self.reason: StopReason | None = None
        self.last_sign = time.monotonic()
        """When the trial last gave a sign of life, on the monotonic clock."""

    def started(self, folder: TrialFolder, device: str, max_steps: int) -> None:
        """Training is about to begin."""
        self.last_sign = time.monotonic()
        self.events.put(Started(self.trial.number, device, max_steps))

    def evaluated(self, folder: TrialFolder, evaluation: Evaluation) -> None:
        """One evaluation is on disk."""
        self.events.put(Evaluated(self.trial.number, evaluation))

    def alive(self, folder: TrialFolder) -> None:
        """One batch has been evaluated."""
        self.last_sign = time.monotonic()

    def stop_reason(self, folder: TrialFolder) -> StopReason | None:
        """The reason that the driver gave to stop; read between optimizer steps."""
        self.last_sign = time.monotonic()
        return self.reason


class ControlTable:
    """The controls of the trials that run in a worker, by the trials' numbers."""

    def __init__(self) -> None:
        self._open: dict[int, WorkerControl] = {}
        self._early: dict[int, StopReason] = {}
        """Reasons to stop that came before their trial: Ray's calls may overtake each other."""

    def open(self, trial: TrialRef, events: EventQueue) -> WorkerControl:
        """The control of a trial that starts."""
        control = WorkerControl(trial, events)
        control.reason = self._early.pop(trial.number, None)
        self._open[trial.number] = control
        return control

    def close(self, number: int) -> None:
        """Forget a trial that has ended here."""
        del self._open[number]

    def stop(self, number: int, reason: StopReason) -> None:
        """Ask a trial to stop, now or once it starts."""
        if number in self._open:
            self._open[number].reason = reason
        else:
            self._early[number] = reason

    def silent(self, now: float) -> list[tuple[int, float]]:
        """Each trial's number, and seconds since its last sign of life."""
        return [(number, now - control.last_sign) for number, control in list(self._open.items())]


class WorkerTrialSource:
    """A packed job's `TrialSource`: the job's first trials, then those of an inbox."""

    def __init__(
        self,
        trials: tuple[TrialRef, ...],
        inbox: queue.SimpleQueue[TrialRef | None],
        controls: ControlTable,
        events: EventQueue,
    ) -> None:
        self._first = deque(trials)
        self._inbox = inbox
        """Trials that joined; None once there will be no more."""
        self._controls = controls
        self._events = events
        self._closed = False

    def close(self) -> None:
        """There will be no more trials."""
        self._inbox.put(None)

    def next(self, wait: bool) -> PackedTrial | None:
        """The next trial; None when there is none now or, if `wait`, none any more."""
        trial = self._first.popleft() if self._first else self._receive(wait)
        if trial is None:
            return None
        folder = folder_of_rank(TrialFolder(trial.folder))
        return PackedTrial(folder, self._controls.open(trial, self._events))

    def _receive(self, wait: bool) -> TrialRef | None:
        trial = None
        with contextlib.suppress(queue.Empty):
            trial = None if self._closed else self._inbox.get(block=wait)
            self._closed = self._closed or trial is None
        return trial

    def ended(self, trial: PackedTrial, result: Result | None) -> None:
        """The trial has a result or was interrupted."""
        number = self._leave(trial)
        self._events.put(Finished(number, result) if result else Interrupted(number))

    def evicted(self, trial: PackedTrial, *, alone: bool) -> None:
        """The trial goes on in another job."""
        self._events.put(Evicted(self._leave(trial), alone))

    def abandoned(self, trial: PackedTrial, error: Exception) -> None:
        """The trial was dropped without a result."""
        self._events.put(Lost(self._leave(trial), "lost", str(error).split("\n")[0]))

    def sized(self, slots: int) -> None:
        """How many trials the job holds at once."""
        self._events.put(SlotsChanged(slots))

    def _leave(self, trial: PackedTrial) -> int:
        number = cast(WorkerControl, trial.control).trial.number
        self._controls.close(number)
        return number


class FollowerTrialSource:
    """The `TrialSource` of ranks other than the first, which takes trials and reports their ends.

    Every method does nothing.
    """

    def next(self, wait: bool) -> PackedTrial | None:
        """Never called."""

    def ended(self, trial: PackedTrial, result: Result | None) -> None:
        """Reported by the first rank."""

    def evicted(self, trial: PackedTrial, *, alone: bool) -> None:
        """Reported by the first rank."""

    def abandoned(self, trial: PackedTrial, error: Exception) -> None:
        """Reported by the first rank."""

    def sized(self, slots: int) -> None:
        """Reported by the first rank."""


class TrialWorker:
    """One process that trains one job at a time on the devices Ray gave it."""

    def __init__(
        self,
        environment: Mapping[str, str],
        preload: str | None = None,
        hang_seconds: float | None = None,
    ) -> None:
        lease.end_with_parent()
        os.environ.update(environment)
        self._lease = lease.Lease()
        self.process_cache: Any = None
        """The warm `ProcessCache`; None before the first trial and after a failure."""
        self._hang_seconds = hang_seconds
        self._controls = ControlTable()
        self._held: HeldResources | None = None
        self._source: WorkerTrialSource | None = None
        """Where the packed job that runs here gets its trials."""
        self._inbox: queue.SimpleQueue[TrialRef | None] = queue.SimpleQueue()
        """Trials that join the packed job that runs here, or (calls may overtake) the next one."""
        # The imports take seconds: begin while Ray is still starting other workers.
        self._importing = threading.Thread(target=import_trial, args=(preload,), daemon=True)
        if preload:
            self._importing.start()

    def pid(self) -> int:
        """The worker's process id; answers once it is up."""
        return os.getpid()

    def renew_lease(self) -> None:
        """The driver is there: this process does not end itself for `lease.LEASE_SECONDS`."""
        self._lease.renew()

    def placement(self, request: PlacementRequest) -> RankPlacement | str:
        """Reserve what a rank needs on this node; an error message if it cannot be had."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        hpus = next(n["Resources"].get("HPU", 0) for n in ray.nodes() if n["NodeID"] == node)
        address = ray.util.get_node_ip_address()
        try:
            placement, self._held = reserve(
                request, node, address, int(hpus), self.lock_folder(node)
            )
        except NoFreeHpusError as error:
            return str(error)
        return placement

    def lock_folder(self, node: str) -> Path | None:
        """Where the locks of the node's HPUs are; None: the machine's default folder.

        Tests that simulate several nodes on one machine override this.
        """
        return None

    def stop(self, number: int, reason: StopReason) -> None:
        """Ask a trial to stop before its next optimizer step."""
        self._controls.stop(number, reason)

    def add(self, trial: TrialRef) -> None:
        """Give the packed job that runs here, or is about to, one more trial."""
        self._inbox.put(trial)

    def leave(self) -> None:
        """Let the packed job that runs here end once its trials have."""
        if (source := self._source) is not None:
            source.close()

    def run(
        self,
        job: Job,
        rank: int = 0,
        *placements: RankPlacement | str,
        slots: int = 1,
        limit: int = 1,
    ) -> Iterator[tuple[WorkerMessage, bool]]:
        """Train the job's trials; yields each event with whether the worker may be reused.

        A rank that only saw another one fail ends without a last event; of a packed job the first
        rank reports everything.

        Args:
            job: With a key it is a packed one, which takes further trials by `add` until `leave`.
            rank: This worker's rank.
            placements: Those of all ranks in their order, or error messages of those without one;
                none when the worker needs none.
            slots: Slots of a packed job; 0: as many as raise the throughput, at most `limit`.
            limit: Most slots of a packed job that chooses their number.
        """
        found = [placement for placement in placements if isinstance(placement, RankPlacement)]
        if len(found) < len(placements):
            message = next(placement for placement in placements if isinstance(placement, str))
            for trial in job.trials:
                yield Lost(trial.number, "device_busy", message), False
            return
        if self._held is not None:
            set_rank_environment(rank, found, self._held, os.environ)
        events: EventQueue = queue.SimpleQueue()
        train = partial(self._train_each, job, events)
        if job.key is not None:
            source = self._open_source(job, rank, events)
            train = partial(self._train_packed, source, events, slots, limit)
        thread = threading.Thread(target=train, daemon=True)
        thread.start()
        while (event := self._next_event(events)) is not None:
            yield event, self.process_cache is not None and self.process_cache.reusable
            if isinstance(event, Lost) and self.process_cache is None:
                return  # The thread still hangs: this process is of no more use.
        thread.join()

    def _open_source(self, job: Job, rank: int, events: EventQueue) -> TrialSource:
        if rank:
            return FollowerTrialSource()
        self._source = WorkerTrialSource(job.trials, self._inbox, self._controls, events)
        return self._source

    def _next_event(self, events: EventQueue) -> WorkerMessage | None:
        """The next event; `Lost` for a trial without a sign of life for too long."""
        while True:
            try:
                return events.get(timeout=POLL_SECONDS)
            except queue.Empty:
                for number, silent in self._controls.silent(time.monotonic()):
                    if self._hang_seconds is not None and silent > self._hang_seconds:
                        self.process_cache = None
                        message = f"no step and no evaluated batch in {silent / 60:.3g} minutes"
                        return Lost(number, "hung", message)

    def _train_each(self, job: Job, events: EventQueue) -> None:
        """Train the trials of a job one after the other."""
        try:
            for trial in job.trials:
                events.put(self._train_one(trial, events))
        except PeerLost:
            self.process_cache = None
        finally:
            events.put(None)

    def _train_packed(
        self, source: TrialSource, events: EventQueue, slots: int, limit: int
    ) -> None:
        """Train what the source has until it is closed; after an error the worker is not reused.

        By then every trial that was in a slot has been evicted, and goes on by itself elsewhere.
        """
        try:
            cache = self._warm_cache()
            from trial.packed.job import PackedJob

            PackedJob(source, cache, slots, limit=limit).run()
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            self.process_cache = None
        finally:
            # What lies in the inbox now is of no use to the next job, the end mark above all.
            self._source, self._inbox = None, queue.SimpleQueue()
            events.put(None)

    def _warm_cache(self) -> Any:
        """The process cache, once the imports that began with the worker are done."""
        if self._importing.ident is not None:
            self._importing.join()
        from trial.preload import finish_imports
        from trial.training.process_cache import ProcessCache

        self.process_cache = self.process_cache or ProcessCache(finish_imports)
        return self.process_cache

    def _train_one(self, trial: TrialRef, events: EventQueue) -> Event:
        control = self._controls.open(trial, events)
        folder = folder_of_rank(TrialFolder(trial.folder))
        try:
            result = self.train(folder, control)
        except PeerLost:
            raise
        except DiskFullError as error:
            self.process_cache = None
            return Lost(trial.number, "lost", str(error).split("\n")[0])
        except BaseException as error:  # What `train` itself did not catch still is a result.
            cause = Cause(kind="error", message=f"{type(error).__name__}: {error}".split("\n")[0])
            result = Result(state="failed", cause=cause)
            folder.write_result(result)
            self.process_cache = None
        finally:
            self._controls.close(trial.number)
        return Finished(trial.number, result) if result else Interrupted(trial.number)

    def train(self, folder: TrialFolder, control: WorkerControl) -> Result | None:
        """Train one trial; None when it was interrupted. Tests and benchmarks override this."""
        cache = self._warm_cache()
        from trial.store.log_capture import capture
        from trial.train import train

        with capture(folder, echo=False):
            return train(folder, control, cache)


def import_trial(device: str) -> None:
    """Import torch, transformers and PEFT before the first trial asks for them."""
    from trial.preload import preload

    preload(device)
