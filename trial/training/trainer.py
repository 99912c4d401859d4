"""One trainer for every device: what we add to GaudiTrainer and to transformers' Trainer alike."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from accelerate import skip_first_batches
from peft import PeftMixedModel, PeftModel
from torch.utils.data import Sampler

from trial.data.collate import Collator, evaluation_batches, with_full_attention
from trial.data.epoch_sampler import EpochSampler
from trial.devices.device import Device
from trial.model.dropout_hash import row_key
from trial.model.weights import save_weights
from trial.training.loss import TrainingLoss, count_targets, exact_loss

if TYPE_CHECKING:
    from trial.objectives.evaluate import EvalContext, Examination
    from trial.training.run_state import RunState

    Base: Any = object
else:
    Base = object


class TrialTrainer(Base):
    """A mixin over a trainer class; `run` must be set before training starts."""

    run: RunState
    control: Any
    examination: Examination | None = None
    """What is measured beside the eval loss."""
    tokenizer_for_words: Any = None
    _micro: int = 0
    """Batches of the optimizer step so far."""

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The exact eval loss, logged and handed to the callbacks."""
        # What the device still works on is training.
        self.run.device.synchronise()
        with self.run.clock.during("eval"):
            metrics = {"eval_loss": self._eval_loss(), **self._further_figures()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _further_figures(self) -> dict[str, float]:
        """What a trial that forgets reports beside the eval loss."""
        if self.examination is None:
            return {}
        figures = self.examination.measure(self._means())
        if self.run.rank_group.rank == 0:
            self.examination.write_ratios(self.run.folder.truth_ratios)
        return figures

    def _means(self) -> EvalContext:
        from trial.objectives.batch import Model
        from trial.objectives.evaluate import EvalContext

        forward = self._evaluating()
        return EvalContext(
            forward=forward,
            model=Model(forward, self.model),
            batch_size=self.args.per_device_eval_batch_size,
            collate=collator(self.run.device),
            rank_group=self.run.rank_group,
            tokenizer=self.tokenizer_for_words,
            settings=self.run.config.evaluation,
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
        return exact_loss(self._evaluating(), batches, dense=dense, ranks=ranks)

    def _evaluating(self) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
        """The model as it answers, from inputs to logits; it stops training for that."""
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

    def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> torch.Tensor:
        """One forward and backward pass; counts tokens, and reads the loss where that is free."""
        self.run.count_tokens(inputs["attention_mask"].sum())
        self._place(inputs["input_ids"])
        if not self.run.device.fixed_shapes:
            inputs = with_full_attention(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, *rest, **named)
        if self.run.device.free_reads:
            self.run.add_loss(loss.item())
        return loss

    def _place(self, ids: torch.Tensor) -> None:
        """Tell the adapter's dropout which rows of the optimizer step these are."""
        args, (rows, columns) = self.args, ids.shape
        first = (self._micro * args.world_size + args.process_index) * rows
        self._micro += 1
        step = self.state.global_step
        keys = [row_key(args.seed, step, first + row) for row in range(rows)]
        self.run.positions.set(keys, columns, ids.device)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | None]:
        """The batches of one optimizer step, and over how many tokens its loss is taken.

        GaudiTrainer's own count fails on batches of unlike width, and its loss is then multiplied
        by the number of batches.
        """
        batches = list(itertools.islice(epoch_iterator, num_batches))
        self._micro = 0
        if not batches:
            return [], None
        count = torch.stack([count_targets(batch) for batch in batches]).sum().to(device)
        if self.args.average_tokens_across_devices:
            count = self.accelerator.gather(count).sum()
        return batches, count.clamp(min=1)

    get_batch_samples_transformers = get_batch_samples
    """GaudiTrainer's name for it."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Nobody reads the estimate, and it walks over all parameters at every step."""
        return 0

    def create_optimizer(self) -> Any:
        """The trainer's own optimizer without empty parameter groups, which break ZeRO 1 and 3."""
        optimizer = super().create_optimizer()
        # accelerate's stand-in for an optimizer that DeepSpeed makes has no groups yet.
        if (groups := getattr(optimizer, "param_groups", None)) is not None:
            groups[:] = [group for group in groups if group["params"]]
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        """The same order on every device, with DeepSpeed and without."""
        args, rows = self.args, train_dataset or self.train_dataset
        lengths = None
        if args.group_by_length:
            lengths = rows.row_lengths()
        seed = args.seed if args.data_seed is None else args.data_seed
        step_rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        return EpochSampler(
            len(rows),
            step_rows * args.world_size,
            seed,
            lengths=lengths,
            drop_last=args.dataloader_drop_last,
        )

    def _wrap_model(self, model: Any, *rest: Any, **named: Any) -> Any:
        """The last stop before DeepSpeed takes the model over."""
        self.run.device.repair_checkpointing(self)
        return super()._wrap_model(model, *rest, **named)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights of a checkpoint; DeepSpeed's own files hold them already."""
        checkpoint = self.run.checkpoints.at(self.state.global_step)
        checkpoint.mkdir(parents=True, exist_ok=True)
        if self.args.should_save and not self.is_deepspeed_enabled:
            save_weights(self.model, checkpoint)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.run.clock.during("save"):
            super()._save_checkpoint(model, trial)
        self.run.record_checkpoint(self.state.global_step)

    def _rotate_checkpoints(self, *_: Any, **__: Any) -> None:
        """Ours go when a newer one is whole."""


@cache
def trainer_class(device: Device) -> type[Any]:
    """The trainer class of a device with our additions."""
    mend(device.trainer_class())
    return type("TrialTrainer", (TrialTrainer, device.trainer_class()), {})


def collator(device: Device) -> Collator:
    """How rows become batches on a device."""
    return Collator(trim=not device.fixed_shapes)


def training_loss(device: Device, smoothing: float) -> TrainingLoss:
    """How a device takes the training loss."""
    return TrainingLoss(dense=device.fixed_shapes, smoothing=smoothing)


def mend(trainer: type[Any]) -> None:
    """Mend two functions that trainers look up in their own modules."""
    keeping = _keeping_epoch(skip_first_batches)
    for base in trainer.__mro__:
        module = sys.modules[base.__module__]
        if getattr(module, "skip_first_batches", None) is skip_first_batches:
            module.__dict__["skip_first_batches"] = keeping
        if hasattr(module, "_is_peft_model"):
            module.__dict__["_is_peft_model"] = _is_peft_model


def _keeping_epoch(skip: Callable[..., Any]) -> Callable[..., Any]:
    """Let a loader that skips batches keep the epoch it is in.

    accelerate 1.10 returns one that counts epochs from 0 again, so a run resumed in a later epoch
    would see the order of the first.
    """

    def skipping(dataloader: Any, num_batches: int = 0) -> Any:
        rest = skip(dataloader, num_batches)
        if hasattr(dataloader, "iteration"):
            rest.iteration = dataloader.iteration
        return rest

    return skipping


def _is_peft_model(model: Any) -> bool:
    """As transformers' own, which parses PEFT's metadata file at every step (1 ms)."""
    return isinstance(model, PeftModel | PeftMixedModel)
