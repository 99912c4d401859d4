"""One trainer for every device: what we add to GaudiTrainer and to transformers' Trainer alike."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback

from trial.data.collate import Collator, evaluation_batches, with_full_attention
from trial.data.epoch_sampler import EpochSampler
from trial.devices.compat import patch_trainer
from trial.devices.device import Device
from trial.model.dropout.dropout_hash import row_key
from trial.model.weights import save_weights
from trial.training.arguments import loraplus_ratio
from trial.training.loss import count_targets, exact_loss

if TYPE_CHECKING:
    from trial.objectives.answers import EvalContext
    from trial.objectives.evaluate import UnlearningEvaluator
    from trial.training.run_state import RunState

    Base: Any = object
else:
    Base = object


class TrialTrainer(Base):
    """A mixin over a trainer class; `trainer_class` combines the two."""

    control: Any
    optimizer: Any
    batch_parts = 1
    """Parts of a batch: an objective has forget, retain or alternative rows; `sft` has one part."""

    def __init__(
        self,
        *,
        run: RunState,
        evaluator: UnlearningEvaluator | None = None,
        router_factor: float = 0.0,
        **arguments: Any,
    ) -> None:
        """Construct the trainer.

        Args:
            run: state of the trial.
            evaluator: measures what is reported beside the eval loss.
            router_factor: of the loss of a mixture's router; 0 where there is none.
            **arguments: go to the trainer class.
        """
        self.run = run
        self.evaluator = evaluator
        self.router_factor = router_factor
        self._micro_batches = 0
        """Batches of the current optimizer step so far."""
        super().__init__(**arguments)
        run.device.prepare_trainer(self, run.config)
        self.remove_callback(PrinterCallback)

    # Evaluation

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Eval loss and further metrics by name, logged and passed to the callbacks."""
        # Work that the device has not finished yet is training.
        self.run.device.synchronise()
        with self.run.clock.during("eval"):
            metrics = {"eval_loss": self._eval_loss(), **self._further_metrics()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _further_metrics(self) -> dict[str, float]:
        if self.evaluator is None:
            return {}
        metrics = self.evaluator.measure(self._eval_context())
        if self.run.rank_group.rank == 0:
            self.evaluator.write_ratios(self.run.folder.truth_ratios)
        return metrics

    def _eval_context(self) -> EvalContext:
        from trial.objectives.answers import EvalContext
        from trial.objectives.batch import Model

        forward = self._eval_forward()
        return EvalContext(
            forward=forward,
            model=Model(forward, self.model),
            batch_size=self.args.per_device_eval_batch_size,
            collate=collator(self.run.device),
            rank_group=self.run.rank_group,
        )

    def _eval_loss(self) -> float:
        ranks = self.args.world_size
        batches = evaluation_batches(
            self.eval_dataset,
            self.args.per_device_eval_batch_size,
            collator(self.run.device),
            rank=self.args.process_index,
            ranks=ranks,
        )
        dense = self.run.device.fixed_shapes
        return exact_loss(self._eval_forward(), batches, dense=dense, ranks=ranks)

    def _eval_forward(self) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
        """The model's forward pass from inputs to logits; the model is put in eval mode."""
        model = self.model_wrapped if self.is_deepspeed_enabled else self.model
        model.eval()
        dense = self.run.device.fixed_shapes
        extra = self.run.device.evaluation_inputs(self)
        htcore = getattr(self, "htcore", None)

        def forward(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            self.run.control.alive(self.run.folder)
            inputs = self._prepare_inputs(inputs if dense else with_full_attention(inputs))
            with self.compute_loss_context_manager():
                logits: torch.Tensor = model(**inputs, **extra).logits
            if htcore is not None:
                htcore.mark_step()
            return logits

        return forward

    # Training

    def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> torch.Tensor:
        """Forward and backward pass of a batch; counts its tokens.

        Reads the loss where that does not wait for the device (`Device.reads_without_sync`).
        """
        self.run.count_tokens(inputs["attention_mask"].sum())
        self._set_batch_positions(inputs["input_ids"])
        # A router's loss is a mean over tokens, of which padding is none.
        if not self.run.device.fixed_shapes and not self.router_factor:
            inputs = with_full_attention(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, *rest, **named)
        if self.run.device.reads_without_sync:
            self.run.add_loss(loss.item())
        return loss

    def _set_batch_positions(self, ids: torch.Tensor) -> None:
        """Tell the LoRA dropout which rows of the optimizer step are in this batch.

        Rows are numbered within their part of the batch, so that the dropout mask of a row does not
        depend on how the step is divided into batches and ranks. `ids` is [parts * rows, columns].
        """
        args, parts = self.args, self.batch_parts
        rows = len(ids) // parts
        first = (self._micro_batches * args.world_size + args.process_index) * rows
        self._micro_batches += 1
        step = self.state.global_step
        keys = [
            row_key(args.seed, step, (first + row) * parts + part)
            for part in range(parts)
            for row in range(rows)
        ]
        self.run.positions.set(keys, ids.shape[1], ids.device)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | None]:
        """The batches of one optimizer step, and what its loss is divided by (`step_counts`).

        GaudiTrainer's own count fails on batches of unequal width, and its loss is then multiplied
        by the number of batches.
        """
        batches = list(itertools.islice(epoch_iterator, num_batches))
        self._micro_batches = 0
        return batches, self.step_counts(batches, device) if batches else None

    get_batch_samples_transformers = get_batch_samples
    """The name under which GaudiTrainer calls it."""

    def step_counts(self, batches: list[Any], device: torch.device) -> torch.Tensor:
        """Number of labelled tokens of an optimizer step, over all ranks if those are averaged."""
        count = torch.stack([count_targets(batch) for batch in batches]).sum().to(device)
        if self.args.average_tokens_across_devices:
            count = self.accelerator.gather(count).sum()
        return count.clamp(min=1)

    def floating_point_ops(self, inputs: Any) -> int:
        """Always 0: nothing reads the estimate, which takes a pass over all parameters a step."""
        return 0

    def create_optimizer(self) -> Any:
        """The trainer's own optimizer, or PEFT's LoRA+ with it, without empty parameter groups.

        Those break ZeRO 1 and 3.
        """
        ratio = loraplus_ratio(self.run.config)
        if self.optimizer is None and ratio is not None:
            self.optimizer = self._loraplus_optimizer(ratio)
        optimizer = super().create_optimizer()
        # accelerate's placeholder for an optimizer that DeepSpeed makes has no groups yet.
        if (groups := getattr(optimizer, "param_groups", None)) is not None:
            groups[:] = [group for group in groups if group["params"]]
        return optimizer

    def _loraplus_optimizer(self, ratio: float) -> Any:
        from peft.optimizers import create_loraplus_optimizer

        kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        return create_loraplus_optimizer(
            self.model,
            kind,
            lr=settings.pop("lr"),
            loraplus_lr_ratio=ratio,
            loraplus_weight_decay=self.args.weight_decay,
            **settings,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        return self.epoch_sampler(train_dataset or self.train_dataset)

    def epoch_sampler(self, rows: Any) -> EpochSampler:
        """The order of `rows`, the same on every device, with DeepSpeed and without."""
        args = self.args
        step_rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        return EpochSampler(
            len(rows),
            step_rows * args.world_size,
            args.seed if args.data_seed is None else args.data_seed,
            lengths=rows.row_lengths() if args.group_by_length else None,
            drop_last=args.dataloader_drop_last,
        )

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        # In a rehearsal the weights have no values: there is nothing to move.
        if not next(model.parameters()).is_meta:
            super()._move_model_to_device(model, device)

    def _wrap_model(self, model: Any, *rest: Any, **named: Any) -> Any:
        # DeepSpeed takes the model over in here.
        self.run.device.repair_checkpointing(self)
        return super()._wrap_model(model, *rest, **named)

    # Checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights of a checkpoint, unless DeepSpeed's own files hold them."""
        checkpoint = self.run.checkpoints.at(self.state.global_step)
        checkpoint.mkdir(parents=True, exist_ok=True)
        if self.args.should_save and not self.is_deepspeed_enabled:
            save_weights(self.model, checkpoint)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.run.clock.during("save"):
            self.run.checkpoints.make_room(self.run.progress)
            super()._save_checkpoint(model, trial)
            self.run.record_checkpoint(self.state.global_step)

    def _rotate_checkpoints(self, *_: Any, **__: Any) -> None:
        """Do nothing: `Checkpoints` removes a checkpoint when a newer one is complete."""


@cache
def trainer_class(device: Device) -> type[Any]:
    """The device's trainer class with `TrialTrainer` mixed in."""
    patch_trainer(device.trainer_class())
    return type("TrialTrainer", (TrialTrainer, device.trainer_class()), {})


def collator(device: Device) -> Collator:
    """The collator for a device: batches keep their padding where shapes are fixed."""
    return Collator(trim=not device.fixed_shapes)
