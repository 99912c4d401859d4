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
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

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
from sweep.ray_backend.rank_placement import (
    HeldResources,
    NoCardsError,
    PlacementRequest,
    RankPlacement,
    sit,
    take,
)
from trial.distributed.rank_group import PeerLost, folder_of_rank
from trial.packed.trial_source import PackedTrial
from trial.store.control import StopReason
from trial.store.disk_full import DiskFullError
from trial.store.folders import TrialFolder
from trial.store.records import Cause, Evaluation, Result

LOOK_EVERY = 2.0
"""Seconds between two looks at whether a trial hangs."""


Out = queue.SimpleQueue[WorkerMessage | None]
"""What a job says, in order; None is its end."""


class WorkerControl:
    """A trial's `Control` inside the worker: events go out, the stop reason comes in."""

    def __init__(self, placed: TrialRef, out: Out) -> None:
        self.placed = placed
        self.out = out
        self.reason: StopReason | None = None
        self.heard = time.monotonic()
        """When the trial last gave a sign of life."""

    def started(self, folder: TrialFolder, device: str, max_steps: int) -> None:
        """Training is about to begin."""
        self.heard = time.monotonic()
        self.out.put(Started(self.placed.number, device, max_steps))

    def evaluated(self, folder: TrialFolder, evaluation: Evaluation) -> None:
        """One evaluation is on disk."""
        self.out.put(Evaluated(self.placed.number, evaluation))

    def alive(self, folder: TrialFolder) -> None:
        """One batch has been evaluated."""
        self.heard = time.monotonic()

    def stop_reason(self, folder: TrialFolder) -> StopReason | None:
        """What the driver has asked for; read between optimizer steps."""
        self.heard = time.monotonic()
        return self.reason


class WorkerTrialSource:
    """A packed job's `TrialSource` inside the worker: trials come in by `TrialWorker.add`."""

    def __init__(self, worker: TrialWorker, out: Out) -> None:
        self.worker = worker
        self.out = out
        self.inbox: queue.SimpleQueue[TrialRef | None] = queue.SimpleQueue()
        self.closed = False
        self._numbers: dict[Path, int] = {}

    def next(self, wait: bool) -> PackedTrial | None:
        """The next trial; waits until there is one or the job is told to leave."""
        placed = None
        with contextlib.suppress(queue.Empty):
            placed = None if self.closed else self.inbox.get(block=wait)
            self.closed = self.closed or placed is None
        if placed is None:
            return None
        folder = folder_of_rank(TrialFolder(placed.folder))
        self._numbers[folder.path] = placed.number
        return PackedTrial(folder, self.worker.line(placed, self.out))

    def ended(self, trial: PackedTrial, result: Result | None) -> None:
        """The trial has a result or was interrupted."""
        number = self._leave(trial)
        self.out.put(Finished(number, result) if result else Interrupted(number))

    def evicted(self, trial: PackedTrial, *, alone: bool) -> None:
        """The trial goes on in another job."""
        self.out.put(Evicted(self._leave(trial), alone))

    def abandoned(self, trial: PackedTrial, error: Exception) -> None:
        """The trial was dropped without a result."""
        self.out.put(Lost(self._leave(trial), "lost", str(error).split("\n")[0]))

    def sized(self, slots: int) -> None:
        """How many trials the job holds at once."""
        self.out.put(SlotsChanged(slots))

    def _leave(self, trial: PackedTrial) -> int:
        number = self._numbers.pop(trial.folder.path)
        self.worker.hang_up(number)
        return number


class FollowerTrialSource:
    """The `TrialSource` of ranks other than the first, which gets the trials and reports them."""

    def next(self, wait: bool) -> PackedTrial | None:
        """The first rank asks."""

    def ended(self, trial: PackedTrial, result: Result | None) -> None:
        """The first rank tells."""

    def evicted(self, trial: PackedTrial, *, alone: bool) -> None:
        """The first rank tells."""

    def abandoned(self, trial: PackedTrial, error: Exception) -> None:
        """The first rank tells."""

    def sized(self, slots: int) -> None:
        """The first rank tells."""


class TrialWorker:
    """One process that trains one job at a time on the devices Ray gave it."""

    def __init__(
        self,
        environment: Mapping[str, str],
        preload: str | None = None,
        hang_seconds: float | None = None,
    ) -> None:
        os.environ.update(environment)
        self._hang_seconds = hang_seconds
        self._lines: dict[int, WorkerControl] = {}
        self._early: dict[int, StopReason] = {}
        self._process_cache: Any = None
        self._taken: HeldResources | None = None
        self._counter: WorkerTrialSource | None = None
        self._joining: list[TrialRef] = []
        """Trials of a packed job that has not begun: Ray's calls may overtake each other."""
        self._door = threading.Lock()
        # The imports take seconds: begin while Ray is still starting other workers.
        self._importing = threading.Thread(target=import_trial, args=(preload,), daemon=True)
        if preload:
            self._importing.start()

    def pid(self) -> int:
        """The worker's process id; answers once it is up."""
        return os.getpid()

    def placement(self, wish: PlacementRequest) -> RankPlacement | str:
        """Take what the ranks of a trial need here; in words, why it cannot be had."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        hpus = next(n["Resources"].get("HPU", 0) for n in ray.nodes() if n["NodeID"] == node)
        address = ray.util.get_node_ip_address()
        try:
            placement, self._taken = take(wish, node, address, int(hpus), self._locks(node))
        except NoCardsError as error:
            return str(error)
        return placement

    def _locks(self, node: str) -> Path | None:
        """Where the locks of the node's cards are; the machine's own place when None."""
        return None

    def stop(self, number: int, reason: StopReason) -> None:
        """Ask a trial to stop before its next optimizer step."""
        if number in self._lines:
            self._lines[number].reason = reason
        else:
            self._early[number] = reason

    def add(self, placed: TrialRef) -> None:
        """Give the packed job that runs here, or is about to, one more trial."""
        with self._door:
            if self._counter is not None:
                self._counter.inbox.put(placed)
            else:
                self._joining.append(placed)

    def leave(self) -> None:
        """Let the packed job that runs here end once its trials have."""
        if self._counter is not None:
            self._counter.inbox.put(None)

    def line(self, placed: TrialRef, out: Out) -> WorkerControl:
        """The `Control` of a trial that starts."""
        line = WorkerControl(placed, out)
        line.reason = self._early.pop(placed.number, None)
        self._lines[placed.number] = line
        return line

    def hang_up(self, number: int) -> None:
        """The trial has ended here."""
        del self._lines[number]

    def run(
        self,
        job: Job,
        rank: int = 0,
        *placements: RankPlacement | str,
        slots: int = 1,
        limit: int = 1,
    ) -> Iterator[tuple[WorkerMessage, bool]]:
        """Train the job's trials; yields each event with whether the worker may be reused.

        A job with a key is a packed one of `slots` slots (0: as many as pay, at most `limit`): it
        takes further trials by `add` until it is told to `leave`.

        `seats` are those of all ranks in their order. A rank that only saw another one go ends
        without a last event; of a packed job the first rank tells everything.
        """
        taken = [placement for placement in placements if isinstance(placement, RankPlacement)]
        if len(taken) < len(placements):
            why = next(placement for placement in placements if isinstance(placement, str))
            for placed in job.trials:
                yield Lost(placed.number, "device_busy", why), False
            return
        if self._taken is not None:
            sit(rank, taken, self._taken, os.environ)
        out: Out = queue.SimpleQueue()
        work = partial(self._train_all, job, out)
        if job.key is not None:
            desk = FollowerTrialSource() if rank else self._open_counter(job, out)
            work = partial(self._train_packed, desk, out, slots, limit)
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while (event := self._next(out)) is not None:
            yield event, self._process_cache is not None and self._process_cache.reusable
            if isinstance(event, Lost) and self._process_cache is None:
                return  # The thread still hangs: this process is of no more use.
        thread.join()

    def _open_counter(self, job: Job, out: Out) -> WorkerTrialSource:
        """Where a packed job gets its trials, those that came before it included."""
        counter = WorkerTrialSource(self, out)
        with self._door:
            for placed in (*job.trials, *self._joining):
                counter.inbox.put(placed)
            self._joining.clear()
            self._counter = counter
        return counter

    def _next(self, out: Out) -> WorkerMessage | None:
        """The next event; a trial without a sign of life for too long is given up."""
        while True:
            try:
                return out.get(timeout=LOOK_EVERY)
            except queue.Empty:
                for number, line in list(self._lines.items()):
                    silent = time.monotonic() - line.heard
                    if self._hang_seconds is not None and silent > self._hang_seconds:
                        self._process_cache = None
                        message = f"no step and no evaluated batch in {silent / 60:.3g} minutes"
                        return Lost(number, "hung", message)

    def _train_all(self, job: Job, out: Out) -> None:
        try:
            for placed in job.trials:
                out.put(self._train(placed, out))
        except PeerLost:
            self._process_cache = None
        finally:
            out.put(None)

    def _train_packed(
        self, desk: WorkerTrialSource | FollowerTrialSource, out: Out, slots: int, limit: int
    ) -> None:
        """Train what comes until the job is told to leave; a fault of the whole spoils the worker.

        Every trial that was in a slot has been bumped by then, and goes on by itself elsewhere.
        """
        try:
            self._pack_here(desk, slots, limit)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            self._process_cache = None
        finally:
            self._counter = None
            out.put(None)

    def _pack_here(
        self, desk: WorkerTrialSource | FollowerTrialSource, slots: int, limit: int
    ) -> None:
        self._imported()
        from trial.packed.job import PackedJob
        from trial.preload import finish_imports
        from trial.training.process_cache import ProcessCache

        self._process_cache = self._process_cache or ProcessCache(finish_imports)
        PackedJob(desk, self._process_cache, slots, limit=limit).run()

    def _imported(self) -> None:
        """Wait for the imports that began when the worker did."""
        if self._importing.ident is not None:
            self._importing.join()

    def _train(self, placed: TrialRef, out: Out) -> Event:
        line = self.line(placed, out)
        folder = folder_of_rank(TrialFolder(placed.folder))
        try:
            result = self._train_here(folder, line)
        except PeerLost:
            raise
        except DiskFullError as error:
            self._process_cache = None
            return Lost(placed.number, "lost", str(error).split("\n")[0])
        except BaseException as error:  # Anything the trial's own net missed still is a result.
            cause = Cause(kind="error", message=f"{type(error).__name__}: {error}".split("\n")[0])
            result = Result(state="failed", cause=cause)
            folder.write_result(result)
            self._process_cache = None
        finally:
            self.hang_up(placed.number)
        return Finished(placed.number, result) if result else Interrupted(placed.number)

    def _train_here(self, folder: TrialFolder, line: WorkerControl) -> Result | None:
        self._imported()
        from trial.preload import finish_imports
        from trial.store.log_capture import capture
        from trial.train import train
        from trial.training.process_cache import ProcessCache

        self._process_cache = self._process_cache or ProcessCache(finish_imports)
        with capture(folder, echo=False):
            return train(folder, line, self._process_cache)


def import_trial(device: str) -> None:
    """Pay torch, transformers and PEFT once, before the first trial asks for them."""
    from trial.preload import preload

    preload(device)
