"""The canary of `sweep.storage.compat`: which of Optuna's private names are gone."""

from __future__ import annotations

import re
import warnings

import optuna
import pytest
from helpers.paths import ROOT
from optuna.trial import TrialState

from sweep.storage import compat
from sweep.storage.journal import Journal, SingleDriverStorage
from sweep.storage.open import in_memory

NAMES = [(owner, name) for owner, names in compat.PRIVATE_NAMES.items() for name in names]


@pytest.fixture
def owners(tmp_path) -> dict[str, object]:
    """One object of each kind that `PRIVATE_NAMES` lists."""
    backend = Journal(str(tmp_path / "journal.log"))
    storage = SingleDriverStorage(backend)
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    return {
        "Study": study,
        "Trial": trial,
        "FrozenTrial": study.trials[0],
        "JournalFileBackend": backend,
        "JournalStorage": storage,
        "JournalStorage._replay_result": getattr(storage, "_replay_result", None),
    }


@pytest.mark.parametrize(("owner", "name"), NAMES)
def test_optuna_has_the_private_name(owners, owner, name):
    assert hasattr(owners[owner], name), (
        f"Optuna {optuna.__version__}: {owner} has no {name}; sweep/storage/compat.py was written "
        f"for {compat.WRITTEN_FOR}"
    )


def test_it_was_written_for_the_installed_version():
    assert optuna.__version__ == compat.WRITTEN_FOR


def test_no_other_module_uses_a_private_name_of_optuna():
    attributes = "|".join({name for _, name in NAMES if name.startswith("_")})
    keys = f"{compat.FIXED_PARAMS}|{compat.RUNG_PREFIX}|{compat.CMAES_WARNING}"
    private = re.compile(rf"(?<!self)\.(?:{attributes})\b|from optuna[\w.]*\._|{keys}")
    compat_file = ROOT / "sweep" / "storage" / "compat.py"
    paths = [*(ROOT / "sweep").rglob("*.py"), *(ROOT / "results").rglob("*.py")]
    users = [path for path in paths if private.search(path.read_text(encoding="utf-8"))]
    assert users == [compat_file]


def test_a_running_trial_suggests_what_it_was_created_with():
    study = optuna.create_study(storage=in_memory())
    study.enqueue_trial({"x": 1.0})
    trial = compat.create_running_trial(study, {"x": 0.25}, {"confirms": 3})
    assert trial.suggest_float("x", 0.0, 1.0) == 0.25
    assert study.trials[trial.number].state == TrialState.RUNNING
    assert study.trials[trial.number].user_attrs == {"confirms": 3}


def test_a_requeued_trial_is_asked_for_first(tmp_path):
    storage = SingleDriverStorage(Journal(str(tmp_path / "journal.log")))
    study = optuna.create_study(storage=storage)
    first, second = study.ask(), study.ask()
    compat.set_waiting(study, first)
    assert [study.ask().number, study.ask().number] == [first.number, second.number + 1]


def test_reported_steps_are_known():
    study = optuna.create_study(storage=in_memory())
    trial = study.ask()
    trial.report(1.0, 5)
    assert [compat.is_reported(trial, step) for step in (4, 5)] == [False, True]


def test_optuna_keeps_what_a_trial_was_enqueued_with_under_the_same_key():
    study = optuna.create_study(storage=in_memory())
    study.enqueue_trial({"x": 1.0})
    study.ask()
    study.ask()
    assert [compat.enqueued_params(trial) for trial in study.trials] == [{"x": 1.0}, None]


def test_optunas_successive_halving_keeps_rungs_under_the_same_keys():
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    study = optuna.create_study(storage=in_memory(), pruner=pruner)
    trial = study.ask()
    for step, value in enumerate((3.0, 2.5, 2.0), start=1):
        trial.report(value, step)
        trial.should_prune()
    assert compat.rung_values(study.trials[0]) == {0: 3.0, 1: 2.5}
    compat.set_rung_value(study, study.trials[0], 2, 1.5)
    assert compat.rung_values(study.trials[0]) == {0: 3.0, 1: 2.5, 2: 1.5}


def test_cmaes_still_warns_of_constraints_in_the_same_words():
    study = optuna.create_study(storage=in_memory(), sampler=optuna.samplers.CmaEsSampler())
    trial = study.ask()
    trial.set_constraint("memory", 1.0)
    with pytest.warns(UserWarning, match=compat.CMAES_WARNING):
        study.tell(trial, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compat.ignore_cmaes_warning()
        trial = study.ask()
        trial.set_constraint("memory", 1.0)
        study.tell(trial, 1.0)
