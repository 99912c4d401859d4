"""When a packed trial steps, logs, evaluates and saves, from its trainer's arguments.

Arguments and learning-rate schedules are transformers' own objects, so that defaults and ratios
mean the same as in a run alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from trial.config.trial_config import TrialConfig
from trial.multi_lora.adamw import StepSettings
from trial.multi_lora.packable import NotPackableError
from trial.training.arguments import loraplus_ratio, saves_with_each_evaluation


@dataclass(frozen=True, slots=True)
class TrialSchedule:
    """One trial's arguments, and what follows from them."""

    args: Any
    """The trainer's arguments."""
    max_steps: int
    """Optimizer steps of the trial."""
    epoch_steps: int
    """Optimizer steps of one epoch."""
    logging_steps: int
    eval_steps: int
    eval_at: frozenset[int] | None
    """Steps to evaluate after besides the last one, in place of every `eval_steps`."""
    save_steps: int
    """0 saves with each evaluation."""
    lr_factor: Callable[[int], float]
    """Factor of the learning rate as a function of the number of steps done."""
    ranks: int = 1
    lr_ratio: float = 1.0
    """Rate of every B over that of every A (LoRA+)."""

    @property
    def step_rows(self) -> int:
        """Rows of one optimizer step, over all ranks."""
        args = self.args
        return int(args.per_device_train_batch_size * args.gradient_accumulation_steps * self.ranks)

    def learning_rate(self, steps_done: int) -> float:
        """The learning rate of the step that follows `steps_done` steps."""
        return float(self.args.learning_rate * self.lr_factor(steps_done))

    def step_settings(self, steps_done: int) -> StepSettings:
        """AdamW's hyperparameters for the step that follows `steps_done` steps."""
        args = self.args
        return StepSettings(
            step=steps_done + 1,
            lr=self.learning_rate(steps_done),
            weight_decay=args.weight_decay,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            max_grad_norm=args.max_grad_norm or 0.0,
            lr_ratio=self.lr_ratio,
        )

    def logs(self, step: int) -> bool:
        """Whether the training loss is logged after this step."""
        return step % self.logging_steps == 0 or (step == 1 and self.args.logging_first_step)

    def evaluates(self, step: int) -> bool:
        """Whether the trial is evaluated after this step."""
        due = step % self.eval_steps == 0 and self.args.eval_delay <= step
        if self.eval_at is not None:
            due = step in self.eval_at
        return due or step >= self.max_steps

    def saves(self, step: int, evaluates: bool) -> bool:
        """Whether a checkpoint is written after this step, which is not the last."""
        return evaluates if not self.save_steps else step % self.save_steps == 0


def make_schedule(args: Any, config: TrialConfig, rows: int, ranks: int = 1) -> TrialSchedule:
    """The schedule of a trial over `rows` training rows, trained by `ranks` ranks.

    Raises:
        NotPackableError: its learning rate is no function of the step.
    """
    step_rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * ranks
    epoch_steps = max(1, -(-rows // step_rows))
    max_steps = args.max_steps
    if max_steps <= 0:
        max_steps = math.ceil(args.num_train_epochs * epoch_steps)
    return TrialSchedule(
        args=args,
        max_steps=max_steps,
        epoch_steps=epoch_steps,
        logging_steps=_absolute_steps(args.logging_steps, max_steps),
        eval_steps=_absolute_steps(args.eval_steps, max_steps),
        eval_at=None if config.evaluation.steps is None else frozenset(config.evaluation.steps),
        save_steps=(
            0 if saves_with_each_evaluation(config) else _absolute_steps(args.save_steps, max_steps)
        ),
        lr_factor=_lr_factor(args, max_steps),
        ranks=ranks,
        lr_ratio=loraplus_ratio(config) or 1.0,
    )


def _absolute_steps(value: float, max_steps: int) -> int:
    """A number of steps; below 1 it is a ratio of all steps, as `Trainer` reads it."""
    return max(1, math.ceil(max_steps * value) if value < 1 else int(value))


def _lr_factor(args: Any, max_steps: int) -> Any:
    from transformers import get_scheduler

    # Schedules that end at an absolute rate read the initial one from the optimizer here.
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(max_steps),
        num_training_steps=max_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    if not hasattr(scheduler, "lr_lambdas"):
        raise NotPackableError(f"{args.lr_scheduler_type} is no function of the step")
    return scheduler.lr_lambdas[0]
