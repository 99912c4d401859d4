"""The driver: draws proposals, submits jobs, reports evaluations, commits results.

It names neither Optuna nor Ray: proposals come from a `Decider`, jobs go to an `Executor`, people
watch through a `View`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from sweep.driver.disk_guard import DiskGuard
from sweep.driver.executor import (
    Evaluated,
    Event,
    Executor,
    ExecutorLostError,
    Finished,
    Interrupted,
    Job,
    Lost,
    Started,
)
from sweep.driver.interfaces import (
    Decider,
    OutcomeKind,
    Proposal,
    SweepOutcome,
    SweepState,
    View,
)
from sweep.driver.progress import SweepProgress
from sweep.driver.proposal_intake import ProposalIntake
from sweep.driver.retries import Retries
from sweep.driver.stop_rules import judged, stop_decision
from sweep.driver.trial_registry import MAY_BE_OF_CONFIG, TrialRegistry
from sweep.spec.spec import FailuresSpec, StopSpec
from trial.store.disk_full import is_disk_full_message
from trial.store.failure_kinds import kind_of_log
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Cause, Result

SAMPLER_POLL = 0.02
"""Longest wait for an event while a device waits for the sampler, in seconds."""


@dataclass(slots=True)
class DriverStatus:
    """What may still be started, and what the run has come to."""

    state: SweepState = SweepState.SEARCHING
    """As far as the loop has acted."""
    outcome: SweepOutcome | None = None
    """Why the search is over; None while the state is SEARCHING."""
    interrupt: str = ""
    """Reason given to `Driver.interrupt`, which the loop acts on at its next turn."""

    def may_start(self) -> SweepState:
        """The state, with an interrupt that the loop has not acted on yet."""
        return SweepState.STOPPING if self.interrupt else self.state

    def is_stopping(self) -> bool:
        """Whether the loop has acted on an interrupt."""
        return self.state is SweepState.STOPPING

    def kind(self) -> OutcomeKind | None:
        """The outcome's kind; None while the state is SEARCHING."""
        return self.outcome.kind if self.outcome else None

    def close(self, outcome: SweepOutcome) -> None:
        """Let no new proposal start. The first reason stays."""
        if self.state is SweepState.SEARCHING:
            self.state, self.outcome = SweepState.CLOSING, outcome


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
    """Asked before a trial starts; None: disk space is not watched."""
    packed: bool = False
    """Whether trials may share a job."""
    poll: float = 0.5
    """Longest wait for an event, in seconds."""
    ask_ahead: int | None = None
    """Proposals to have ready; None: as many as it takes to keep the devices busy."""
    patience: float | None = 0.1
    """Longest wait for the sampler while trials run, in seconds; None: no limit."""
    status: DriverStatus = field(default_factory=DriverStatus, init=False)
    _disk_refusal: str = field(default="", init=False)
    """Why disk space lets no trial start; empty when there is enough."""
    _queue: deque[Job] = field(default_factory=deque, init=False)
    """Trials to start before any new proposal."""
    _jobs: dict[int, Job] = field(default_factory=dict, init=False)
    """Jobs that were submitted, by the numbers of their trials."""
    _registry: TrialRegistry = field(init=False)
    _proposals: ProposalIntake = field(init=False)
    _retries: Retries = field(init=False)

    def run(self) -> SweepOutcome:
        """Run trials until a stop condition holds, nothing is left, or `interrupt` is called."""
        known = (self.study, self.decider, self.progress, self.disk, self.packed)
        self._registry = TrialRegistry(*known)
        self._proposals = ProposalIntake(self.decider, self._record_untrainable, self.ask_ahead)
        self._retries = Retries(self.failures, self.progress.clock)
        try:
            self._resume()
            return self._loop()
        except ExecutorLostError as error:
            return SweepOutcome(str(error), OutcomeKind.FAILED, resumable=True)
        finally:
            self._proposals.cancel()

    def interrupt(self, reason: str = "interrupted") -> None:
        """Let running trials checkpoint and leave, start no other; safe in a signal handler."""
        self.status.interrupt = reason

    def _loop(self) -> SweepOutcome:
        while True:
            self._obey_interrupt()
            self._apply_stop_rules()
            self._start_trials()
            if not self.progress.running and not self._retries and not self._awaits_sampler():
                if outcome := self._finish():
                    return outcome
                continue
            self.view.update(self.progress)
            timeout = SAMPLER_POLL if self._awaits_sampler() else self.poll
            for event in self.executor.events(timeout):
                self._handle(event)
                # A trial that is retried has not ended, whatever the event says.
                if event.number not in self.progress.waiting:
                    self.view.on_event(event, self.progress)

    def _finish(self) -> SweepOutcome | None:
        """The outcome, once nothing runs or waits; None when confirming repeats were queued."""
        self._obey_interrupt()  # It may have come since the turn began.
        self._proposals.requeue_unstarted()
        if self._disk_refusal:
            return self.status.outcome or SweepOutcome(self._disk_refusal, OutcomeKind.FAILED)
        if self._queue_confirmations():
            return None
        return judged(self.status.outcome or SweepOutcome("nothing is left to try"), self.progress)

    def _stop_trials(self) -> None:
        """Ask the running trials to leave their devices; forget those that wait."""
        if self.status.state is SweepState.STOPPING:
            return
        self.status.state = SweepState.STOPPING
        self._queue.clear()
        self._retries.clear()
        for number, row in self.progress.running.items():
            row.stopping = row.stopping or "interrupt"
            self.executor.stop(number, "interrupt")

    def _obey_interrupt(self) -> None:
        reason = self.status.interrupt
        if reason and self.status.kind() is not OutcomeKind.INTERRUPTED:
            self.status.outcome = SweepOutcome(reason, OutcomeKind.INTERRUPTED)
            self._stop_trials()

    def _apply_stop_rules(self) -> None:
        """End the search when one of the sweep's stop conditions holds."""
        if self.status.state is not SweepState.SEARCHING:
            return
        if decision := stop_decision(self.stop, self.progress):
            self.status.close(decision.outcome)
            if decision.state is SweepState.STOPPING:
                self._stop_trials()

    def _has_free_device(self) -> bool:
        return len(self.progress.running) < self.progress.capacity

    def _awaits_sampler(self) -> bool:
        """Whether a device is free for a proposal that is being drawn."""
        may_propose = self.status.may_start() is SweepState.SEARCHING
        return may_propose and self._has_free_device() and self._proposals.drawing

    def _resume(self) -> None:
        """Restore what earlier runs did: trials that ended, and those still in flight."""
        self._registry.restore_finished()
        for number, found in self._registry.restore_pending():
            if isinstance(found, Job):
                self._enqueue(found)
            else:
                self.progress.set_running(number)
                self._trial_finished(number, found)
        for note in self._registry.notes:
            self.view.note(note)

    def _enqueue(self, job: Job) -> None:
        self.progress.set_waiting(job.trials[0].number)
        self._queue.append(job)

    def _start_trials(self) -> None:
        """Give every free device a trial, then request the proposals that come next."""
        self.progress.capacity = self.executor.capacity()
        self._queue.extend(self._retries.pop_due())
        self._proposals.receive(0.0)
        self._fill_devices()
        if self.status.may_start() is SweepState.SEARCHING and not self._disk_refusal:
            self._proposals.prefetch(self.progress)

    def _fill_devices(self) -> None:
        while self._has_free_device():
            if self.status.may_start() is SweepState.STOPPING or not self._has_disk_space():
                return
            job = self._queue.popleft() if self._queue else self._next_proposed()
            if job is None:
                return
            (trial,) = job.trials
            self.progress.set_running(trial.number)
            self._jobs[trial.number] = job
            self.executor.submit(job)
            self._apply_stop_rules()

    def _has_disk_space(self) -> bool:
        """Whether the disk has room for another trial; the first refusal in a row is shown."""
        before, self._disk_refusal = self._disk_refusal, ""
        if self.disk is None or not (self._queue or self.status.state is SweepState.SEARCHING):
            return True
        self._disk_refusal = self.disk.refusal()
        if self._disk_refusal and not before:
            self.view.note(f"no further trial is started: {self._disk_refusal}")
        return not self._disk_refusal

    def _next_proposed(self) -> Job | None:
        """The next new trial; None when there is none, or none yet."""
        while self.status.state is SweepState.SEARCHING:
            if proposal := self._proposals.pop():
                return self._registry.create(proposal)
            if self._proposals.exhausted:
                self.status.close(SweepOutcome("every configuration of the space has been tried"))
            elif not self._proposals.draw(self.patience):
                return None
        return None

    def _record_untrainable(self, proposal: Proposal) -> None:
        """Commit a duplicate or an invalid draw; the latter counts as a trial."""
        self._registry.create(proposal)
        self._apply_stop_rules()

    def _queue_confirmations(self) -> bool:
        """Once the search has ended well, queue the repeats of its best; False without any."""
        if self.status.state is SweepState.STOPPING or self.status.kind() is OutcomeKind.FAILED:
            return False
        for job in map(self._registry.create, self.decider.confirmations()):
            if job is not None:
                self._enqueue(job)
        if self._queue:
            self.view.note(f"the search is over; {len(self._queue)} repeats confirm its best")
        return bool(self._queue)

    def _handle(self, event: Event) -> None:
        row = self.progress.running.get(event.number)
        if row is None:
            return
        match event:
            case Started():
                row.device, row.max_steps = event.device, event.max_steps
            case Evaluated():
                row.last = event.evaluation
                if self.decider.report(event.number, event.evaluation) and not row.stopping:
                    row.stopping = "prune"
                    self.executor.stop(event.number, "prune")
            case Finished():
                self._trial_finished(event.number, event.result)
            case Interrupted():
                self.progress.remove_running(event.number)
            case Lost():
                self._worker_lost(event)

    def _trial_finished(self, number: int, result: Result) -> None:
        """Commit a result that is on disk, unless the trial failed and is retried."""
        cause = result.cause if result.state == "failed" else None
        if cause is None or not self._retry(number, cause):
            self._registry.commit(number, result)

    def _worker_lost(self, event: Lost) -> None:
        """Use the result that a lost worker left, else retry the trial or commit its failure."""
        number, folder = event.number, self.study.trial(event.number)
        # The worker may have written evaluations and died before it sent them.
        self._registry.report_evaluations(number)
        result, cause = folder.read_result(), cause_of_loss(event, folder)
        full = is_disk_full_message(event.message)
        left = self.status.state is SweepState.STOPPING and cause.kind == "lost"
        if result is None and (full or left):
            # No fault of the trial's: the next run resumes it from its checkpoint.
            self.progress.remove_running(number)
            if full:
                self.status.close(SweepOutcome(event.message, OutcomeKind.FAILED))
                self._stop_trials()
            return
        if result is not None:
            self._trial_finished(number, result)
        elif event.again:
            self.view.note(f"trial {number} goes on from its checkpoint: {event.message}")
            self._enqueue(self._jobs.pop(number))
        elif not self._retry(number, cause):
            result = Result(state="failed", cause=cause, steps=cause.step or 0)
            folder.write_result(result)
            self._registry.commit(number, result)
        if result is not None and number not in self.progress.waiting:
            self.view.on_event(Finished(number, result), self.progress)

    def _retry(self, number: int, cause: Cause) -> bool:
        """Schedule another try of a failed trial; False to give the trial up."""
        if self.status.state is SweepState.STOPPING:
            return False
        repaired = cause.kind in MAY_BE_OF_CONFIG and self._registry.repair_config(number)
        # A trial whose failure an earlier run has left was not submitted by this one.
        job = self._jobs.pop(number, None) or self._registry.job(number)
        if not self._retries.schedule(job, cause, free=repaired):
            return False
        self.progress.set_waiting(number)
        self.view.note(f"trial {number} is tried again after {cause.kind}: {cause.message}")
        return True


def cause_of_loss(event: Lost, folder: TrialFolder) -> Cause:
    """Why a worker was lost, as its event and the trial's log say, and at which step."""
    evaluations = folder.read_evaluations()
    kind = event.kind
    if kind == "lost" and kind_of_log(folder.log) == "out_of_memory":
        kind = "out_of_memory"
    return Cause(kind=kind, message=event.message, step=evaluations[-1].step if evaluations else 0)
