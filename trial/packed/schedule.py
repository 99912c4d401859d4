"""When a packed trial steps, logs, evaluates, saves and ends: its trainer's arguments, as rules.

The arguments are the trainer's own objects, so defaults, ratios and schedules are the trainer's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from trial.config.trial_config import TrialConfig
from trial.multi_lora.adamw import Rule
from trial.multi_lora.adapter_init import NotPackableError
from trial.training.arguments import saves_with_each_evaluation


@dataclass(frozen=True, slots=True)
class TrialSchedule:
    """One trial's arguments, and what follows from them."""

    args: Any
    max_steps: int
    epoch_steps: int
    """Optimizer steps of one epoch."""
    logging_steps: int
    eval_steps: int
    chosen: frozenset[int] | None
    """Evaluations before the last one, where they are not every `eval_steps`."""
    save_steps: int
    """0 saves with each evaluation."""
    schedule: Any
    """Factor of the learning rate as a function of the number of steps done."""
    ranks: int = 1

    @property
    def step_rows(self) -> int:
        """Rows of one optimizer step, over all ranks."""
        args = self.args
        return int(args.per_device_train_batch_size * args.gradient_accumulation_steps * self.ranks)

    def rate(self, done: int) -> float:
        """The learning rate after so many steps."""
        return float(self.args.learning_rate * self.schedule(done))

    def rule(self, done: int) -> Rule:
        """How the next optimizer step is taken."""
        args = self.args
        return Rule(
            step=done + 1,
            rate=self.rate(done),
            decay=args.weight_decay,
            betas=(args.adam_beta1, args.adam_beta2),
            epsilon=args.adam_epsilon,
            max_norm=args.max_grad_norm or 0.0,
        )

    def logs(self, step: int) -> bool:
        """Whether the training loss is written after this step."""
        return step % self.logging_steps == 0 or (step == 1 and self.args.logging_first_step)

    def evaluates(self, step: int) -> bool:
        """Whether the trial is evaluated after this step."""
        due = step % self.eval_steps == 0 and self.args.eval_delay <= step
        if self.chosen is not None:
            due = step in self.chosen
        return due or step >= self.max_steps

    def saves(self, step: int, evaluated: bool) -> bool:
        """Whether a checkpoint is written after this step, which is not the last."""
        return evaluated if not self.save_steps else step % self.save_steps == 0


def make_schedule(args: Any, config: TrialConfig, rows: int, ranks: int = 1) -> TrialSchedule:
    """The rules of a trial on `rows` training rows, trained by so many ranks.

    Raises:
        NotPackableError: its schedule is no function of the step.
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
        logging_steps=_steps(args.logging_steps, max_steps),
        eval_steps=_steps(args.eval_steps, max_steps),
        chosen=None if config.evaluation.steps is None else frozenset(config.evaluation.steps),
        save_steps=0 if saves_with_each_evaluation(config) else _steps(args.save_steps, max_steps),
        schedule=_schedule(args, max_steps),
        ranks=ranks,
    )


def _steps(value: float, max_steps: int) -> int:
    """A number of steps, or a share of all of them."""
    return max(1, math.ceil(max_steps * value) if value < 1 else int(value))


def _schedule(args: Any, max_steps: int) -> Any:
    from transformers import get_scheduler

    # Some schedules end at a rate of its own right: what that is of the first they ask here.
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    made = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(max_steps),
        num_training_steps=max_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    if not hasattr(made, "lr_lambdas"):
        raise NotPackableError(f"{args.lr_scheduler_type} is no function of the step")
    return made.lr_lambdas[0]
