"""Loading a trial into a slot of a packed job: its adapter, or its newest checkpoint."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

from trial.model.load import model_hash
from trial.multi_lora.packable import NotPackableError
from trial.packed.setup import PackedSetup
from trial.packed.slot import STATE_FILE, Slot, training_rows
from trial.packed.trial_source import PackedTrial
from trial.store.phase_timer import SharedPhaseTimer
from trial.training.attempt import record_attempt, restore_run_state
from trial.training.context import AttemptContext
from trial.training.trackers import TrackerRun


def load_trial(
    trial: PackedTrial,
    context: AttemptContext,
    clock: SharedPhaseTimer,
    setup: PackedSetup,
    index: int,
) -> Slot:
    """Load a trial into slot `index`, and record the attempt; fills `context` in on the way.

    Raises:
        NotPackableError: the trial cannot be trained in a slot.
        OSError: its checkpoint cannot be read.
        ValueError: a file of its checkpoint is a link or belongs to another user.
    """
    config = context.config
    setup.process_cache.charge_import_time(clock)
    context.device = setup.device
    context.data = setup.data.summary
    context.model_hash = model_hash(config.model.name_or_path, config.model.revision)
    schedule = setup.schedule(config, trial.folder)
    initial = setup.initializer.create(config)
    context.parameters = initial.parameters
    described = SimpleNamespace(
        config=setup.engine.base.config, peft_config={"default": initial.config}
    )
    tracker_run = TrackerRun(config, trial.folder, schedule.args)
    context.report = partial(tracker_run.write, described)
    checkpoint, run = restore_run_state(context, setup.device)
    if checkpoint is not None and not (checkpoint / STATE_FILE).is_file():
        raise NotPackableError("its checkpoint is a trainer's own")
    context.run = run
    run.max_steps = schedule.max_steps
    run.data = setup.data.summary
    setup.engine.load(index, initial, config.lora.lora_dropout)
    slot = Slot(
        index,
        trial,
        context,
        schedule,
        initial,
        setup.engine,
        clock,
        training_rows(len(setup.data.train), schedule, run.steps),
        resumed_at=run.steps,
        fresh=checkpoint is None,
        logged_at=run.steps,
    )
    if checkpoint is not None:
        slot.read_checkpoint(checkpoint)
    record_attempt(context, setup.device, run, slots=setup.slots)
    setup.process_cache.mark_warm()
    return slot
