"""A PostgreSQL server that goes away under a running sweep, and comes back or does not."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from helpers import postgres
from helpers.sweeps import fakes
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError

from sweep.open_study import RunOptions
from sweep.run import explained_errors
from sweep.spec.dimension import Choices
from sweep.spec.spec import SweepSpec
from sweep.storage.open import open_storage
from sweep.storage.patient import PATIENCE, PatientStorage
from sweep.storage.url import masked
from sweep.study.decider import OptunaDecider
from sweep.study.verify import verify
from trial.store.folders import StudyFolder
from trial.store.records import StudyRecord

TRIALS = 6


@pytest.fixture(scope="module")
def server():
    if reason := postgres.why_not():
        pytest.skip(reason)
    with postgres.stoppable_server() as running:
        yield running


@pytest.fixture
def study(tmp_path) -> StudyFolder:
    return StudyFolder(tmp_path / f"study-{tmp_path.name}")


@dataclass
class Outage:
    """Stops the server before a call of the storage, and starts it after so many pauses."""

    server: postgres.Server
    before_call: int
    pauses: int | None
    """None: it stays away."""
    calls: int = 0
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)
    down: bool = False

    def called(self) -> None:
        self.calls += 1
        if self.calls == self.before_call:
            self.server.stop()
            self.down = True

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        if self.pauses is not None and self.down:
            self.pauses -= 1
            if self.pauses == 0:
                self.server.start()
                self.down = False


class Counted:
    """A storage each of whose calls is counted; the server is stopped before one or after it."""

    def __init__(self, storage, outage: Outage, lose_answer: str) -> None:
        self._storage, self._outage, self._lose_answer = storage, outage, lose_answer

    def __getattr__(self, name):
        found = getattr(self._storage, name)
        if name.startswith("_") or not callable(found):
            return found

        def call(*args, **kwargs):
            if not self._lose_answer:
                self._outage.called()
            answer = found(*args, **kwargs)
            if name == self._lose_answer:
                self._outage.called()
                if self._outage.down:
                    self._storage.get_all_studies()  # Fails: the answer is lost.
            return answer

        return call


def drive(study: StudyFolder, url: str, outage: Outage | None, lose_answer: str = "") -> list[int]:
    """Run a grid of six trials to its end; returns the numbers that were submitted."""
    spec = SweepSpec(
        name="study", space={"lora.r": (Choices(choices=(1, 2, 4, 8, 16, 32)),)},
        sampler={"name": "grid"},
    )  # fmt: skip
    if not study.exists():
        kept = {"storage": masked(url)}
        study.write_record(StudyRecord(name=study.name, spec=spec.content(), provenance=kept))
    storage = open_storage(study, url)
    assert isinstance(storage, PatientStorage)
    decider = OptunaDecider(spec, study.name, storage)
    if outage:
        storage.storage = Counted(storage.storage, outage, lose_answer)
        storage.sleep, storage.clock = outage.sleep, lambda: outage.seconds
        storage.say = outage.said.append
    executor = fakes.ScriptedExecutor(fakes.falling)
    driver = fakes.make_driver(study.path.parent, decider, executor)
    driver.study = study
    with explained_errors(study, RunOptions(study.path.parent)):
        driver.run()
    return executor.submitted


def check_whole(study: StudyFolder, url: str) -> None:
    """Six trials with six ranks, each told once what its folder says."""
    assert verify(study, open_storage(study, url)) == []
    folders = study.all_trials()
    assert [number for number, _ in folders] == list(range(TRIALS))
    assert len({folder.read_config().lora.r for _, folder in folders}) == TRIALS
    assert all(len(folder.read_evaluations()) == 3 for _, folder in folders)


@pytest.mark.parametrize("before_call", [5, 40])
def test_a_server_that_comes_back_costs_nothing(server, study, before_call):
    outage = Outage(server, before_call, pauses=3)
    assert drive(study, server.url, outage) == list(range(TRIALS))
    assert outage.pauses == 0
    assert outage.said[0].startswith("the storage does not answer (")
    assert postgres.ENCODED not in outage.said[0]
    assert outage.said[1] == "the storage answers again"
    check_whole(study, server.url)


@pytest.mark.parametrize("name", ["create_new_trial", "set_trial_state_values"])
def test_an_operation_whose_answer_is_lost_is_not_carried_out_twice(server, study, name):
    outage = Outage(server, 3, pauses=2)
    assert drive(study, server.url, outage, lose_answer=name) == list(range(TRIALS))
    assert outage.pauses == 0
    check_whole(study, server.url)


def test_a_server_that_stays_away_ends_the_sweep_with_the_command(server, study):
    outage = Outage(server, 40, pauses=None)
    with pytest.raises(ValueError, match=r"does not answer: .*go on with: gaudi-sweep") as caught:
        drive(study, server.url, outage)
    assert outage.seconds >= PATIENCE
    assert "sesame" not in str(caught.value)
    server.start()
    drive(study, server.url, None)
    check_whole(study, server.url)


def test_who_wants_to_leave_does_not_wait(server, study):
    storage = open_storage(study, server.url)
    storage.gives_up, storage.sleep = lambda: True, pytest.fail
    server.stop()
    try:
        with pytest.raises((StorageInternalError, OperationalError)):
            storage.get_all_studies()
    finally:
        server.start()
