"""A packed job: slots over one base model, each with a trial of its own, refilled as they end.

    results = train_packed(folders, slots=8)

Every trial keeps its own data order, dropout, clipping, schedule, evaluations, checkpoints and end.
Trials that end make room for the next at once; the others never notice.

Several ranks train the same slots, each its part of every trial's rows: all do the same at the same
turn, and what fails on one fails on all (`RankGroup.run_on_all`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch

from trial.config.trial_config import TrialConfig
from trial.data.tokens import IGNORE_INDEX
from trial.distributed import rank_env
from trial.distributed.rank_group import (
    PeerLost,
    RankGroup,
    TrialTakenOver,
    connect,
    folder_of_rank,
    is_peer_loss,
)
from trial.model.dropout_hash import row_key
from trial.model.load import model_hash
from trial.multi_lora.adapter_init import NotPackableError
from trial.multi_lora.engine import Share
from trial.packed.setup import PackedSetup, open_setup
from trial.packed.slot import STATE, Slot, rows_from
from trial.packed.slot_count import release
from trial.packed.trial_source import ListTrialSource, PackedTrial, TrialSource
from trial.preload import finish_imports
from trial.store import failure_kinds
from trial.store.control import Control, NullControl, StopReason
from trial.store.disk_full import DiskFullError, refuse_if_full
from trial.store.folders import TrialFolder
from trial.store.phase_timer import SharedPhaseTimer
from trial.store.records import Result
from trial.training.attempt import record_attempt, restore_run_state, save_result_weights
from trial.training.context import AttemptContext
from trial.training.process_cache import ProcessCache

logger = logging.getLogger(__name__)


class HalfSteppedError(RuntimeError):
    """An optimizer step was begun and not ended: what lies in the slots is of no use any more."""


class PackedJob:
    """Trains what a source hands out, in `slots` slots; 0 slots: as many as pay."""

    def __init__(
        self, source: TrialSource, process_cache: ProcessCache, slots: int, *, limit: int = 16
    ) -> None:
        self.source = source
        self.process_cache = process_cache
        self.slots = slots
        self.limit = limit
        """Most slots that are taken where nobody said how many."""
        self.free: list[int] = []
        self.busy: dict[int, Slot] = {}
        self._unread: list[tuple[list[tuple[Slot, int, int]], torch.Tensor]] = []
        """Losses that are still on the device: of which slots, at which steps, in which places."""
        self._crowd = 0
        """So many trials at once were too many for the memory; 0 as long as all is well."""
        self._floor: PackedSetup | None = None
        self.rank_group = RankGroup()

    @property
    def floor(self) -> PackedSetup:
        """What the trials stand on; there once the first has been taken up."""
        if self._floor is None:
            raise RuntimeError("no trial has been taken up yet")
        return self._floor

    def run(self) -> None:
        """Train until the source has no more.

        Raises:
            PeerLost: another rank is gone.
        """
        try:
            with rank_env.rank_variables(deepspeed=False):
                self.rank_group = connect()
                while self._fill():
                    if not self._crowd:
                        self._turn()
                    if self._crowd:
                        self._shrink()
                self.rank_group.close()
        except Exception as error:
            self.process_cache.reusable = False
            if _is_loss(error) or (self.rank_group.size > 1 and is_peer_loss(error)):
                raise PeerLost(failure_kinds.cause_of(error, None).message) from error
            raise
        finally:
            if self._floor is not None:
                self._floor.close()

    # Taking trials up

    def _fill(self) -> bool:
        """Give free slots a trial; False when there is nothing left to do."""
        while not self._crowd and (self._floor is None or self.free):
            trial = self._next()
            if trial is None:
                return bool(self.busy)
            self._take_up(trial)
        return True

    def _next(self) -> PackedTrial | None:
        """The next trial: the first rank asks for it, the others hear where it lies."""
        trial = None if self.rank_group.rank else self.source.next(wait=not self.busy)
        path = self.rank_group.broadcast(str(trial.folder.path) if trial else None, no_timeout=True)
        if path is None or trial is not None:
            return trial
        return PackedTrial(folder_of_rank(TrialFolder(path)), NullControl())

    def _take_up(self, trial: PackedTrial) -> None:
        if (result := trial.folder.read_result()) is not None:
            self.source.ended(trial, result)
            return
        clock, config = SharedPhaseTimer(), trial.folder.read_config()
        session = AttemptContext(
            trial.folder, config, trial.control, self.process_cache, clock, self.rank_group
        )
        try:
            with clock.during("load"):
                slot = self.rank_group.run_on_all(lambda: self._load(trial, session, clock))
        except NotPackableError:
            self.source.evicted(trial, alone=True)
            return
        except Exception as error:
            if _is_loss(error):
                raise
            self._give_up(trial, session, error)
            return
        self.free.remove(slot.index)
        self.busy[slot.index] = slot
        self._begin(slot)

    def _open(self, config: TrialConfig, folder: TrialFolder) -> PackedSetup:
        if self._floor is None:
            self._floor = self.rank_group.run_on_all(
                lambda: open_setup(
                    self.process_cache, config, folder, self.slots, self.limit, self.rank_group
                )
            )
            self.free = list(range(self._floor.slots))
            self.source.sized(self._floor.slots)
        return self._floor

    def _load(self, trial: PackedTrial, session: AttemptContext, clock: SharedPhaseTimer) -> Slot:
        config = session.config
        floor = self._open(config, trial.folder)
        self.process_cache.charge_import_time(clock)
        session.device = floor.device
        session.data_hash = floor.data.data_hash
        session.model_hash = model_hash(config.model.name_or_path, config.model.revision)
        plan, drawn = floor.plan(config, trial.folder), floor.initializer.draw(config)
        session.parameters = drawn.parameters
        checkpoint, run = restore_run_state(session, floor.device)
        if checkpoint is not None and not (checkpoint / STATE).is_file():
            raise NotPackableError("its checkpoint is a trainer's own")
        session.run = run
        run.max_steps = plan.max_steps
        index, bank = self.free[0], floor.engine.bank
        floor.engine.load(index, drawn, config.lora.lora_dropout)
        order = rows_from(len(floor.data.train), plan, run.steps)
        slot = Slot(
            index, trial, session, plan, drawn, bank, floor.engine.adamw, clock, order,
            began=run.steps, fresh=checkpoint is None, logged_at=run.steps,
        )  # fmt: skip
        if checkpoint is not None:
            slot.read_state(checkpoint)
        record_attempt(session, floor.device, run, slots=floor.slots)
        self.process_cache.cold = False
        return slot

    def _begin(self, slot: Slot) -> None:
        """The first reports of an attempt."""
        run = slot.run
        self._say(slot, f"training from step {run.steps} to {slot.plan.max_steps} in a packed job")
        slot.trial.control.started(run.folder, run.device.label(), slot.plan.max_steps)
        if slot.fresh and slot.plan.args.eval_on_start:
            self._guarded(slot, lambda: self._evaluate(slot))
        if slot.index in self.busy:
            self._guarded(slot, lambda: self._obey(slot))

    # Training

    def _turn(self) -> None:
        """One micro-batch of every trial, and what follows where it ends an optimizer step."""
        slots = [self.busy[index] for index in sorted(self.busy)]
        began = time.perf_counter()
        try:
            norms = self.rank_group.run_on_all(lambda: self._train(slots))
        except Exception as error:
            if _is_loss(error):
                raise
            self._failed_turn(slots, error)
            return
        if any(slot.tells_next() for slot in slots):
            # What the device has been given is training: no evaluation shall wait for it.
            self.floor.device.synchronise()
        seconds = (time.perf_counter() - began) / max(1, len(slots))
        for slot in slots:
            first = slot.run.steps == slot.began
            slot.clock.charge("first_step" if first else "train", seconds)
        for slot in slots:
            if slot.index in self.busy and not slot.rows:
                self._guarded(slot, lambda slot=slot: self._after_step(slot, norms))  # type: ignore[misc]

    def _train(self, slots: list[Slot]) -> torch.Tensor | None:
        """Forward, backward, and the steps that are due; every slot's gradient norm if any was."""
        engine, fixed = self.floor.engine, self.floor.device.fixed_shapes
        for slot in slots:
            slot.begin_step(self.floor.data.train)
        losses = engine.accumulate(self._shares(slots))
        if not self.floor.device.free_reads:
            self.rank_group.all_gather(None)  # All have come through, so gradients can be added up.
        places = [slot.index if fixed else place for place, slot in enumerate(slots)]
        shown = [(slot, slot.run.steps, place) for slot, place in zip(slots, places, strict=True)]
        self._unread.append((shown, losses))
        if self.floor.device.free_reads:
            self._read_losses()
            self._count_losses(slots)
        rules: list[Any] = [None] * engine.bank.slots
        for slot in slots:
            slot.micro += 1
            if slot.index not in self.busy:
                continue
            if slot.micro == slot.plan.args.gradient_accumulation_steps:
                rules[slot.index] = slot.plan.rule(slot.run.steps)
        norms = self._step(rules) if any(rules) else None
        for slot in slots:
            if rules[slot.index] is not None:
                slot.count_tokens()
                slot.rows = []
        return norms

    def _count_losses(self, slots: list[Slot]) -> None:
        """Add each trial's newest loss to its step's; alone, one that is bad ends it at once."""
        for slot in slots:
            if self.rank_group.size > 1:
                slot.run.add_loss(slot.newest)
            else:
                self._guarded(slot, lambda s=slot: s.run.add_loss(s.newest))  # type: ignore[misc]

    def _read_losses(self) -> None:
        """Fetch the losses of all micro-batches since the last time: this waits for the device."""
        unread, self._unread = self._unread, []
        if not unread:
            return
        parts = self.rank_group.all_gather([losses.tolist() for _, losses in unread])
        for (shown, _), *values in zip(unread, *parts, strict=True):
            for slot, step, place in shown:
                slot.take_loss(step, sum(part[place] for part in values))

    def _step(self, rules: list[Any]) -> torch.Tensor:
        try:
            return self.floor.engine.step(rules)
        except Exception as error:
            raise HalfSteppedError(str(error)) from error

    def _shares(self, slots: list[Slot]) -> list[Share]:
        shares = {slot.index: _share(slot) for slot in slots}
        if not self.floor.device.fixed_shapes:
            return list(shares.values())
        # Where a new shape costs a compilation, empty slots train on rows without a label.
        size = len(shares[slots[0].index][1])
        row = self.floor.data.train[0]
        empty = [{**row, "labels": torch.full_like(row["labels"], IGNORE_INDEX)}] * size
        return [
            shares.get(index, (index, empty, [0] * size, 1)) for index in range(self.floor.slots)
        ]

    def _after_step(self, slot: Slot, norms: torch.Tensor | None) -> None:
        slot.end_step()
        run, plan = slot.run, slot.plan
        step, last = run.steps, run.steps >= plan.max_steps
        reason = None if last else run.poll_stop()
        if plan.logs(step):
            self._read_losses()
            slot.log(float(norms[slot.index]) if norms is not None else 0.0)
            self._say(slot, f"step {step} of {plan.max_steps}")
        if reason == "prune":
            self._stop(slot, reason)
            return
        evaluated = plan.evaluates(step)
        if evaluated:
            self._evaluate(slot)
        if last:
            self._complete(slot)
        elif reason is not None:
            self._stop(slot, reason)
        elif plan.saves(step, evaluated):
            self._save(slot)

    def _evaluate(self, slot: Slot) -> None:
        run, size = slot.run, slot.plan.args.per_device_eval_batch_size
        with slot.clock.during("eval"):
            batches = self.floor.eval_batches(size)
            part = self.floor.engine.evaluate(slot.index, batches, self._alive)
            totals, counts = zip(*self.rank_group.all_gather(part), strict=True)
            value = sum(totals) / sum(counts)
        run.record_evaluation(run.steps, slot.epoch, value, slot.write_adapter)
        self._say(slot, f"step {run.steps}: eval loss {value:.6f}")

    def _alive(self) -> None:
        """An evaluation is a sign of life of every trial that waits for it."""
        for slot in self.busy.values():
            slot.trial.control.alive(slot.trial.folder)

    # Ends

    def _obey(self, slot: Slot) -> None:
        """Stop before the first step if somebody wants that."""
        if reason := slot.run.poll_stop():
            self._stop(slot, reason)

    def _save(self, slot: Slot) -> None:
        self._read_losses()
        with slot.clock.during("save"):
            slot.write_state()

    def _keep(self, slot: Slot) -> None:
        """See to it that the trial's newest checkpoint is of the step it has come to."""
        if slot.run.saved_step != slot.run.steps:
            self._save(slot)

    def _stop(self, slot: Slot, reason: StopReason) -> None:
        slot.run.stop = reason
        if reason == "interrupt":
            self._keep(slot)
            self._leave(slot)
            self.source.ended(slot.trial, None)
            return
        slot.run.update_progress()
        self._end(slot, "pruned")

    def _complete(self, slot: Slot) -> None:
        if slot.session.config.keep_checkpoint:
            self._save(slot)
        slot.run.update_progress()
        save_result_weights(slot.session, slot.run, slot.write_adapter)
        self._end(slot, "complete")

    def _end(self, slot: Slot, state: Any) -> None:
        from trial.training.context import commit_result

        result = slot.session.result(state)
        commit_result(slot.session, result)
        self._leave(slot)
        self._say(slot, f"{state}: {result.value}")
        self.source.ended(slot.trial, result)

    def _leave(self, slot: Slot) -> None:
        """Empty the slot for the next trial."""
        del self.busy[slot.index]
        self.floor.engine.clear(slot.index)
        self.free.append(slot.index)
        self.free.sort()

    def _guarded(self, slot: Slot, act: Any) -> bool:
        """Do something for one trial; what goes wrong ends that trial alone."""
        try:
            self.rank_group.run_on_all(act)
        except Exception as error:
            if _is_loss(error):
                raise
            here = self.busy.get(slot.index) is slot
            if isinstance(error, failure_kinds.PeerFailed) and not here:
                return False  # It has ended here, and does so there.
            if here:
                self._leave(slot)
            self._give_up(slot.trial, slot.session, error)
            return False
        return True

    def _give_up(self, trial: PackedTrial, session: AttemptContext, error: Exception) -> None:
        """What went wrong for one trial ends it; too little memory for it only where it is alone.

        It goes on from its newest checkpoint then, for what lies in its slot may be half done.
        """
        if self._floor is not None and self.floor.slots > 1 and _is_full(error):
            self._too_many(self.floor.slots, error)
            self.source.evicted(trial, alone=False)
        else:
            self._fail(trial, session, error)

    def _fail(self, trial: PackedTrial, session: AttemptContext, error: Exception) -> None:
        from trial.training.context import commit_result

        if isinstance(error, TrialTakenOver | DiskFullError) or _name(error) in LEFT_OFF:
            self.source.abandoned(trial, error)
            return
        try:
            refuse_if_full(error, trial.folder.path)
        except DiskFullError as full:
            self.source.abandoned(trial, full)
            return
        with open(trial.folder.log, "a", encoding="utf-8") as log:
            log.write(failure_kinds.traceback_text(error))
        step = session.run.steps if session.run else None
        result = session.result("failed", failure_kinds.cause_of(error, step))
        commit_result(session, result)
        self.source.ended(trial, result)

    def _failed_turn(self, slots: list[Slot], error: Exception) -> None:
        """Out of memory halves the slots; any other failure of the whole lets each train alone."""
        full, whole = _is_full(error), _name(error) != HalfSteppedError.__name__
        if full and whole and self.floor.engine.forget_recordings():
            # With their memory it may fit.
            self._again(slots)
            release()
            return
        if len(slots) == 1 and not (full and self.floor.slots > 1):
            self._leave(slots[0])
            self._fail(slots[0].trial, slots[0].session, error)
            self.process_cache.reusable = False
            return
        self._again(slots)
        if not full:
            self._clear_out(alone=True, keep=whole)
            raise error
        self._too_many(self.floor.slots if self.floor.device.fixed_shapes else len(slots), error)
        if not whole:
            self._clear_out(alone=False, keep=False)

    def _again(self, slots: list[Slot]) -> None:
        """Forget what has been done of the step at hand."""
        self.floor.engine.forget_gradients()
        self._read_losses()
        for slot in slots:
            slot.step_again()

    def _too_many(self, crowd: int, error: Exception) -> None:
        """So many trials at once take more memory than there is."""
        logger.warning("%d trials at once: %s", crowd, failure_kinds.cause_of(error, None).message)
        self._crowd = crowd
        self.source.sized(max(1, crowd // 2))

    def _shrink(self) -> None:
        """Go on with half as many slots; the trials go on there, or wait for a slot elsewhere."""
        self.slots, self._crowd = max(1, self._crowd // 2), 0
        self._read_losses()
        for slot in self.busy.values():
            slot.step_again()
        self._clear_out(alone=False, keep=True)
        self.floor.close()
        self._floor = None
        release()

    def _clear_out(self, *, alone: bool, keep: bool) -> None:
        """Let every trial leave its slot: to go on later from here, or from its checkpoint."""
        for slot in list(self.busy.values()):
            if not keep or self._guarded(slot, lambda slot=slot: self._keep(slot)):  # type: ignore[misc]
                self._leave(slot)
                self.source.evicted(slot.trial, alone=alone)

    def _say(self, slot: Slot, text: str) -> None:
        """A line in the trial's log."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with open(slot.trial.folder.log, "a", encoding="utf-8") as log:
            log.write(f"{stamp} {text}\n")


LEFT_OFF = (TrialTakenOver.__name__, DiskFullError.__name__)
"""What ends a trial's stay without a result, also where another rank has met it."""


def _is_full(error: Exception) -> bool:
    return failure_kinds.classify(error) == "out_of_memory"


def _is_loss(error: Exception) -> bool:
    """Whether another rank is gone, which ends the job; one that is taken over ends a trial."""
    return isinstance(error, PeerLost) and not isinstance(error, TrialTakenOver)


def _name(error: Exception) -> str:
    """The class of an exception, or of the one that another rank has met."""
    return error.name if isinstance(error, failure_kinds.PeerFailed) else type(error).__name__


def _share(slot: Slot) -> Share:
    """A slot's part of the next batch."""
    places, seed = slot.places(slot.micro), slot.plan.args.seed
    keys = [row_key(seed, slot.run.steps, place) for place in places]
    return slot.index, [slot.rows[place] for place in places], keys, slot.targets


def train_packed(
    folders: Sequence[TrialFolder],
    *,
    slots: int,
    process_cache: ProcessCache | None = None,
    controls: Sequence[Control] | None = None,
) -> list[Result | None]:
    """Train trials that may share a job in `slots` slots of this process; 0: as many as pay.

    Returns their results in the order of `folders`, None for an interrupted one. Of several ranks
    every one calls this, and the first one's `controls` are heard.

    Raises:
        NotPackableError: one of them can only be trained by a trainer of its own.
    """
    source = ListTrialSource(map(PackedTrial, folders, controls or [NullControl()] * len(folders)))
    PackedJob(
        source, process_cache or ProcessCache(finish_imports), slots, limit=len(folders)
    ).run()
    if source.evicted_alone:
        raise NotPackableError(f"{source.evicted_alone[0].folder.path} trains alone")
    return [source.results[folder.path] for folder in folders]
