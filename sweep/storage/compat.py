"""Optuna's private names that this project uses, all in one place. Written for Optuna 5.0.0.

So are keys that Optuna keeps for itself and texts that it shows.

`tests/test_sweep/storage/test_compat.py` says which of them a new version of Optuna lacks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.storages.journal._storage import JournalOperation
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

WRITTEN_FOR = "5.0.0"

PRIVATE_NAMES: Mapping[str, Collection[str]] = {
    "Study": ("_storage", "_study_id", "_get_trials"),
    "Trial": ("_trial_id", "_cached_frozen_trial", "_get_latest_trial"),
    "FrozenTrial": ("_trial_id",),
    "JournalFileBackend": ("_file_path",),
    "JournalStorage": ("_thread_lock", "_sync_with_backend", "_replay_result"),
    "JournalStorage._replay_result": ("get_study", "_study_id_to_trial_ids", "_trials"),
}
"""Attributes by the object that has them."""

FIXED_PARAMS = "fixed_params"
"""System attribute of an enqueued trial: what it will suggest."""

RUNG_PREFIX = "completed_rung_"
"""Before a rung's number: system attribute of a trial that successive halving saw reach it."""

CMAES_WARNING = "Constraints have been set, but CmaEsSampler"
"""How CMA-ES begins to warn that it makes no use of constraints."""


def ignore_cmaes_warning() -> None:
    """Keep CMA-ES quiet about constraints: it learns from an infeasible trial's value instead."""
    warnings.filterwarnings("ignore", message=CMAES_WARNING)


# Trials of a study


def refuse_deleted(study: Study) -> None:
    """Look whether the study is still in its storage: a journal writes to trials without a study.

    Raises:
        KeyError: it has been deleted.
    """
    study._storage.get_study_name_from_id(study._study_id)


def running_trial(study: Study, trial: FrozenTrial) -> Trial:
    """A trial in flight as an object that suggests and reports."""
    return Trial(study, trial._trial_id)


def create_running_trial(
    study: Study, params: Mapping[str, Any], user_attrs: Mapping[str, Any]
) -> Trial:
    """A new trial in flight that will suggest these values, whatever else is enqueued."""
    import optuna

    template = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        user_attrs=dict(user_attrs),
        system_attrs={FIXED_PARAMS: dict(params)},
    )
    return Trial(study, study._storage.create_new_trial(study._study_id, template))


def set_waiting(study: Study, trial: Trial) -> None:
    """Put a trial in flight back into the queue, where `Study.ask` looks first."""
    study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def enqueued_params(trial: FrozenTrial) -> dict[str, Any] | None:
    """What a trial was enqueued with; None for one that was not."""
    params: dict[str, Any] | None = trial.system_attrs.get(FIXED_PARAMS)
    return params


def rung_values(trial: FrozenTrial) -> dict[int, float]:
    """The values with which a trial has reached rungs of successive halving, by rung."""
    return {
        int(key.removeprefix(RUNG_PREFIX)): value
        for key, value in trial.system_attrs.items()
        if key.startswith(RUNG_PREFIX)
    }


def set_rung_value(study: Study, trial: FrozenTrial, rung: int, value: float) -> None:
    """Store the value with which a trial in flight has reached a rung."""
    study._storage.set_trial_system_attr(trial._trial_id, f"{RUNG_PREFIX}{rung}", value)


def is_reported(trial: Trial, step: int) -> bool:
    """Whether an intermediate value was reported for a step."""
    return step in trial._cached_frozen_trial.intermediate_values


def complete_trials(study: Study) -> list[FrozenTrial]:
    """The complete trials, from the cache that Optuna keeps while a sampler draws."""
    return study._get_trials(deepcopy=False, states=(TrialState.COMPLETE,), use_cache=True)


def renumber(trial: FrozenTrial, number: int) -> FrozenTrial:
    """Give a trial that is in no storage a number and the same id."""
    trial.number = trial._trial_id = number
    return trial


class StudyWithPriorTrials:
    """A study that shows a sampler further complete trials before its own."""

    def __init__(self, study: Study, prior: Sequence[FrozenTrial]) -> None:
        self._study = study
        self._prior = prior

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Sequence[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        own = self._study._get_trials(deepcopy=deepcopy, states=states, use_cache=use_cache)
        wanted = states is None or TrialState.COMPLETE in states
        return [*self._prior, *own] if wanted else own

    def get_trials(
        self, deepcopy: bool = True, states: Sequence[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """As `Study.get_trials`, over more trials."""
        return self._get_trials(deepcopy, states)

    @property
    def trials(self) -> list[FrozenTrial]:
        """As `Study.trials`, over more trials."""
        return self._get_trials()


class StorageOfSomeTrials:
    """A storage that shows only some trials; all else is as in the storage."""

    def __init__(self, storage: BaseStorage, shows: Callable[[FrozenTrial], bool]) -> None:
        self._storage = storage
        self._shows = shows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Collection[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """As `BaseStorage.get_all_trials`, of fewer trials."""
        found = self._storage.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        return [trial for trial in found if self._shows(trial)]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """As `BaseStorage.get_best_trial`, of fewer trials."""
        return BaseStorage.get_best_trial(cast("BaseStorage", self), study_id)


def study_of_some(study: Study, shows: Callable[[FrozenTrial], bool]) -> Study:
    """The same study, with only some of its trials.

    Through its storage: `HyperbandPruner` makes studies of its own from that.
    """
    storage = cast("BaseStorage", StorageOfSomeTrials(study._storage, shows))
    return Study(study.study_name, storage, study.sampler, study.pruner)


def should_prune(study: Study, trial: Trial) -> bool:
    """As `Trial.should_prune`, with the trials that `study` shows."""
    return study.pruner.prune(study, trial._get_latest_trial())


# The journal

INTERMEDIATE_VALUE = JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE
"""Code of the journal's operation for a reported evaluation."""


class _NoLock(BaseJournalFileLock):
    """A lock that locks nothing."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


class UnlockedJournalFile(JournalFileBackend):
    """A journal file without Optuna's lock file, which a kill would leave behind."""

    def __init__(self, path: str) -> None:
        super().__init__(path, lock_obj=_NoLock())

    @property
    def path(self) -> str:
        """Path of the file."""
        return self._file_path


class ReplayedTrials:
    """The trials of a journal storage in memory, as its journal was last replayed."""

    def __init__(self, replay: Any) -> None:
        self._replay = replay

    def ids(self, study_id: int) -> list[int]:
        """Ids of a study's trials, by number.

        Raises:
            KeyError: there is no such study.
        """
        self._replay.get_study(study_id)
        ids: list[int] = self._replay._study_id_to_trial_ids[study_id]
        return ids

    def with_ids(self, ids: Collection[int]) -> list[FrozenTrial]:
        """The trials that have these ids; not copies."""
        trials = self._replay._trials
        return [trials[number] for number in ids]


@contextmanager
def replayed(storage: JournalStorage) -> Iterator[ReplayedTrials]:
    """Replay what the journal has gained; the trials may be read while the context is open."""
    with storage._thread_lock:
        storage._sync_with_backend()
        yield ReplayedTrials(storage._replay_result)


def trial_id(trial: FrozenTrial) -> int:
    """The id of a trial in its storage."""
    return trial._trial_id
