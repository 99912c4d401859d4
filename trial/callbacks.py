"""A running trial as its trainer's callbacks see it: report, keep, save, stop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainerCallback

from trial.arguments import saves_with_each_evaluation
from trial.checkpoints import Checkpoints, Measured, Progress
from trial.clock import Clock
from trial.config import TrialConfig
from trial.control import Control, StopReason
from trial.devices import Device
from trial.dropout import Places
from trial.failure import check_loss
from trial.folder import Evaluation, TrainLog, TrialFolder
from trial.gang import Gang, TakenOver
from trial.objectives.names import TRADE_OFF
from trial.weights import save_weights

logger = logging.getLogger(__name__)


class Stopped(Exception):  # noqa: N818 (not an error: the trial was told to)
    """The trial was told to stop before its first step."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class Run:
    """All that changes while one trial trains."""

    folder: TrialFolder
    config: TrialConfig
    device: Device
    control: Control
    gang: Gang
    clock: Clock
    checkpoints: Checkpoints
    places: Places = field(default_factory=Places)
    """Where the batch in training stands, for the adapter's dropout."""
    progress: Progress = field(default_factory=Progress)
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
        if self.gang.size == 1:
            check_loss("the training loss", value, self.steps + 1, None)

    def forget_step(self) -> None:
        """The step that is being computed is begun anew."""
        self._step_loss = 0.0

    def end_step(self, step: int) -> None:
        """Count an optimizer step; its whole loss must be within bounds."""
        shares = self.gang.exchange(self._step_loss)
        # Ranks weigh their share as if it were the whole: the mean is the step's loss.
        value, self._step_loss = sum(shares) / len(shares), 0.0
        check_loss("the training loss", value, step, self.config.diverged_above)
        self.steps = step

    def count_tokens(self, tokens: torch.Tensor) -> None:
        """Add tokens without waiting for the device."""
        self._tokens = tokens if self._tokens is None else self._tokens + tokens

    def measure(self) -> None:
        """Bring the progress up to now: step, seconds, tokens, peak memory. Ranks wait here."""
        tokens, self._tokens = self._tokens, None
        own = (int(tokens) if tokens is not None else 0, self.device.read_peak())
        self.stay_in_turn()
        counts, peaks = zip(*self.gang.exchange(own), strict=True)
        self.progress = self.progress.model_copy(
            update={
                "step": self.steps,
                "seconds": self.clock.read(),
                "tokens": self.progress.tokens + sum(counts),
                "peak_memory_bytes": max(self.progress.peak_memory_bytes, *peaks),
            }
        )

    def note(self, **changes: Any) -> None:
        """Change the progress."""
        self.progress = self.progress.model_copy(update=changes)

    def stay_in_turn(self) -> None:
        """Go on only as long as nobody else has started the trial.

        A node that is cut off trains on for minutes, and the trial has gone on elsewhere by then.

        Raises:
            TakenOver: somebody has.
        """
        if self.gang.rank or self.attempts_size is None:
            return
        if self.folder.attempts.stat().st_size != self.attempts_size:
            raise TakenOver(f"{self.folder.path} has been taken up by another process")

    def ask(self) -> StopReason | None:
        """Whether somebody wants the trial to stop: rank 0 hears it, every rank obeys."""
        self.stay_in_turn()
        reason = self.gang.agree(self.control.stop_reason(self.folder))
        return cast("StopReason | None", reason)

    def logged(self, entry: TrainLog) -> None:
        """Write a training log entry; a loss that is not finite ends the trial."""
        logger.info("step %d: training loss %.4f", entry.step, entry.loss)
        self.folder.append(entry)
        check_loss("the training loss", entry.loss, entry.step, self.config.diverged_above)

    def evaluated(
        self,
        step: int,
        epoch: float,
        value: float,
        save: Callable[[Path], None],
        figures: dict[str, float] | None = None,
    ) -> None:
        """Write an evaluation, `save` the weights when they are the best, tell whoever listens."""
        self.measure()
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
        self._keep(Measured(step=step, value=value, metrics=figures or {}), save)
        self.control.evaluated(self.folder, evaluation)

    def _keep(self, measured: Measured, save: Callable[[Path], None]) -> None:
        self.note(last=measured)
        if measured.step == 0:
            self.note(initial_eval_loss=measured.value)
            return
        best = self.progress.best
        if best is not None and self._badness(measured) >= self._badness(best):
            return
        self.note(best=measured)
        if self.config.keep == "best":
            with self.clock.during("save"):
                save(self.checkpoints.best(measured.step))
            if self.checkpoints.newest() is None:
                self.checkpoints.tidy(self.progress)

    def _badness(self, measured: Measured) -> float:
        """What `keep: best` keeps the least of: the eval loss, or minus the trade-off.

        A model that is to forget has its best eval loss before it starts.
        """
        score = measured.metrics.get(TRADE_OFF)
        plain = self.config.objective.is_plain
        return measured.value if plain or score is None else -score

    def saved(self, step: int) -> None:
        """The trainer has written all of its checkpoint: declare it whole."""
        self.saved_step = step
        # No rank gets past this before all have written.
        self.measure()
        # The last one is declared once the result is there: nothing is left to go on with.
        if step != self.max_steps:
            self.checkpoints.complete(self.progress)


class Reporter(TrainerCallback):
    """Writes metrics, keeps the best weights, asks for checkpoints and obeys stop requests.

    It stands behind the trainer's own flow callback and has the last word on its flags.
    """

    def __init__(self, run: Run, model: Any, tokenizer: Any) -> None:
        self.run = run
        self.model = model
        self.tokenizer = tokenizer
        self.first = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Everything is loaded."""
        start, end, device = state.global_step, state.max_steps, self.run.device.label()
        self.run.max_steps = end
        logger.info("training from step %d to %d on %s", start, end, device)
        self.run.control.started(self.run.folder, self.run.device.label(), state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the first step of this attempt: stop, or start the stopwatch."""
        if self.first:
            if reason := self.run.ask():
                raise Stopped(reason)
            self.run.clock.switch("first_step")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Decide what follows a step: evaluation at the last one, a stop when told."""
        self.run.end_step(state.global_step)
        if self.first:
            self.first = False
            self.run.device.synchronise()
            self.run.clock.switch("train")
        if (chosen := self.run.config.evaluation.steps) is not None:
            control.should_evaluate = state.global_step in chosen
        if state.global_step >= state.max_steps:
            control.should_evaluate, control.should_save = True, self.run.config.keep_checkpoint
        elif (reason := self.run.ask()) is not None:
            self.run.stop = reason
            control.should_training_stop = True
            if reason == "prune":
                control.should_evaluate = control.should_save = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate no step twice; write the checkpoint of an interrupted trial last of all."""
        last = self.run.progress.last
        inside = state.epoch is not None and not float(state.epoch).is_integer()
        ended = state.global_step >= state.max_steps
        seen = last is not None and last.step == state.global_step
        chosen = self.run.config.evaluation.steps is not None
        if self.run.stop == "prune" or seen or chosen or (self.run.stop and inside):
            control.should_evaluate = False
        if self.run.stop == "prune" or ended:
            control.should_save = False
        elif self.run.stop == "interrupt":
            control.should_save = self.run.saved_step != state.global_step

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Write training log entries; a loss that is not finite ends the trial."""
        if not logs or "loss" not in logs:
            return
        norm = logs.get("grad_norm")
        entry = TrainLog(
            step=state.global_step,
            loss=float(logs["loss"]),
            learning_rate=logs.get("learning_rate"),
            grad_norm=None if norm is None else float(norm),
        )
        self.run.logged(entry)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Write an evaluation, tell whoever listens, keep the weights when they are the best."""
        figures = dict(metrics or {})
        value, epoch = float(figures.pop("eval_loss")), float(state.epoch or 0.0)
        self.run.evaluated(state.global_step, epoch, value, self._save, figures)
        if saves_with_each_evaluation(self.run.config):
            inside = 0 < state.global_step < state.max_steps
            last = state.global_step == state.max_steps and self.run.config.keep_checkpoint
            control.should_save = inside or last

    def _save(self, folder: Path) -> None:
        save_weights(self.model, folder, self.tokenizer)
