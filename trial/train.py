"""Train one trial from its folder: everything that a worker does.

result = train(TrialFolder("runs/x/trials/00007"))
"""

from __future__ import annotations

import contextlib

from trial.config.packing_rules import unpackable_reason
from trial.config.trial_config import TrialConfig
from trial.distributed import rank_env, rank_group
from trial.preload import finish_imports
from trial.store import failure_kinds
from trial.store.control import Control, NullControl
from trial.store.disk_full import refuse_if_full
from trial.store.folders import TrialFolder
from trial.store.phase_timer import PhaseTimer
from trial.store.records import Result, State
from trial.training.context import AttemptContext, commit_result
from trial.training.process_cache import ProcessCache


def train(
    folder: TrialFolder,
    control: Control | None = None,
    process_cache: ProcessCache | None = None,
    config: TrialConfig | None = None,
) -> Result | None:
    """Train a trial to its end, from its newest checkpoint when there is one.

    Returns its result, which is then on disk; a folder with a result is not trained again. None
    means that it was interrupted and can be resumed. A failure of the training is a result too,
    with its cause; the traceback goes to the trial's log. `config` is the folder's configuration,
    for a caller that has read it already.

    Raises:
        FileNotFoundError: the folder has no configuration.
        ValueError: its configuration cannot be read.
        RuntimeError: `process_cache` is not reusable.
        PeerLost: another rank of the trial is gone, or another process has started the trial.
        DiskFullError: the disk is full; the trial can be resumed.
    """
    folder = rank_group.folder_of_rank(folder)
    if (result := folder.read_result()) is not None:
        return result
    config, control = config or folder.read_config(), control or NullControl()
    process_cache = process_cache or ProcessCache(finish_imports)
    if config.packed and not unpackable_reason(config):
        process_cache.start(config)
        from trial.multi_lora.packable import NotPackableError
        from trial.packed.job import train_packed

        with contextlib.suppress(NotPackableError):
            (result,) = train_packed(
                [folder],
                slots=1,
                process_cache=process_cache,
                controls=[control],
                configs=[config],
            )
            return result
    context = AttemptContext(folder, config, control, process_cache, PhaseTimer())
    with process_cache.use(config):
        result = _train_alone(context)
    if result is not None:
        commit_result(context, result)
    return result


def _train_alone(context: AttemptContext) -> Result | None:
    """Run an attempt; an exception of the training becomes a failed result."""
    try:
        state = _run_attempt(context)
    except rank_group.PeerLost:
        context.process_cache.mark_spent()
        raise
    except Exception as error:
        context.process_cache.mark_spent()
        refuse_if_full(error, context.folder.path)
        with open(context.folder.log, "a", encoding="utf-8") as log:
            log.write(failure_kinds.traceback_text(error))
        if context.rank_group.size > 1 and rank_group.is_peer_loss(error):
            raise rank_group.PeerLost(failure_kinds.cause_of(error, None).message) from error
        step = context.run.steps if context.run else None
        return context.result("failed", failure_kinds.cause_of(error, step))
    context.process_cache.give_back(context.model, context.config)
    return None if state is None else context.result(state)


def _run_attempt(context: AttemptContext) -> State | None:
    """Start the device, join the other ranks, and train."""
    config = context.config
    try:
        with context.clock.during("startup"):
            device = context.device = context.process_cache.start(config)
            from trial.training.attempt import run_attempt
        context.process_cache.charge_import_time(context.clock)
        if rank_env.world_size() > 1 and config.zero_stage is None and device.name == "cpu":
            raise ValueError("several ranks on cpu need a `zero_stage`: they drift apart without")
        context.rank_group = rank_group.connect()
        return run_attempt(context, device)
    finally:
        if context.device is not None:
            rank_env.tear_down(context.trainer)
