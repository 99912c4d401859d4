"""What a packed trial does between optimizer steps: start, log, evaluate, save, end."""

from __future__ import annotations

import torch

from trial.distributed.rank_group import RankGroup
from trial.packed.slot import Slot
from trial.packed.slot_pool import SlotPool
from trial.packed.slot_trainer import SlotTrainer
from trial.packed.trial_source import TrialSource
from trial.store.control import StopReason
from trial.store.records import State
from trial.training.attempt import save_result_weights
from trial.training.context import commit_result


class TrialLifecycle:
    """The trials of one slot pool between their steps; all ranks do the same at the same time."""

    def __init__(
        self, pool: SlotPool, trainer: SlotTrainer, source: TrialSource, rank_group: RankGroup
    ) -> None:
        self.pool = pool
        self.trainer = trainer
        self.source = source
        self.rank_group = rank_group

    def report_start(self, slot: Slot) -> None:
        """Report that training is about to begin."""
        run, max_steps = slot.run, slot.schedule.max_steps
        run.folder.write_log(f"training from step {run.steps} to {max_steps} in a packed job")
        slot.trial.control.started(run.folder, run.device.label(), max_steps)

    def stop_before_first_step(self, slot: Slot) -> None:
        """Stop the trial if it is to stop already."""
        if reason := slot.run.poll_stop():
            self._stop(slot, reason)

    def end_step(self, slot: Slot, norms: torch.Tensor | None) -> None:
        """After an optimizer step: count it, and log, evaluate, save or end as scheduled.

        `norms` are the gradient norms of all slots, [K].
        """
        slot.end_step()
        run, schedule = slot.run, slot.schedule
        step, last = run.steps, run.steps >= schedule.max_steps
        reason = None if last else run.poll_stop()
        if schedule.logs(step):
            self.trainer.read_losses()
            slot.log(float(norms[slot.index]) if norms is not None else 0.0)
            run.folder.write_log(f"step {step} of {schedule.max_steps}")
        if reason == "prune":
            self._stop(slot, reason)
            return
        evaluates = schedule.evaluates(step)
        if evaluates:
            self.evaluate(slot)
        if last:
            self._complete(slot)
        elif reason is not None:
            self._stop(slot, reason)
        elif schedule.saves(step, evaluates):
            self._save(slot)

    def evaluate(self, slot: Slot) -> None:
        """Evaluate the trial and record its eval loss in nats per token."""
        run, size = slot.run, slot.schedule.args.per_device_eval_batch_size
        with slot.clock.during("eval"):
            batches = self.pool.setup.eval_batches(size)
            part = slot.engine.evaluate(slot.index, batches, self.pool.keep_alive)
            totals, counts = zip(*self.rank_group.all_gather(part), strict=True)
            value = sum(totals) / sum(counts)
        run.record_evaluation(run.steps, slot.epoch, value, slot.write_adapter)
        run.folder.write_log(f"step {run.steps}: eval loss {value:.6f}")

    def save_newest(self, slot: Slot) -> None:
        """Write a checkpoint unless the newest one is of the current step."""
        if slot.run.saved_step != slot.run.steps:
            self._save(slot)

    def _save(self, slot: Slot) -> None:
        self.trainer.read_losses()
        with slot.clock.during("save"):
            slot.write_checkpoint()

    def _stop(self, slot: Slot, reason: StopReason) -> None:
        slot.run.stop = reason
        if reason == "interrupt":
            self.save_newest(slot)
            self.pool.remove(slot)
            self.source.ended(slot.trial, None)
            return
        slot.run.update_progress()
        self._end(slot, "pruned")

    def _complete(self, slot: Slot) -> None:
        if slot.context.config.keep_checkpoint:
            self._save(slot)
        slot.run.update_progress()
        save_result_weights(slot.context, slot.run, slot.write_adapter)
        self._end(slot, "complete")

    def _end(self, slot: Slot, state: State) -> None:
        result = slot.context.result(state)
        commit_result(slot.context, result)
        self.pool.remove(slot)
        slot.run.folder.write_log(f"{state}: {result.eval_loss}")
        slot.context.report_end(failed=False)
        self.source.ended(slot.trial, result)
