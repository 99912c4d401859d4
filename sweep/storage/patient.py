"""A storage on a server that may go away for a while: what it does not answer is asked again.

An operation whose answer is lost may have been carried out. The driver is the only writer of its
study, so that a repeated one can tell: a trial that has appeared is the one it has created, and a
trial that has its state was given it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage

from sweep.storage import compat
from sweep.storage.url import error_text

logger = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds that a server may be away: a restart takes less."""
PAUSE = 0.5
"""Seconds between two tries."""


@dataclass
class PatientStorage:
    """Repeats operations that fail because the server does not answer, for up to `patience` s."""

    storage: BaseStorage
    patience: float = PATIENCE
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep
    say: Callable[[str], object] = logger.warning
    """Gets one line of text when it begins to wait, and when the server is back."""
    gives_up: Callable[[], bool] = lambda: False
    """Whether to wait no longer, since somebody wants to leave."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _seen: dict[int, set[int]] = field(default_factory=dict, init=False)
    """Ids of the trials of each study that are known, once one was created."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.storage, name)
        if name.startswith("_") or not callable(found):
            return found
        return partial(self._repeat, name, found)

    def create_new_trial(self, study_id: int, template_trial: Any = None) -> int:
        """As `BaseStorage.create_new_trial`; never creates two for one call."""
        with self._lock:
            if study_id not in self._seen:
                self._seen[study_id] = set(self._repeat("get_all_trials", self._ids, study_id))
            seen = self._seen[study_id]

            def create(repeated: bool) -> int:
                made = sorted(self._ids(study_id) - seen) if repeated else []
                return made[0] if made else self.storage.create_new_trial(study_id, template_trial)

            number: int = self._until_answered("create_new_trial", create)
            seen.add(number)
            return number

    def _ids(self, study_id: int) -> set[int]:
        trials = self.storage.get_all_trials(study_id, deepcopy=False)
        return {compat.trial_id(trial) for trial in trials}

    def _repeat(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def call(repeated: bool) -> Any:
            if not (repeated and name == "set_trial_state_values"):
                return function(*args, **kwargs)
            try:
                function(*args, **kwargs)
            except UpdateFinishedTrialError:
                logger.info("%s had been carried out", name)
            return True

        return self._until_answered(name, call)

    def _until_answered(self, name: str, call: Callable[[bool], Any]) -> Any:
        end, repeated = None, False
        while True:
            try:
                answer = call(repeated)
            except Exception as error:
                if not is_lost_connection(error):
                    raise
                now = self.clock()
                end = now + self.patience if end is None else end
                if now >= end or self.gives_up():
                    raise
                if not repeated:
                    what = f"the storage does not answer ({error_text(error)})"
                    self.say(f"{what}; it is asked again for up to {self.patience:g} s")
                repeated = True
                self.sleep(PAUSE)
            else:
                if repeated:
                    self.say("the storage answers again")
                return answer


def show_waiting(
    storage: BaseStorage, say: Callable[[str], object], gives_up: Callable[[], bool]
) -> None:
    """Where the storage waits for a server: say so, and leave when somebody wants to leave."""
    if isinstance(storage, PatientStorage):
        storage.say, storage.gives_up = say, gives_up


def is_lost_connection(error: BaseException) -> bool:
    """Whether an exception or one of its causes says that a server is gone."""
    # A study with a journal never needs it.
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

    seen: BaseException | None = error
    while seen is not None:
        lost = isinstance(seen, DBAPIError) and seen.connection_invalidated
        if lost or isinstance(seen, OperationalError | InterfaceError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
