"""The loop of a sweep: take proposals, place jobs, pass evaluations on, commit results.

It names neither Optuna nor Ray: proposals come from a `Decider`, jobs go to an `Executor`, people
watch through a `View`. The order of writing is what makes a kill harmless: a trial's result is in
its folder before the decider is told, and the decider numbers a trial before its folder exists.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sweep.driver.disk_guard import DiskGuard
from sweep.driver.executor import (
    Evaluated,
    Event,
    Executor,
    Finished,
    Interrupted,
    Job,
    Lost,
    Started,
    TrialRef,
)
from sweep.driver.interfaces import Decider, Proposal, SweepOutcome, View
from sweep.driver.prefetch import Prefetcher, how_far
from sweep.driver.progress import SweepProgress
from sweep.driver.retry_policy import halved, is_halving, retry, tries
from sweep.driver.stop_rules import Verdict, verdict
from sweep.spec.spec import FailuresSpec, StopSpec
from trial.config.packing_rules import share_key
from trial.config.trial_config import Origin, TrialConfig
from trial.store.disk_full import says_full
from trial.store.failure_kinds import kind_of_log, note_retry
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Cause, Result

log = logging.getLogger(__name__)

SOON = 0.02
"""Longest wait for an event while a slot waits for the sampler, in seconds."""


@dataclass(slots=True)
class Driver:
    """Runs one study to its end, or until it is interrupted."""

    study: StudyFolder
    decider: Decider
    executor: Executor
    stop: StopSpec
    view: View
    progress: SweepProgress
    failures: FailuresSpec = field(default_factory=FailuresSpec)
    disk: DiskGuard | None = None
    """Looked at before a trial starts; None when nobody need look."""
    packed: bool = False
    """Whether trials may share a job."""
    poll: float = 0.5
    """Longest wait for an event, in seconds."""
    ask_ahead: int | None = None
    """Proposals to have ready; None: as many as it takes to keep the devices busy."""
    patience: float | None = 0.1
    """Longest wait for the sampler while trials run, in seconds; None waits until it has drawn."""
    _ahead: Prefetcher[Proposal | None] = field(init=False)
    _drawn: deque[Proposal] = field(default_factory=deque)
    """Proposals that can be trained and have not been started."""
    _exhausted: bool = False
    """Whether the decider has nothing more to propose."""
    _queue: deque[TrialRef] = field(default_factory=deque)
    """Trials to start before any new one is proposed."""
    _waiting: list[tuple[float, TrialRef]] = field(default_factory=list)
    """Trials to be tried again, each with the time at which that may be."""
    _params: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    _ending: SweepOutcome | None = None
    """Set once no further trial is to be proposed."""
    _halted: bool = False
    """Whether the running trials were told to leave their devices as well."""
    _interrupted: str = ""
    """Why somebody wants the sweep to stop, until the loop has obeyed."""
    _held_back: str = ""
    """Why no trial may start at the moment."""

    def run(self) -> SweepOutcome:
        """Run trials until a stop condition holds, nothing is left, or `interrupt` is called."""
        self._ahead = Prefetcher(self.decider.ask)
        try:
            return self._loop()
        finally:
            self._ahead.leave()

    def _loop(self) -> SweepOutcome:
        self._take_up()
        while True:
            self._obey()
            self._judge()
            self._fill()
            if not self.progress.running and not self._waiting and not self._starving():
                self._give_back()
                if self._held_back:
                    return self._ending or SweepOutcome(self._held_back, failed=True)
                if self._confirm():
                    continue
                return self._ending or SweepOutcome("nothing is left to try")
            self.view.update(self.progress)
            for event in self.executor.events(SOON if self._starving() else self.poll):
                self._handle(event)
                # One that is tried again has not ended, whatever the event says.
                if event.number not in self.progress.waiting:
                    self.view.on_event(event, self.progress)

    def _confirm(self) -> bool:
        """Once the search has ended well, queue the repeats of its best; False without any."""
        if self._halted or (self._ending and self._ending.failed):
            return False
        for proposal in self.decider.confirmations():
            folder = self._folder_of(proposal)
            if self._prepare(proposal, folder):
                self.progress.set_waiting(proposal.number)
                self._queue.append(TrialRef(proposal.number, folder.path))
        if self._queue:
            self.view.note(f"the search is over; {len(self._queue)} repeats confirm its best")
        return bool(self._queue)

    def interrupt(self, reason: str = "interrupted") -> None:
        """Start no further trial; let the running ones checkpoint and leave their devices.

        Safe in a signal handler, which may come in the middle of anything: the loop does the work.
        """
        self._interrupted = reason

    def _obey(self) -> None:
        if self._interrupted and not (self._ending and self._ending.interrupted):
            self._ending = None
            self._end(SweepOutcome(self._interrupted, interrupted=True), stop_running=True)

    def _end(self, ending: SweepOutcome, stop_running: bool) -> None:
        self._ending = self._ending or ending
        if stop_running and not self._halted:
            self._halted = True
            self._queue.clear()
            self._waiting.clear()
            for number, row in self.progress.running.items():
                row.stopping = row.stopping or "interrupt"
                self.executor.stop(number, "interrupt")

    def _judge(self) -> None:
        """Apply the stop conditions, once."""
        found: Verdict | None = None if self._ending else verdict(self.stop, self.progress)
        if found:
            self._end(SweepOutcome(found.reason, failed=found.failed), stop_running=found.interrupt)

    # Taking trials up and starting new ones

    def _take_up(self) -> None:
        """Bring back what earlier runs did: ended trials, and those still in flight."""
        for number in self.decider.finished():
            folder = self.study.trial(number)
            result = folder.read_result()
            if result:
                origin = _origin(folder)
                if origin and not origin.searched:
                    self.progress.repeats.add(number)
                self.progress.add_result(number, result, origin.params if origin else {})
                if self.disk:
                    self.disk.ended(number, result)
        # Whoever goes on with a study that has ended by it knows, and has mended something.
        self.progress.same_failure = ("", 0)
        for proposal in self.decider.pending():
            folder = self._folder_of(proposal)
            result = folder.read_result()
            if result:
                self._report_missed(proposal.number, folder)
                self.progress.set_running(proposal.number, proposal.params)
                self._ended(proposal.number, result)
            elif self._prepare(proposal, folder):
                self._report_missed(proposal.number, folder)
                self.progress.set_waiting(proposal.number)
                self._queue.append(TrialRef(proposal.number, folder.path))

    def _folder_of(self, proposal: Proposal) -> TrialFolder:
        self._params[proposal.number] = proposal.params
        origin = proposal.config.origin if proposal.config else None
        if origin and not origin.searched:
            self.progress.repeats.add(proposal.number)
        return self.study.trial(proposal.number)

    def _report_missed(self, number: int, folder: TrialFolder) -> None:
        """Report evaluations that reached the disk but not the decider before a kill."""
        for evaluation in folder.read_evaluations():
            self.decider.report(number, evaluation)

    def _fill(self) -> None:
        """Give every free slot a trial, then see to the proposals after these."""
        self.progress.capacity = self.executor.capacity()
        self._wake()
        self._receive(0.0)
        self._give_slots()
        if not (self._ending or self._stopping() or self._exhausted or self._held_back):
            self._ahead.order(self._far() - len(self._drawn))

    def _far(self) -> int:
        """How many proposals to have ready, never more than there may still be trials."""
        far = self.ask_ahead
        if far is None:
            ask_seconds = max(self._ahead.seconds, self.decider.ask_seconds)
            far = how_far(ask_seconds, self.progress.mean_seconds, self.progress.capacity)
        planned = self.progress.planned
        return far if planned is None else min(far, planned - self.progress.begun)

    def _give_slots(self) -> None:
        while not self._stopping() and len(self.progress.running) < self.progress.capacity:
            if self._lacks_room():
                return
            placed = self._queue.popleft() if self._queue else self._next()
            if placed is None:
                return
            self._submit(placed)
            self._judge()

    def _stopping(self) -> bool:
        return self._halted or bool(self._interrupted)

    def _lacks_room(self) -> bool:
        """Whether trials that are due have to wait for disk space; says so once."""
        before, self._held_back = self._held_back, ""
        if self.disk is None or (self._ending and not self._queue):
            return False
        self._held_back = self.disk.refusal()
        if self._held_back and not before:
            self.view.note(f"no further trial is started: {self._held_back}")
        return bool(self._held_back)

    def _wake(self) -> None:
        """Move trials whose waiting time is over to the queue."""
        now = self.progress.clock()
        self._queue.extend(placed for due, placed in self._waiting if due <= now)
        self._waiting = [(due, placed) for due, placed in self._waiting if due > now]

    def _submit(self, placed: TrialRef) -> None:
        self.progress.set_running(placed.number, self._params[placed.number])
        key = share_key(TrialFolder(placed.folder).read_config()) if self.packed else None
        self.executor.submit(Job((placed,), key))

    def _next(self) -> TrialRef | None:
        """The next trial to train; None without any, or while the sampler is still at it."""
        while not self._ending:
            if self._drawn:
                proposal = self._drawn.popleft()
                folder = self._folder_of(proposal)
                self._prepare(proposal, folder)
                return TrialRef(proposal.number, folder.path)
            if self._exhausted:
                self._end(SweepOutcome("every configuration of the space has been tried"), False)
            else:
                self._ahead.order(1)
                if not self._receive(self.patience):
                    return None
        return None

    def _receive(self, wait: float | None) -> bool:
        """Take in what was drawn; duplicates and impossible draws are recorded and passed over."""
        arrived = self._ahead.arrived(wait)
        for proposal in arrived:
            if proposal is None:
                self._exhausted = True
            elif proposal.config is not None and proposal.duplicate_of is None:
                self._drawn.append(proposal)
            else:
                self._prepare(proposal, self._folder_of(proposal))
                self._judge()
        return bool(arrived)

    def _starving(self) -> bool:
        """Whether a slot waits for the sampler."""
        free = len(self.progress.running) < self.progress.capacity
        return free and self._ahead.ordered > 0 and not (self._ending or self._stopping())

    def _give_back(self) -> None:
        """Return the proposals that were drawn and never started: they are no trials."""
        left = [*self._drawn, *(proposal for proposal in self._ahead.close() if proposal)]
        self._drawn.clear()
        for proposal in left:
            self.decider.requeue(proposal.number)

    def _prepare(self, proposal: Proposal, folder: TrialFolder) -> bool:
        """Write the trial's configuration; False when there is nothing to train."""
        if proposal.config is None:
            folder.path.mkdir(parents=True, exist_ok=True)
        elif not folder.config.exists():
            TrialFolder.create(folder.path, self._keeping(proposal.config))
        if proposal.duplicate_of is not None:
            duplicate = Result(state="duplicate", duplicate_of=proposal.duplicate_of)
            return self._settle(proposal.number, folder, duplicate)
        if proposal.config is None:
            cause = Cause(kind="error", message=proposal.problem)
            return self._settle(proposal.number, folder, Result(state="failed", cause=cause))
        return True

    def _keeping(self, config: TrialConfig) -> TrialConfig:
        """The trial as it is trained here: its last checkpoint may stay, its job may be shared."""
        keep = self.disk is not None and self.disk.resources.keep_checkpoints > 0
        wanted = {"keep_checkpoint": keep, "packed": self.packed}
        return config.model_copy(update={name: True for name, wish in wanted.items() if wish})

    def _settle(self, number: int, folder: TrialFolder, result: Result) -> bool:
        folder.write_result(result)
        self._commit(number, result)
        return False

    # Events

    def _handle(self, event: Event) -> None:
        if event.number not in self.progress.running:
            return
        if isinstance(event, Started):
            row = self.progress.running[event.number]
            row.device, row.max_steps = event.device, event.max_steps
        elif isinstance(event, Evaluated):
            self._evaluated(event)
        elif isinstance(event, Finished):
            self._ended(event.number, event.result)
        elif isinstance(event, Interrupted):
            self.progress.remove_running(event.number)
        else:
            self._lost_worker(event)

    def _evaluated(self, event: Evaluated) -> None:
        row = self.progress.running[event.number]
        row.last = event.evaluation
        if self.decider.report(event.number, event.evaluation) and not row.stopping:
            row.stopping = "prune"
            self.executor.stop(event.number, "prune")

    def _ended(self, number: int, result: Result) -> None:
        """A trial has a result: commit it, or try again when its failure's policy says so."""
        failed = result.state == "failed" and result.cause is not None
        if not (failed and result.cause and self._try_again(number, result.cause)):
            self._commit(number, result)

    def _lost_worker(self, event: Lost) -> None:
        """The worker died: its result may be there all the same, else the trial goes on."""
        folder = self.study.trial(event.number)
        # It may have died with evaluations on disk that it had told nobody.
        self._report_missed(event.number, folder)
        result = folder.read_result()
        if result is None and says_full(event.message):
            # No fault of the trial's: it goes on from its checkpoint once there is room.
            self.progress.remove_running(event.number)
            self._end(SweepOutcome(event.message, failed=True), stop_running=True)
            return
        if result is None:
            evaluations = folder.read_evaluations()
            step = evaluations[-1].step if evaluations else 0
            kind = event.kind
            if kind == "lost" and kind_of_log(folder.log) == "out_of_memory":
                kind = "out_of_memory"
            cause = Cause(kind=kind, message=event.message, step=step)
            if self._halted and kind == "lost":
                # Told to leave and gone: it goes on from its checkpoint in the next run.
                self.progress.remove_running(event.number)
                return
            if self._try_again(event.number, cause):
                return
            result = Result(state="failed", cause=cause, steps=step)
            folder.write_result(result)
        self._ended(event.number, result)
        if event.number not in self.progress.waiting:
            self.view.on_event(Finished(event.number, result), self.progress)

    def _try_again(self, number: int, cause: Cause) -> bool:
        """Queue the trial once more, if its failure's policy allows; False to give it up."""
        folder = self.study.trial(number)
        action = retry(self.failures, cause.kind, tries(_past(folder), cause))
        if action is None or self._halted:
            return False
        smaller = self._smaller(folder) if action.halve else None
        if action.halve and smaller is None:
            return False
        note_retry(folder.log, cause.kind, cause.message)
        # The other way round, a kill in between would count the halved trial as tried.
        if folder.result.exists():
            folder.set_aside_result()
        else:
            folder.note_failure(Result(state="failed", cause=cause, steps=cause.step or 0))
        if smaller is not None:
            TrialFolder.create(folder.path, smaller)
        self.progress.set_waiting(number)
        self.view.note(f"trial {number} is tried again after {cause.kind}: {cause.message}")
        due = self.progress.clock() + action.wait
        self._waiting.append((due, TrialRef(number, folder.path)))
        return True

    def _smaller(self, folder: TrialFolder) -> TrialConfig | None:
        """The trial with half the micro-batch; None when it cannot be halved (again)."""
        config = folder.read_config()
        made = config.origin.changes if config.origin else []
        if sum(map(is_halving, made)) >= self.failures.out_of_memory_retries:
            return None
        return halved(config)

    def _commit(self, number: int, result: Result) -> None:
        """The result is on disk: tell the decider, then count it."""
        self.decider.tell(number, result)
        self.progress.add_result(number, result, self._params.get(number, {}))
        if self.disk:
            self.disk.ended(number, result)


def _past(folder: TrialFolder) -> list[Cause]:
    """Why the trial was tried again before: on disk, so that it counts over resumes."""
    failures = folder.read_failures()
    if failures and failures[-1] == folder.read_result():
        failures.pop()  # The one in hand, noted just before a kill.
    return [failure.cause for failure in failures if failure.cause]


def _origin(folder: TrialFolder) -> Origin | None:
    """Where a trial of an earlier run came from; None when its folder cannot say."""
    try:
        return folder.read_config().origin
    except (OSError, ValueError):
        return None
