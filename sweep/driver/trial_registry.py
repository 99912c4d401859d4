"""Trials in their folders and in the study: proposals get a folder, results reach the decider."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

from sweep.driver.disk_guard import DiskGuard
from sweep.driver.executor import Job, TrialRef
from sweep.driver.interfaces import Decider, Proposal
from sweep.driver.progress import SweepProgress
from sweep.driver.retry_policy import config_difference, halved_as
from trial.config.packing_rules import packing_key
from trial.config.sections import Origin
from trial.config.trial_config import TrialConfig
from trial.store.files import DamagedFileError, set_aside
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Cause, CauseKind, Result

logger = logging.getLogger(__name__)
MAY_BE_OF_CONFIG: tuple[CauseKind, ...] = ("error", "out_of_memory")
"""Failures after which a trial's configuration is looked at: an error may be one of reading it, and
after the other it is halved."""


@dataclass(slots=True)
class TrialRegistry:
    """Creates the folders of proposals and commits the results of trials.

    The order of writing makes a kill harmless: the decider numbers a trial before its folder
    exists, and a result is in its folder before the decider is told.
    """

    study: StudyFolder
    decider: Decider
    progress: SweepProgress
    disk: DiskGuard | None = None
    packed: bool = False
    """Whether trials may share a job."""
    notes: list[str] = field(default_factory=list, init=False)
    """What was found damaged while trials were restored, for people."""
    _proposed: dict[int, TrialConfig] = field(default_factory=dict, init=False)
    """Configurations of the trials in flight, by number, as they were proposed."""
    _lost: list[int] = field(default_factory=list, init=False)
    """Finished trials whose result has been lost."""

    def create(self, proposal: Proposal) -> Job | None:
        """Write the configuration of a proposal into its folder.

        Returns:
            The job to run; None when the proposal is a duplicate or has no valid configuration.
            Then its result is committed at once.
        """
        folder, config = self._add_to_progress(proposal), None
        if proposal.config is None:
            folder.path.mkdir(parents=True, exist_ok=True)
        else:
            self._proposed[proposal.number] = proposal.config
            if not folder.config.exists():
                config = self._with_run_settings(proposal.config)
                TrialFolder.create(folder.path, config)
        result = result_without_training(proposal)
        if result is None:
            return self.job(proposal.number, config)
        folder.write_result(result)
        self.commit(proposal.number, result)
        return None

    def repair_config(self, number: int) -> bool:
        """Write the configuration of a trial in flight anew where it is not as it was proposed.

        One that is missing, cannot be read, or has other values is replaced; the trial's log and
        the driver's say so. What the harness has changed, half a micro-batch, stays.

        Returns:
            Whether it was replaced.
        """
        folder, proposed = self.study.trial(number), self._proposed.get(number)
        if proposed is None or not folder.path.exists():
            return False
        try:
            wrong = config_difference(folder.read_config(), proposed)
        except (OSError, ValueError) as error:
            wrong = str(error)
        if not wrong:
            return False
        causes = [failure.cause for failure in folder.read_failures() if failure.cause]
        halvings = sum(cause.kind == "out_of_memory" for cause in causes)
        config = halved_as(self._with_run_settings(proposed), halvings)
        TrialFolder.create(folder.path, config)
        text = f"config.json is made anew as the study proposed it: {wrong}"
        folder.write_log(text)
        logger.warning("trial %d: %s", number, text)
        return True

    def job(self, number: int, config: TrialConfig | None = None) -> Job:
        """The job of one trial, with its packing key where trials may share a job.

        Args:
            number: The trial's number.
            config: The configuration in its folder; None when an earlier run wrote it: it is read.

        Raises:
            ValueError: the configuration cannot be read.
        """
        folder = self.study.trial(number)
        key = packing_key(config or folder.read_config()) if self.packed else None
        return Job((TrialRef(number, folder.path),), key)

    def commit(self, number: int, result: Result) -> None:
        """Tell the decider a result that is on disk, then count it."""
        self._proposed.pop(number, None)
        self.decider.tell(number, result)
        self._count(number, result)

    def report_evaluations(self, number: int) -> None:
        """Report the evaluations on disk, of which the decider may lack some after a kill."""
        for evaluation in self.study.trial(number).read_evaluations():
            self.decider.report(number, evaluation)

    def restore_finished(self) -> None:
        """Count the trials that ended in earlier runs.

        Equal failures in a row are counted from zero: a user who resumes a sweep that ended by
        them has corrected their cause.
        """
        for number in self.decider.finished():
            folder = self.study.trial(number)
            result = self._read_result(number)
            if result is None and folder.path.exists():
                self._lost.append(number)
            if result:
                origin = _origin(folder)
                if origin:
                    self.progress.add_trial(number, origin.params, repeat=not origin.searched)
                self._count(number, result)
        self.progress.forget_failures()

    def restore_pending(self) -> Iterator[tuple[int, Job | Result]]:
        """Trials that were in flight when the study was last left: each one's result, or its job.

        The decider has all their evaluations then; it has yet to be told the results.
        """
        yield from self._restore_lost()
        for proposal in self.decider.pending():
            folder = self._add_to_progress(proposal)
            if proposal.config is not None and folder.config.exists():
                self._proposed[proposal.number] = proposal.config
                self.repair_config(proposal.number)
            found = self._read_result(proposal.number) or self.create(proposal)
            if found:
                self.report_evaluations(proposal.number)
                yield proposal.number, found

    def _read_result(self, number: int) -> Result | None:
        """A trial's result; None if it has none. A damaged file is set aside: it is none, either.

        Raises:
            ValueError: another version of this program wrote it.
        """
        folder = self.study.trial(number)
        try:
            return folder.read_result()
        except DamagedFileError as error:
            aside = set_aside(folder.result)
            self.notes.append(f"trial {number} is trained anew: {error}; kept as {aside.name}")
            logger.warning(self.notes[-1])
        return None

    def _restore_lost(self) -> Iterator[tuple[int, Job]]:
        """Finished trials without a result: its result where the decider knows it, or the job."""
        for number in self._lost:
            found, folder = self.decider.again(number), self.study.trial(number)
            if isinstance(found, Result):
                folder.write_result(found)
                self._count(number, found)
                continue
            self._add_to_progress(found)
            if found.config is not None and folder.config.exists():
                self._proposed[number] = found.config
                self.repair_config(number)
            if job := self.create(found):
                self.report_evaluations(number)
                yield number, job
        self._lost.clear()

    def _add_to_progress(self, proposal: Proposal) -> TrialFolder:
        config = proposal.config
        repeat = config is not None and config.origin is not None and not config.origin.searched
        base = config.model.name_or_path if config else ""
        self.progress.add_trial(proposal.number, proposal.params, repeat, base)
        return self.study.trial(proposal.number)

    def _with_run_settings(self, config: TrialConfig) -> TrialConfig:
        """The configuration with what the run decides: kept checkpoints, shared jobs."""
        settings = {}
        if self.disk is not None and self.disk.resources.keep_checkpoints > 0:
            settings["keep_checkpoint"] = True
        if self.packed:
            settings["packed"] = True
        return config.model_copy(update=settings)

    def _count(self, number: int, result: Result) -> None:
        self.progress.add_result(number, result)
        if self.disk:
            self.disk.trial_ended(number, result)


def result_without_training(proposal: Proposal) -> Result | None:
    """The result of a proposal that cannot be trained; None when it can."""
    if proposal.duplicate_of is not None:
        return Result(state="duplicate", duplicate_of=proposal.duplicate_of)
    if proposal.config is None:
        return Result(state="failed", cause=Cause(kind="error", message=proposal.problem))
    return None


def _origin(folder: TrialFolder) -> Origin | None:
    """The origin of a trial of an earlier run; None when its configuration cannot be read."""
    try:
        return folder.read_config().origin
    except (OSError, ValueError):
        return None
