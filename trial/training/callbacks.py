"""The trainer callback of a trial: reports, evaluates, saves and stops."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trial.model.weights import save_weights
from trial.store.control import StopReason
from trial.store.records import TrainLog
from trial.training.arguments import saves_with_each_evaluation
from trial.training.run_state import RunState, Stopped

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """What is known when the Trainer leaves its loop over the batches of an epoch.

    That happens after the last batch of the epoch, and in the middle of it when the training stops.
    """

    stop: StopReason | None = None
    mid_epoch: bool = False
    """Whether batches of the epoch are left."""
    last_step: bool = False
    """Whether all optimizer steps are done."""
    evaluated: bool = False
    """Whether this step has been evaluated already."""
    saved: bool = False
    """Whether this step has a checkpoint already."""
    chosen_steps: bool = False
    """Whether `evaluation.steps` lists the steps to evaluate."""

    @property
    def evaluates(self) -> bool | None:
        """Whether the step is evaluated now; None leaves it to the trainer's own strategy."""
        interrupted_inside = self.stop is not None and self.mid_epoch
        skipped = self.stop == "prune" or self.evaluated or self.chosen_steps or interrupted_inside
        return False if skipped else None

    @property
    def saves(self) -> bool | None:
        """Whether a checkpoint is written now; None leaves it to the trainer's own strategy."""
        if self.stop == "prune" or self.last_step:
            return False
        # The checkpoint of an interrupted trial is written after everything else.
        return not self.saved if self.stop == "interrupt" else None


class TrialCallback(TrainerCallback):
    """Writes metrics, keeps the best weights, requests checkpoints and obeys stop requests.

    It is called after the trainer's own flow callback, so that its flags are the ones that count.
    """

    def __init__(self, run: RunState, model: Any, tokenizer: Any) -> None:
        self.run = run
        self.model = model
        self.tokenizer = tokenizer
        self.first_step = True
        """Whether no step of this attempt is done yet."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the start: everything is loaded."""
        start, end, device = state.global_step, state.max_steps, self.run.device.label()
        self.run.max_steps = end
        logger.info("training from step %d to %d on %s", start, end, device)
        self.run.control.started(self.run.folder, device, end)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the first step of this attempt: stop if requested, else start its clock."""
        if self.first_step:
            if reason := self.run.poll_stop():
                raise Stopped(reason)
            self.run.clock.switch("first_step")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Decide what follows a step: evaluate after the last one, stop on request."""
        self.run.end_step(state.global_step)
        if self.first_step:
            self.first_step = False
            self.run.device.synchronise()
            self.run.clock.switch("train")
        if (chosen := self.run.config.evaluation.steps) is not None:
            control.should_evaluate = state.global_step in chosen
        if state.global_step >= state.max_steps:
            control.should_evaluate, control.should_save = True, self.run.config.keep_checkpoint
        elif (reason := self.run.poll_stop()) is not None:
            self.run.stop = reason
            control.should_training_stop = True
            if reason == "prune":
                control.should_evaluate = control.should_save = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate no step twice; write the checkpoint of an interrupted trial."""
        last = self.run.progress.last
        end = EpochEnd(
            stop=self.run.stop,
            mid_epoch=state.epoch is not None and not float(state.epoch).is_integer(),
            last_step=state.global_step >= state.max_steps,
            evaluated=last is not None and last.step == state.global_step,
            saved=self.run.saved_step == state.global_step,
            chosen_steps=self.run.config.evaluation.steps is not None,
        )
        if end.evaluates is not None:
            control.should_evaluate = end.evaluates
        if end.saves is not None:
            control.should_save = end.saves

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Write a training log entry."""
        if not logs or "loss" not in logs:
            return
        norm = logs.get("grad_norm")
        entry = TrainLog(
            step=state.global_step,
            loss=float(logs["loss"]),
            learning_rate=logs.get("learning_rate"),
            grad_norm=None if norm is None else float(norm),
        )
        self.run.record_log(entry)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Record an evaluation, and request a checkpoint where those follow evaluations."""
        further = dict(metrics or {})
        eval_loss, epoch = float(further.pop("eval_loss")), float(state.epoch or 0.0)
        self.run.record_evaluation(state.global_step, epoch, eval_loss, self._save, further)
        if saves_with_each_evaluation(self.run.config):
            inside = 0 < state.global_step < state.max_steps
            last = state.global_step == state.max_steps and self.run.config.keep_checkpoint
            control.should_save = inside or last

    def _save(self, folder: Path) -> None:
        save_weights(self.model, folder, self.tokenizer, dtype=self.run.config.model.dtype)
