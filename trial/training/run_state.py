"""The state of a running trial: its progress, its checkpoints, and whether it is to stop."""

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
from trial.model.dropout.lora_dropout import BatchPositions
from trial.store.control import Control, StopReason
from trial.store.failure_kinds import check_loss
from trial.store.folders import TrialFolder
from trial.store.phase_timer import PhaseTimer
from trial.store.records import DataSummary, Evaluation, TrainLog
from trial.training.checkpoints import Checkpoints, Measurement, TrialProgress

logger = logging.getLogger(__name__)


class Stopped(Exception):  # noqa: N818 (no error: a stop was requested)
    """A stop was requested before the first step of an attempt."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class RunState:
    """Everything that changes while a trial trains; also writes `metrics.jsonl`."""

    folder: TrialFolder
    config: TrialConfig
    device: Device
    control: Control
    rank_group: RankGroup
    clock: PhaseTimer
    checkpoints: Checkpoints
    positions: BatchPositions = field(default_factory=BatchPositions)
    """Hash keys of the current batch's rows and columns, for the LoRA dropout."""
    progress: TrialProgress = field(default_factory=TrialProgress)
    stop: StopReason | None = None
    steps: int = 0
    """Optimizer steps done."""
    saved_step: int = -1
    """Optimizer step of the newest checkpoint of this attempt."""
    max_steps: int = 0
    """Optimizer steps planned; 0 until the trainer has computed it."""
    data: DataSummary | None = None
    """What the eval loss is measured on, among others; None until the data are read."""
    damaged: tuple[str, ...] = ()
    """What was wrong with newer checkpoints than the one that this attempt goes on from, or with
    the metrics until it."""
    attempts_size: int | None = None
    """Bytes of `attempts.jsonl` after this attempt's line."""
    _tokens: torch.Tensor | None = None
    _step_loss: float = 0.0

    # Steps

    def add_loss(self, value: float) -> None:
        """Add one batch's share of the step's mean loss, in nats, to the current optimizer step.

        Raises:
            Diverged: on a single rank, `value` is not finite.
        """
        self._step_loss += value
        if self.rank_group.size == 1:
            check_loss("the training loss", value, self.steps + 1, None)

    def discard_step(self) -> None:
        """Discard the loss of the current optimizer step, which starts over."""
        self._step_loss = 0.0

    def end_step(self, step: int) -> None:
        """Count an optimizer step.

        Raises:
            Diverged: its loss is not finite or above `diverged_above`.
        """
        shares = self.rank_group.all_gather(self._step_loss)
        # Each rank's share is weighted as if it were the whole step: the mean is the step's loss.
        value, self._step_loss = sum(shares) / len(shares), 0.0
        check_loss("the training loss", value, step, self.config.diverged_above)
        self.steps = step

    def count_tokens(self, tokens: torch.Tensor) -> None:
        """Add a number of tokens, a tensor on the device; does not wait for the device."""
        self._tokens = tokens if self._tokens is None else self._tokens + tokens

    # Progress

    def update_progress(self) -> None:
        """Bring step, seconds, tokens and peak memory up to date; a barrier for all ranks.

        Raises:
            TrialTakenOver: another process has started the trial.
        """
        tokens, self._tokens = self._tokens, None
        own = (int(tokens) if tokens is not None else 0, self.device.read_peak())
        self.check_ownership()
        counts, peaks = zip(*self.rank_group.all_gather(own), strict=True)
        self._update(
            step=self.steps,
            seconds=self.clock.read(),
            tokens=self.progress.tokens + sum(counts),
            peak_memory_bytes=max(self.progress.peak_memory_bytes, *peaks),
        )

    def _update(self, **changes: Any) -> None:
        self.progress = self.progress.model_copy(update=changes)

    # Stopping

    def check_ownership(self) -> None:
        """Refuse to go on when another process has started the trial.

        A node that the network cuts off trains on for minutes, while the trial has been restarted
        elsewhere.

        Raises:
            TrialTakenOver: `attempts.jsonl` has grown since this attempt's line.
        """
        if self.rank_group.rank or self.attempts_size is None:
            return
        if self.folder.attempts.stat().st_size != self.attempts_size:
            raise TrialTakenOver(f"{self.folder.path} has been taken up by another process")

    def poll_stop(self) -> StopReason | None:
        """Why the trial is to stop, if it is: rank 0's control decides for all ranks."""
        self.check_ownership()
        reason = self.rank_group.broadcast(self.control.stop_reason(self.folder))
        return cast("StopReason | None", reason)

    # Records

    def record_log(self, entry: TrainLog) -> None:
        """Write a training log entry.

        Raises:
            Diverged: its loss is not finite or above `diverged_above`.
        """
        logger.info("step %d: training loss %.4f", entry.step, entry.loss)
        self.folder.append(entry)
        check_loss("the training loss", entry.loss, entry.step, self.config.diverged_above)

    def record_evaluation(
        self,
        step: int,
        epoch: float,
        eval_loss: float,
        save: Callable[[Path], None],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Write an evaluation, `save` the weights if they are the best, report to the control.

        Raises:
            Diverged: the eval loss is not finite or, after training began, above `diverged_above`.
        """
        self.update_progress()
        tokens_per_byte = self.data and self.data.tokens_per_byte
        evaluation = Evaluation(
            step=step,
            eval_loss=eval_loss,
            eval_loss_per_byte=tokens_per_byte and eval_loss * tokens_per_byte,
            eval_hash=self.data.eval_hash if self.data else "",
            eval_text_hash=self.data.eval_text_hash if self.data else "",
            metrics=metrics or {},
            epoch=epoch,
            tokens=self.progress.tokens,
            train_seconds=self.progress.seconds.first_step + self.progress.seconds.train,
        )
        self.folder.append(evaluation)
        logger.info("step %d: eval loss %.6f", step, eval_loss)
        # An untrained model may have any finite loss.
        check_loss("the eval loss", eval_loss, step, self.config.diverged_above if step else None)
        self._keep(Measurement(step=step, eval_loss=eval_loss, metrics=metrics or {}), save)
        self.control.evaluated(self.folder, evaluation)

    def _keep(self, measured: Measurement, save: Callable[[Path], None]) -> None:
        """Note an evaluation as the last one, and as the best one if it is."""
        self._update(last=measured)
        if measured.step == 0:
            self._update(initial_eval_loss=measured.eval_loss)
            return
        best = self.progress.best
        if best is not None and self._rank_value(measured) >= self._rank_value(best):
            return
        self._update(best=measured)
        if self.config.keep == "best":
            with self.clock.during("save"):
                self.checkpoints.make_room(self.progress)
                save(self.checkpoints.best(measured.step))

    def _rank_value(self, measured: Measurement) -> float:
        """The value that `keep: best` minimises: the eval loss, or minus the trade-off.

        A model that unlearns has its lowest eval loss before it starts.
        """
        score = measured.metrics.get(TRADE_OFF)
        plain = self.config.objective.is_plain
        return measured.eval_loss if plain or score is None else -score

    def record_checkpoint(self, step: int) -> None:
        """Mark a checkpoint complete once every rank has written its part of it."""
        self.saved_step = step
        # A barrier: no rank passes before all have written.
        self.update_progress()
        # The checkpoint of the last step is marked after the result is written (`commit_result`).
        if step != self.max_steps:
            self.checkpoints.complete(self.progress)
