"""Failed trials that are tried again: noted on disk, then queued until their time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from sweep.driver.executor import Job
from sweep.driver.retry_policy import (
    Retry,
    count_halvings,
    count_tries,
    halve_micro_batch,
    retry_action,
)
from sweep.spec.spec import FailuresSpec
from trial.config.packing_rules import packing_key
from trial.config.trial_config import TrialConfig
from trial.store.failure_kinds import note_retry
from trial.store.folders import TrialFolder
from trial.store.records import Cause, Result


@dataclass(slots=True)
class Retries:
    """Applies the retry policy and holds the trials that wait for their next try."""

    policy: FailuresSpec
    clock: Callable[[], float]
    _waiting: list[tuple[float, Job]] = field(default_factory=list)
    """Trials to be tried again, each with the earliest time at which that may be."""

    def __len__(self) -> int:
        return len(self._waiting)

    def schedule(self, job: Job, cause: Cause, *, free: bool = False) -> bool:
        """Prepare a failed trial for its next try; False when the policy gives it up.

        With `free` it is tried again whatever the policy says: the failure was not the trial's.

        The failure is noted before the smaller configuration is written: after a kill in between
        the halving is repeated, and does not count as one that was tried.
        """
        folder = TrialFolder(job.trials[0].folder)
        action = retry_action(self.policy, cause.kind, count_tries(_past_causes(folder), cause))
        action = Retry() if action is None and free else action
        if action is None:
            return False
        smaller = self._halved(folder) if action.halve else None
        if action.halve and smaller is None:
            return False
        note_retry(folder.log, cause.kind, cause.message)
        if folder.result.exists():
            folder.move_result_to_failures()
        else:
            folder.append_failure(Result(state="failed", cause=cause, steps=cause.step or 0))
        if smaller is not None:
            TrialFolder.create(folder.path, smaller)
            job = replace(job, key=packing_key(smaller) if job.key else None)
        self._waiting.append((self.clock() + action.wait, job))
        return True

    def pop_due(self) -> list[Job]:
        """Take out the trials whose waiting time is over."""
        now = self.clock()
        due = [job for time, job in self._waiting if time <= now]
        self._waiting = [(time, job) for time, job in self._waiting if time > now]
        return due

    def clear(self) -> None:
        """Forget all waiting trials: a later run resumes them."""
        self._waiting.clear()

    def _halved(self, folder: TrialFolder) -> TrialConfig | None:
        """The trial with half its micro-batch; None when it cannot be halved (again)."""
        config = folder.read_config()
        if count_halvings(config) >= self.policy.out_of_memory_retries:
            return None
        return halve_micro_batch(config)


def _past_causes(folder: TrialFolder) -> list[Cause]:
    """Causes of the trial's earlier failures: kept on disk, so that they count over resumes."""
    failures = folder.read_failures()
    if failures and failures[-1] == folder.read_result():
        failures.pop()  # The failure at hand, noted just before a kill.
    return [failure.cause for failure in failures if failure.cause]
