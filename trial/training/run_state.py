"""The state of a running trial: its progress, its checkpoints, and why it is to stop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from trial.config.objective_registry import TRADE_OFF
from trial.config.trial_config import TrialConfig
from trial.devices.device import Device
from trial.distributed.rank_group import RankGroup, TrialTakenOver
from trial.model.lora_dropout import BatchPositions
from trial.store.control import Control, StopReason
from trial.store.failure_kinds import check_loss
from trial.store.folders import TrialFolder
from trial.store.phase_timer import PhaseTimer
from trial.store.records import Evaluation, TrainLog
from trial.training.checkpoints import Checkpoints, Measurement, TrialProgress

logger = logging.getLogger(__name__)


class Stopped(Exception):  # noqa: N818 (not an error: the trial was told to)
    """The trial was told to stop before its first step."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class RunState:
    """All that changes while one trial trains."""

    folder: TrialFolder
    config: TrialConfig
    device: Device
    control: Control
    rank_group: RankGroup
    clock: PhaseTimer
    checkpoints: Checkpoints
    positions: BatchPositions = field(default_factory=BatchPositions)
    """Where the batch in training stands, for the adapter's dropout."""
    progress: TrialProgress = field(default_factory=TrialProgress)
    stop: StopReason | None = None
    steps: int = 0
    """Optimizer steps done."""
    saved_step: int = -1
    max_steps: int = 0
    """Optimizer steps planned, once the trainer knows."""
    attempts_size: int | None = None
    """Bytes of the record of attempts when this one was the last."""
    _tokens: torch.Tensor | None = None
    _step_loss: float = 0.0

    def add_loss(self, value: float) -> None:
        """Add a batch's share of the loss of the step that is being computed."""
        self._step_loss += value
        if self.rank_group.size == 1:
            check_loss("the training loss", value, self.steps + 1, None)

    def discard_step(self) -> None:
        """The step that is being computed is begun anew."""
        self._step_loss = 0.0

    def end_step(self, step: int) -> None:
        """Count an optimizer step; its whole loss must be within bounds."""
        shares = self.rank_group.all_gather(self._step_loss)
        # Ranks weigh their share as if it were the whole: the mean is the step's loss.
        value, self._step_loss = sum(shares) / len(shares), 0.0
        check_loss("the training loss", value, step, self.config.diverged_above)
        self.steps = step

    def count_tokens(self, tokens: torch.Tensor) -> None:
        """Add tokens without waiting for the device."""
        self._tokens = tokens if self._tokens is None else self._tokens + tokens

    def update_progress(self) -> None:
        """Bring the progress up to now: step, seconds, tokens, peak memory. Ranks wait here."""
        tokens, self._tokens = self._tokens, None
        own = (int(tokens) if tokens is not None else 0, self.device.read_peak())
        self.check_ownership()
        counts, peaks = zip(*self.rank_group.all_gather(own), strict=True)
        self.progress = self.progress.model_copy(
            update={
                "step": self.steps,
                "seconds": self.clock.read(),
                "tokens": self.progress.tokens + sum(counts),
                "peak_memory_bytes": max(self.progress.peak_memory_bytes, *peaks),
            }
        )

    def _update(self, **changes: Any) -> None:
        """Change the progress."""
        self.progress = self.progress.model_copy(update=changes)

    def check_ownership(self) -> None:
        """Go on only as long as nobody else has started the trial.

        A node that is cut off trains on for minutes, and the trial has gone on elsewhere by then.

        Raises:
            TrialTakenOver: somebody has.
        """
        if self.rank_group.rank or self.attempts_size is None:
            return
        if self.folder.attempts.stat().st_size != self.attempts_size:
            raise TrialTakenOver(f"{self.folder.path} has been taken up by another process")

    def poll_stop(self) -> StopReason | None:
        """Whether somebody wants the trial to stop: rank 0 hears it, every rank obeys."""
        self.check_ownership()
        reason = self.rank_group.broadcast(self.control.stop_reason(self.folder))
        return cast("StopReason | None", reason)

    def record_log(self, entry: TrainLog) -> None:
        """Write a training log entry; a loss that is not finite ends the trial."""
        logger.info("step %d: training loss %.4f", entry.step, entry.loss)
        self.folder.append(entry)
        check_loss("the training loss", entry.loss, entry.step, self.config.diverged_above)

    def record_evaluation(
        self,
        step: int,
        epoch: float,
        value: float,
        save: Callable[[Path], None],
        figures: dict[str, float] | None = None,
    ) -> None:
        """Write an evaluation, `save` the weights when they are the best, tell whoever listens."""
        self.update_progress()
        evaluation = Evaluation(
            step=step,
            eval_loss=value,
            metrics=figures or {},
            epoch=epoch,
            tokens=self.progress.tokens,
            train_seconds=self.progress.seconds.first_step + self.progress.seconds.train,
        )
        self.folder.append(evaluation)
        logger.info("step %d: eval loss %.6f", step, value)
        # An untrained model may be as bad as it likes.
        check_loss("the eval loss", value, step, self.config.diverged_above if step else None)
        self._keep(Measurement(step=step, value=value, metrics=figures or {}), save)
        self.control.evaluated(self.folder, evaluation)

    def _keep(self, measured: Measurement, save: Callable[[Path], None]) -> None:
        self._update(last=measured)
        if measured.step == 0:
            self._update(initial_eval_loss=measured.value)
            return
        best = self.progress.best
        if best is not None and self._badness(measured) >= self._badness(best):
            return
        self._update(best=measured)
        if self.config.keep == "best":
            with self.clock.during("save"):
                save(self.checkpoints.best(measured.step))
            if self.checkpoints.newest() is None:
                self.checkpoints.tidy(self.progress)

    def _badness(self, measured: Measurement) -> float:
        """What `keep: best` keeps the least of: the eval loss, or minus the trade-off.

        A model that is to forget has its best eval loss before it starts.
        """
        score = measured.metrics.get(TRADE_OFF)
        plain = self.config.objective.is_plain
        return measured.value if plain or score is None else -score

    def record_checkpoint(self, step: int) -> None:
        """The trainer has written all of its checkpoint: declare it whole."""
        self.saved_step = step
        # No rank gets past this before all have written.
        self.update_progress()
        # The last one is declared once the result is there: nothing is left to go on with.
        if step != self.max_steps:
            self.checkpoints.complete(self.progress)
