"""One attempt: build model, data and trainer, go on from the newest checkpoint, train, keep.

Loads torch; `trial.train` imports it once the device's environment is set.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import transformers
from transformers import PrinterCallback

from trial.devices.device import Device
from trial.distributed import rank_env
from trial.model.load import attach_adapter, count_parameters, model_hash
from trial.model.weights import copy_folder, save_weights
from trial.store.records import Attempt, State
from trial.training.arguments import build_arguments, tracker_labels, training_keywords
from trial.training.callbacks import TrialCallback
from trial.training.checkpoints import Checkpoints, TrialProgress
from trial.training.context import AttemptContext
from trial.training.run_state import RunState, Stopped
from trial.training.trainer_setup import trainer_setup

logger = logging.getLogger(__name__)
VERSIONED = ("torch", "transformers", "peft", "accelerate", "optimum-habana", "deepspeed")


def attempt(context: AttemptContext, device: Device) -> State | None:
    """Train until the end or until told to stop; None when interrupted at a checkpoint."""
    checkpoint, run = restore_run_state(context, device)
    context.run = run
    record_attempt(context, device, run)
    try:
        if reason := run.poll_stop():
            raise Stopped(reason)
        _build(context, device, run, resumed=checkpoint is not None)
        context.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except Stopped as stopped:
        run.stop = stopped.reason
    run.update_progress()
    if run.stop is not None:
        return "pruned" if run.stop == "prune" else None
    save_result_weights(context, run, partial(_save, context))
    return "complete"


def restore_run_state(context: AttemptContext, device: Device) -> tuple[Path | None, RunState]:
    """What the trial has come to so far, and the checkpoint it goes on from if there is one."""
    checkpoints = Checkpoints(context.folder)
    found = checkpoints.newest()
    name = context.rank_group.broadcast(found.name if found else None)
    newest = checkpoints.path / name if name else None
    progress = checkpoints.read_progress(newest) if newest else TrialProgress()
    checkpoints.tidy(progress)
    context.clock.restore(progress.seconds)
    run = RunState(
        folder=context.folder,
        config=context.config,
        device=device,
        control=context.control,
        rank_group=context.rank_group,
        clock=context.clock,
        checkpoints=checkpoints,
        progress=progress,
        steps=progress.step,
    )
    return newest, run


def record_attempt(context: AttemptContext, device: Device, run: RunState, slots: int = 1) -> None:
    """Write down that the trial has been taken up here; the latest to do so owns it."""
    folder = context.folder
    folder.append_attempt(
        Attempt(
            started=time.time(),
            host=socket.gethostname(),
            pid=os.getpid(),
            device=device.label(),
            devices=rank_env.world_size(),
            resumed_from=run.progress.step,
            versions={name: found for name in VERSIONED if (found := _version(name))},
            cold=context.process_cache.cold,
            slots=slots,
        )
    )
    run.attempts_size = folder.attempts.stat().st_size if folder.attempts.exists() else None


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _build(context: AttemptContext, device: Device, run: RunState, *, resumed: bool) -> None:
    """Arguments first: they set the device up, and ZeRO-3 must be known when weights are loaded."""
    config, process_cache = context.config, context.process_cache
    device.reset_peak()
    keywords = training_keywords(config, device, context.folder, resumed=resumed)
    arguments = build_arguments(keywords, device, tracker_labels(config))
    if context.rank_group.size > 1 and config.zero_stage is not None:
        rank_env.init_deepspeed_comm(device.backend)
    tokenizer = process_cache.tokenizer(config)
    base = process_cache.take_base(config, device)
    data = process_cache.prepared(config, base.config.model_type)
    context.data_hash = data.data_hash
    context.model_hash = model_hash(config.model.name_or_path, config.model.revision)
    # Drawn from now on: adapter, order of the data, dropout. Loading drew unlike amounts before.
    transformers.set_seed(config.training["seed"])
    context.model = attach_adapter(base, config, run.positions)
    context.parameters = count_parameters(context.model)
    logger.info("%d of %d parameters are trained", *context.parameters)
    setup = trainer_setup(config, device, data, arguments.label_smoothing_factor)
    context.trainer = setup.trainer_class(
        model=context.model,
        args=arguments,
        data_collator=setup.collator,
        compute_loss_func=setup.loss,
        train_dataset=setup.train,
        eval_dataset=data.eval,
        callbacks=[TrialCallback(run, context.model, tokenizer)],
        **device.trainer_arguments(config),
    )
    context.trainer.run = run
    setup.prepare(context.trainer, tokenizer)
    device.prepare_trainer(context.trainer, config)
    context.trainer.remove_callback(PrinterCallback)


def save_result_weights(
    context: AttemptContext, run: RunState, save: Callable[[Path], None]
) -> None:
    """Put the weights whose eval loss is the trial's value where a reader looks for them.

    `save` writes those of the last step.
    """
    target = context.folder.adapter if context.config.lora.r else context.folder.model
    best = run.progress.best
    with context.clock.during("save"):
        if context.config.keep == "best" and best is not None:
            copy_folder(run.checkpoints.best(best.step), target)
        else:
            save(target)


def _save(context: AttemptContext, folder: Path) -> None:
    save_weights(context.model, folder, context.process_cache.tokenizer(context.config))
