"""One trainer for every device: what we add to GaudiTrainer and to transformers' Trainer alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from accelerate import skip_first_batches

from trial.batches import Collator, evaluation_batches
from trial.devices import Device
from trial.evaluation import exact_loss
from trial.failure import Diverged
from trial.weights import save_weights

if TYPE_CHECKING:
    from trial.callbacks import Run

    Base: Any = object
else:
    Base = object


class TrialTrainer(Base):
    """A mixin over a trainer class; `run` must be set before training starts."""

    run: Run
    control: Any

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The exact eval loss, logged and handed to the callbacks."""
        with self.run.clock.during("eval"):
            metrics = {"eval_loss": self._eval_loss()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _eval_loss(self) -> float:
        model = self.model_wrapped if self.is_deepspeed_enabled else self.model
        model.eval()
        ranks = self.args.world_size
        batches = evaluation_batches(
            self.eval_dataset,
            self.args.per_device_eval_batch_size,
            self.data_collator,
            rank=self.args.process_index,
            ranks=ranks,
        )
        extra = self.run.device.evaluation_inputs(self)
        htcore = getattr(self, "htcore", None)

        def forward(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            inputs = self._prepare_inputs({**inputs})
            with self.compute_loss_context_manager():
                logits: torch.Tensor = model(**inputs, **extra).logits
            if htcore is not None:
                htcore.mark_step()
            return logits

        return exact_loss(forward, batches, dense=self.run.device.fixed_shapes, ranks=ranks)

    def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> torch.Tensor:
        """One forward and backward pass; counts tokens, and reads the loss where that is free."""
        self.run.count_tokens(inputs["attention_mask"].sum())
        loss: torch.Tensor = super().training_step(model, inputs, *rest, **named)
        if self.run.device.free_reads and not math.isfinite(value := loss.item()):
            raise Diverged("the training loss", value, self.state.global_step + 1)
        return loss

    def create_optimizer(self) -> Any:
        """The trainer's own optimizer without empty parameter groups, which break ZeRO 1 and 3."""
        optimizer = super().create_optimizer()
        filled = [group for group in optimizer.param_groups if group["params"]]
        optimizer.param_groups[:] = filled
        return optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights of a checkpoint; DeepSpeed's own files hold them already."""
        checkpoint = self.run.checkpoints.at(self.state.global_step)
        checkpoint.mkdir(parents=True, exist_ok=True)
        if self.args.should_save and not self.is_deepspeed_enabled:
            save_weights(self.model, checkpoint)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.run.clock.during("save"):
            super()._save_checkpoint(model, trial)
        self.run.saved(self.state.global_step)

    def _rotate_checkpoints(self, *_: Any, **__: Any) -> None:
        """Ours go when a newer one is whole."""


@cache
def trainer_class(device: Device) -> type[Any]:
    """The trainer class of a device with our additions."""
    _mend_skipping(device.trainer_class())
    return type("TrialTrainer", (TrialTrainer, device.trainer_class()), {})


def collator(device: Device) -> Collator:
    """How rows become batches on a device."""
    return Collator(trim=not device.fixed_shapes)


def _mend_skipping(trainer: type[Any]) -> None:
    """Let a trainer's `skip_first_batches` keep the epoch it is in.

    accelerate 1.10 returns a loader that counts epochs from 0 again, so a run resumed in a later
    epoch would see the order of the first.
    """
    import sys

    keeping = _keeping_epoch(skip_first_batches)
    for base in trainer.__mro__:
        module = sys.modules[base.__module__]
        if getattr(module, "skip_first_batches", None) is skip_first_batches:
            module.__dict__["skip_first_batches"] = keeping


def _keeping_epoch(skip: Callable[..., Any]) -> Callable[..., Any]:
    def skipping(dataloader: Any, num_batches: int = 0) -> Any:
        rest = skip(dataloader, num_batches)
        if hasattr(dataloader, "iteration"):
            rest.iteration = dataloader.iteration
        return rest

    return skipping
