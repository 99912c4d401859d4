"""What one attempt at a trial has built so far; its result is made of it, after a failure too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trial.config.trial_config import TrialConfig
from trial.devices.device import Device
from trial.distributed.rank_group import RankGroup
from trial.store.control import Control
from trial.store.folders import TrialFolder
from trial.store.phase_timer import PhaseTimer
from trial.store.records import Cause, DataSummary, Result, State
from trial.training.checkpoints import Checkpoints, TrialProgress
from trial.training.process_cache import ProcessCache

if TYPE_CHECKING:
    from trial.training.run_state import RunState


@dataclass(slots=True)
class AttemptContext:
    """One attempt at a trial; the fields with defaults are filled in as it proceeds."""

    folder: TrialFolder
    config: TrialConfig
    control: Control
    process_cache: ProcessCache
    clock: PhaseTimer
    rank_group: RankGroup = field(default_factory=RankGroup)
    device: Device | None = None
    run: RunState | None = None
    model: Any = None
    """Base model with the adapter."""
    trainer: Any = None
    data: DataSummary | None = None
    """What became of the data, once they are read."""
    model_hash: str = ""
    parameters: tuple[int, int] = (0, 0)
    """Trainable and all parameters."""
    report: Callable[..., None] | None = None
    """Writes a packed trial to its trackers (`TrackerRun.write`)."""

    def report_end(self, *, failed: bool) -> None:
        """Write a packed trial that has ended to its trackers; the first rank does."""
        if self.report is not None and not self.rank_group.rank:
            self.report(failed=failed)

    def result(self, state: State, cause: Cause | None = None) -> Result:
        """The trial's result record, from what is known."""
        progress = self.run.progress if self.run else TrialProgress()
        best, last = progress.best, progress.last
        kept = best if state == "complete" and self.config.keep == "best" else last
        trainable, total = self.parameters
        return Result(
            state=state,
            eval_loss=kept.eval_loss if kept and state != "failed" else None,
            best_step=best.step if best else None,
            steps=self.run.steps if self.run else 0,
            max_steps=self.run.max_steps if self.run else 0,
            initial_eval_loss=progress.initial_eval_loss,
            metrics={**(kept.metrics if kept else {}), **self._further_metrics(progress)},
            tokens=progress.tokens,
            trainable_parameters=trainable,
            total_parameters=total,
            peak_memory_bytes=progress.peak_memory_bytes,
            seconds=self.clock.read(),
            device=self.device.label() if self.device else "",
            devices=self.rank_group.size,
            data_hash=self.data.data_hash if self.data else "",
            data=self.data,
            model_hash=self.model_hash,
            cause=cause,
        )

    def _further_metrics(self, progress: TrialProgress) -> dict[str, float]:
        """The last eval loss, and the device's counters since this attempt started."""
        last = progress.last
        metrics = {"last_eval_loss": last.eval_loss} if last else {}
        return {**metrics, **(self.device.counters() if self.device else {})}


def commit_result(context: AttemptContext, result: Result) -> None:
    """Write the result; then remove the checkpoints, unless the trial may be extended later.

    Raises:
        TrialTakenOver: another process has started the trial.
    """
    if context.run is not None:
        context.run.check_ownership()
    context.folder.write_result(result)
    checkpoints = Checkpoints(context.folder)
    if result.state == "complete" and context.config.keep_checkpoint and context.run:
        checkpoints.complete(context.run.progress, kept=1)
    else:
        checkpoints.clear()
