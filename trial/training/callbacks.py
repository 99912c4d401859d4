"""The trainer callback of a running trial: report, evaluate, save, stop."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trial.model.weights import save_weights
from trial.store.records import TrainLog
from trial.training.arguments import saves_with_each_evaluation
from trial.training.run_state import RunState, Stopped

logger = logging.getLogger(__name__)


class TrialCallback(TrainerCallback):
    """Writes metrics, keeps the best weights, asks for checkpoints and obeys stop requests.

    It stands behind the trainer's own flow callback and has the last word on its flags.
    """

    def __init__(self, run: RunState, model: Any, tokenizer: Any) -> None:
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
            if reason := self.run.poll_stop():
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
        elif (reason := self.run.poll_stop()) is not None:
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
        self.run.record_log(entry)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Write an evaluation, tell whoever listens, keep the weights when they are the best."""
        figures = dict(metrics or {})
        value, epoch = float(figures.pop("eval_loss")), float(state.epoch or 0.0)
        self.run.record_evaluation(state.global_step, epoch, value, self._save, figures)
        if saves_with_each_evaluation(self.run.config):
            inside = 0 < state.global_step < state.max_steps
            last = state.global_step == state.max_steps and self.run.config.keep_checkpoint
            control.should_save = inside or last

    def _save(self, folder: Path) -> None:
        save_weights(self.model, folder, self.tokenizer)
