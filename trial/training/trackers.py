"""Experiment trackers (`training.report_to`): one run for each trial, finished when it ends.

transformers' callbacks log to one run of a process, which W&B and MLflow never finish by
themselves; here every trial has a run of its own. A trial that trains alone logs as it goes. W&B
and MLflow have one active run in a process, so the trials of a packed job write theirs when they
end, by the same callbacks, from the trials' own records.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from trial.config.trial_config import TrialConfig
from trial.store.files import write_atomically
from trial.store.folders import TrialFolder
from trial.store.records import Evaluation, TrainLog
from trial.training.run_state import Stopped

MLFLOW_RUN = "mlflow_run.txt"
"""File of a trial's folder with the id of its MLflow run, to which a resumed trial goes back."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrackerRun:
    """The runs of one trial, one with each of its trackers."""

    config: TrialConfig
    folder: TrialFolder
    args: Any
    """The trainer's arguments."""

    @property
    def trackers(self) -> list[str]:
        """Names of the trackers."""
        return list(self.args.report_to or [])

    @property
    def group(self) -> str | None:
        """The study, by which runs are grouped; None outside of studies."""
        return self.config.origin.study if self.config.origin else None

    @contextmanager
    def open(self, *, failed: bool = False) -> Iterator[None]:
        """Log to the trial's own runs inside this context; they are finished when it is left.

        `failed`: mark them as failed, as an error inside the context does.
        """
        if not self.trackers:
            yield
            return
        with _environment(self._defaults()):
            for name in self.trackers:
                _START.get(name, _do_nothing)(self)
            ended = False
            try:
                yield
                ended = True
            except Stopped:
                ended = True
                raise
            finally:
                for name in self.trackers:
                    _FINISH.get(name, _do_nothing)(failed or not ended)

    def _defaults(self) -> dict[str, str]:
        """Variables of transformers' callbacks, for those that the user has not set."""
        group = self.group
        return {"TRACKIO_PROJECT": group, "MLFLOW_EXPERIMENT_NAME": group} if group else {}

    def identity(self) -> str:
        """A name of the run that no other trial has, and that the trial keeps when resumed."""
        attempts = self.folder.read_attempts()
        first = attempts[0].started if attempts else 0.0
        return hashlib.sha256(f"{self.folder.path} {first}".encode()).hexdigest()[:16]

    def write(self, model: Any, *, failed: bool) -> None:
        """Write the runs from the trial's records, once it has ended.

        Args:
            model: Has the model's `config`, and PEFT's as `peft_config`, as a trainer's has.
            failed: Whether the trial has failed.
        """
        try:
            with self.open(failed=failed):
                self._replay(model)
        except Exception as error:
            # The trial itself is on disk.
            logger.warning("not reported to %s: %r", ", ".join(self.trackers), error)

    def _replay(self, model: Any) -> None:
        """Call transformers' callbacks as a trainer would have."""
        from transformers import TrainerControl, TrainerState
        from transformers.integrations import get_reporting_integration_callbacks

        callbacks = [kind() for kind in get_reporting_integration_callbacks(self.trackers)]
        state, control = TrainerState(), TrainerControl()
        for callback in callbacks:
            callback.on_train_begin(self.args, state, control, model=model)
        for step, epoch, numbers in logged(self.folder):
            state.global_step, state.epoch = step, epoch
            for callback in callbacks:
                callback.on_log(self.args, state, control, model=model, logs=dict(numbers))
        for callback in callbacks:
            callback.on_train_end(self.args, state, control, model=model)


def logged(folder: TrialFolder) -> Iterator[tuple[int, float, Mapping[str, float]]]:
    """What a trainer would have logged of a trial: step, epoch, and numbers by its names.

    Of a step that was done twice, the last entry counts.
    """
    evaluations = {row.step: row for row in folder.read_evaluations()}
    entries: dict[int, TrainLog] = {row.step: row for row in folder.read_train_logs()}
    for step in sorted({*evaluations, *entries}):
        epoch = _epoch_of(step, evaluations)
        if (entry := entries.get(step)) is not None:
            names = ("loss", "grad_norm", "learning_rate")
            given = {name: getattr(entry, name) for name in names}
            numbers = {name: value for name, value in given.items() if value is not None}
            yield step, epoch, {**numbers, "epoch": epoch}
        if (row := evaluations.get(step)) is not None:
            yield step, epoch, {"eval_loss": row.eval_loss, **row.metrics, "epoch": epoch}


def _epoch_of(step: int, evaluations: Mapping[int, Evaluation]) -> float:
    """The epoch at a step, in proportion to that of an evaluation; 0 where there is none."""
    known = evaluations.get(step) or next((e for s, e in evaluations.items() if s), None)
    return known.epoch * step / known.step if known is not None and known.step else 0.0


@contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that are set unless the user has set them, and removed afterwards."""
    missing = [name for name in defaults if name not in os.environ]
    os.environ.update({name: defaults[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


def _do_nothing(_: Any) -> None:
    return None


def _start_wandb(run: TrackerRun) -> None:
    import wandb

    if wandb.run is not None:
        wandb.finish()
    wandb.init(
        project=os.environ.get("WANDB_PROJECT", "huggingface"),
        name=run.args.run_name,
        group=os.environ.get("WANDB_RUN_GROUP", run.group),
        id=run.identity(),
        resume="allow",
    )


def _finish_wandb(failed: bool) -> None:
    import wandb

    if wandb.run is not None:
        wandb.finish(exit_code=int(failed))


def _start_mlflow(run: TrackerRun) -> None:
    import mlflow

    if mlflow.active_run() is not None:
        mlflow.end_run()
    if experiment := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        mlflow.set_experiment(experiment)
    file = run.folder.path / MLFLOW_RUN
    origin = run.config.origin
    tags = {"study": origin.study, "trial": str(origin.number)} if origin else {}
    earlier = file.read_text(encoding="utf-8") if file.exists() else None
    begun = mlflow.start_run(run_id=earlier, run_name=run.args.run_name, tags=tags)
    write_atomically(file, begun.info.run_id)


def _finish_mlflow(failed: bool) -> None:
    import mlflow

    if mlflow.active_run() is not None:
        mlflow.end_run("FAILED" if failed else "FINISHED")


def _finish_trackio(_: bool) -> None:
    import trackio

    # It raises where no run is open: the callback has finished it.
    with suppress(RuntimeError):
        trackio.finish()


_START = {"wandb": _start_wandb, "mlflow": _start_mlflow}
"""Opens a tracker's run before transformers' callback does, which then uses it."""
_FINISH = {"wandb": _finish_wandb, "mlflow": _finish_mlflow, "trackio": _finish_trackio}
"""Finishes a tracker's run, if it is still open."""
