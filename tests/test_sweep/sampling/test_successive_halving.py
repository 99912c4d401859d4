"""Successive halving from memory decides as Optuna's own, and reads the study once."""

from __future__ import annotations

import random

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.pruners import SuccessiveHalvingPruner

from sweep.sampling.successive_halving import CachedSuccessiveHalvingPruner

optuna.logging.set_verbosity(optuna.logging.ERROR)


def decisions(pruners: list, direction: str, curves: list[list[float]]) -> list[int | None]:
    """At which report each curve is stopped; the study goes on with the next pruner half way."""
    study = optuna.create_study(direction=direction)
    found: list[int | None] = []
    open_trials = []
    for number, curve in enumerate(curves):
        study.pruner = pruners[number * len(pruners) // len(curves)]
        trial = study.ask()
        found.append(None)
        for step, value in enumerate(curve, start=1):
            trial.report(value, step)
            if trial.should_prune():
                found[number] = step
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            open_trials.append((trial, curve[-1]))
        # Some stay in flight while the next ones are judged.
        if len(open_trials) > 2:
            ended, value = open_trials.pop(0)
            study.tell(ended, value)
    return found


VALUES = st.floats(-3, 3).map(lambda value: round(value, 1)) | st.just(float("nan"))


@settings(deadline=None, max_examples=60)
@given(
    options=st.fixed_dictionaries(
        {
            "min_resource": st.integers(1, 3),
            "reduction_factor": st.integers(2, 4),
            "min_early_stopping_rate": st.integers(0, 1),
            "bootstrap_count": st.integers(0, 3),
        }
    ),
    direction=st.sampled_from(["minimize", "maximize"]),
    curves=st.lists(st.lists(VALUES, min_size=9, max_size=9), min_size=4, max_size=14),
    resumed=st.booleans(),
)
def test_it_decides_as_optunas_own(options, direction, curves, resumed):
    curves = [[*curve[:-1], 0.0] for curve in curves]
    theirs = SuccessiveHalvingPruner(**options)
    ours = [
        CachedSuccessiveHalvingPruner(**options),
        CachedSuccessiveHalvingPruner(**options) if resumed else theirs,
    ]
    assert decisions(ours, direction, curves) == decisions([theirs], direction, curves)


def test_the_study_is_read_once_however_many_trials_it_has(monkeypatch):
    reads = []
    whole = optuna.Study.get_trials

    def counted(study, **given):
        reads.append(study)
        return whole(study, **given)

    monkeypatch.setattr(optuna.Study, "get_trials", counted)
    drawn = random.Random(0)
    curves = [[drawn.random() for _ in range(8)] for _ in range(40)]
    decisions([CachedSuccessiveHalvingPruner(reduction_factor=2)], "minimize", curves)
    assert len(reads) == 1
    reads.clear()
    decisions([SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)], "minimize", curves)
    assert len(reads) > 40


@pytest.mark.parametrize("wrong", [{"min_resource": 0}, {"reduction_factor": 1}])
def test_what_optuna_refuses_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CachedSuccessiveHalvingPruner(**wrong)
