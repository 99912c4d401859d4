"""One attempt at a trial: build model, data and trainer, resume from a checkpoint, train, save.

Loads torch; `trial.train` imports it once the device's environment is set.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import transformers

from trial.data.prepare import PreparedData
from trial.devices.device import Device
from trial.distributed import rank_env
from trial.model.eva import initialize, saved_lora_config, wants_eva
from trial.model.load import attach_adapter, count_parameters, model_hash
from trial.model.router_loss import router_loss_factor
from trial.model.weights import copy_folder, save_weights
from trial.store.records import Attempt, State
from trial.training.arguments import build_arguments, tracker_labels, training_keywords
from trial.training.callbacks import TrialCallback
from trial.training.checkpoints import Checkpoints, Newest, TrialProgress
from trial.training.context import AttemptContext
from trial.training.run_state import RunState, Stopped
from trial.training.trackers import TrackerRun
from trial.training.trainer import collator
from trial.training.trainer_setup import trainer_setup

logger = logging.getLogger(__name__)
RECORDED_VERSIONS = ("torch", "transformers", "peft", "accelerate", "optimum-habana", "deepspeed")


def run_attempt(context: AttemptContext, device: Device) -> State | None:
    """Train to the end, or until a stop is requested; None when interrupted at a checkpoint.

    Raises:
        Diverged: a loss is not finite, or above `diverged_above`.
        TrialTakenOver: another process has started the trial.
    """
    checkpoint, run = restore_run_state(context, device)
    context.run = run
    record_attempt(context, device, run)
    try:
        if reason := run.poll_stop():
            raise Stopped(reason)
        context.trainer = build_trainer(context, device, run, checkpoint)
        with _tracker_run(context):
            context.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except Stopped as stopped:
        run.stop = stopped.reason
    run.update_progress()
    if run.stop is not None:
        return "pruned" if run.stop == "prune" else None

    def save(folder: Path) -> None:
        tokenizer = context.process_cache.tokenizer(context.config)
        save_weights(context.model, folder, tokenizer, dtype=context.config.model.dtype)

    save_result_weights(context, run, save)
    return "complete"


def _tracker_run(context: AttemptContext) -> AbstractContextManager[None]:
    """The trial's own runs with its trackers; the first rank reports."""
    if context.rank_group.rank:
        return nullcontext()
    return TrackerRun(context.config, context.folder, context.trainer.args).open()


def restore_run_state(context: AttemptContext, device: Device) -> tuple[Path | None, RunState]:
    """The newest whole checkpoint if there is one, and the state at it; all ranks agree.

    Raises:
        ValueError: a checkpoint file is a link or belongs to another user; or the trial continues
            another one, and no checkpoint of it is whole.
    """
    checkpoints = Checkpoints(context.folder)
    newest, damaged = _agree_on_checkpoint(context, checkpoints)
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
        damaged=damaged,
    )
    return newest, run


def _agree_on_checkpoint(
    context: AttemptContext, checkpoints: Checkpoints
) -> tuple[Path | None, tuple[str, ...]]:
    """The checkpoint that every rank goes on from, and what is wrong with newer ones.

    The first rank reads them; it removes the damaged ones and says so in the trial's log.
    """
    found = Newest(None, ()) if context.rank_group.rank else checkpoints.newest_whole()
    local = found.checkpoint.name if found.checkpoint else None
    name, damaged = context.rank_group.broadcast([local, list(found.damaged)])
    origin = context.config.origin
    if name is None and origin is not None and origin.continues is not None:
        because = f": {damaged[0]}" if damaged else ""
        raise ValueError(f"no whole checkpoint of trial {origin.continues} to go on from{because}")
    if damaged and not context.rank_group.rank:
        checkpoints.refuse_foreign()
        checkpoints.remove_newer_than(found.checkpoint)
        follows = f"goes on from {name}" if name else "starts anew"
        for text in damaged:
            context.folder.write_log(f"damaged checkpoint: {text}; the trial {follows}")
    if found.checkpoint is not None and (text := checkpoints.metrics_damage(found.checkpoint)):
        context.folder.write_log(f"damaged: {text}")
        damaged.append(text)
    return checkpoints.path / name if name else None, tuple(damaged)


def record_attempt(context: AttemptContext, device: Device, run: RunState, slots: int = 1) -> None:
    """Append to `attempts.jsonl`; the process that wrote the last line owns the trial."""
    folder = context.folder
    folder.append_attempt(
        Attempt(
            started=time.time(),
            host=socket.gethostname(),
            pid=os.getpid(),
            device=device.label(),
            devices=rank_env.world_size(),
            resumed_from=run.progress.step,
            versions={name: found for name in RECORDED_VERSIONS if (found := _version(name))},
            cold=context.process_cache.cold,
            slots=slots,
            damaged=run.damaged,
        )
    )
    run.attempts_size = folder.attempts.stat().st_size if folder.attempts.exists() else None


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def build_trainer(
    context: AttemptContext, device: Device, run: RunState, checkpoint: Path | None
) -> Any:
    """Build model, data and trainer; `checkpoint` is the one that the trial goes on from.

    The training arguments come first: creating them sets up the device and announces ZeRO-3, which
    partitions weights while they are loaded.
    """
    config, process_cache = context.config, context.process_cache
    device.reset_peak()
    keywords = training_keywords(config, device, context.folder, resumed=checkpoint is not None)
    arguments = build_arguments(keywords, device, tracker_labels(config))
    if context.rank_group.size > 1 and config.zero_stage is not None:
        rank_env.init_deepspeed_comm(device.backend)
    tokenizer = process_cache.tokenizer(config)
    base = process_cache.take_base(config, device)
    data = process_cache.prepared(config, base)
    context.data = run.data = data.summary
    context.model_hash = model_hash(config.model.name_or_path, config.model.revision)
    # Here, since loading a model takes a varying number of draws from the generator.
    transformers.set_seed(config.training["seed"])
    context.model = _attach_adapter(base, data, arguments.device, run, checkpoint)
    context.parameters = count_parameters(context.model)
    logger.info("%d of %d parameters are trained", *context.parameters)
    setup = trainer_setup(
        config,
        device,
        data,
        tokenizer,
        smoothing=arguments.label_smoothing_factor,
        router_factor=router_loss_factor(context.model),
    )
    return setup.trainer_class(
        run=run,
        model=context.model,
        args=arguments,
        eval_dataset=data.eval,
        callbacks=[TrialCallback(run, context.model, tokenizer)],
        **setup.arguments,
        **device.trainer_arguments(config),
    )


def _attach_adapter(
    base: Any, data: PreparedData, to: Any, run: RunState, checkpoint: Path | None
) -> Any:
    """The model to train; an EVA adapter's ranks are those of its checkpoint, else of the data."""
    config = run.config
    if not wants_eva(config):
        return attach_adapter(base, config, run.positions)
    if (settings := saved_lora_config(checkpoint)) is not None:
        return attach_adapter(base, config, run.positions, settings=settings)

    def start(model: Any) -> None:
        initialize(model, data.train, collator(run.device), config, to)

    return attach_adapter(base, config, run.positions, start=start)


def save_result_weights(
    context: AttemptContext, run: RunState, save: Callable[[Path], None]
) -> None:
    """Write to `adapter/` or `model/` the weights whose eval loss is the trial's value.

    `save` writes the weights of the last step.
    """
    target = context.folder.adapter if context.config.lora.r else context.folder.model
    best = run.progress.best
    with context.clock.during("save"):
        if context.config.keep == "best" and best is not None:
            copy_folder(run.checkpoints.best(best.step), target)
        else:
            save(target)
