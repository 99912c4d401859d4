"""Pruners by name: their rungs, and at which step they stop a trial."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from helpers.sweeps.decider import make_spec

from sweep.sampling.pruners import make_pruner
from sweep.spec.rungs import evaluated_at_rungs, rungs
from sweep.spec.spec import PrunerSpec, SamplerSpec
from sweep.storage.open import in_memory
from sweep.study.decider import OptunaDecider
from trial.store.records import Evaluation, Result


@pytest.mark.parametrize(
    ("training", "given", "rungs"),
    [
        ({"max_steps": 60, "eval_steps": 15}, {}, (15, 60)),
        ({"max_steps": 60, "eval_steps": 0.1}, {}, (6, 60)),
        ({"max_steps": 60, "eval_steps": 15}, {"min_resource": 30, "max_resource": 90}, (30, 90)),
        ({"num_train_epochs": 2, "eval_steps": 5}, {}, (5, "auto")),
        ({"max_steps": 10, "eval_steps": 20}, {}, (20, "auto")),
    ],
)
def test_rungs_lie_where_trials_are_evaluated(training, given, rungs):
    pruner = PrunerSpec(name="hyperband", options={"reduction_factor": 3, **given})
    made = make_pruner(make_spec(base={"training": training}, pruner=pruner))
    assert (made._min_resource, made._max_resource) == rungs


@pytest.mark.parametrize(
    ("training", "given", "first"),
    [
        ({"max_steps": 60, "eval_steps": 15}, {}, 15),
        ({"max_steps": 64, "eval_steps": 4}, {}, 8),
        ({"max_steps": 100, "eval_steps": 5}, {}, 15),
        ({"max_steps": 1000, "eval_steps": 0.01}, {}, 130),
        ({"max_steps": 64, "eval_steps": 4}, {"min_resource": 4}, 4),
        ({"num_train_epochs": 2, "eval_steps": 5}, {}, 5),
        ({"max_steps": 10, "eval_steps": 20}, {}, 20),
    ],
)
def test_halving_begins_at_the_first_evaluation_after_an_eighth(training, given, first):
    halving = PrunerSpec(name="successive_halving", options=given)
    made = make_pruner(make_spec(base={"training": training}, pruner=halving))
    assert made.first == first


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("successive_halving", {"reduction_factor": 2}, [8, 16, 32]),
        ("successive_halving", {}, [8, 32]),
        ("successive_halving", {"reduction_factor": 3, "min_resource": 4}, [4, 12, 36]),
        ("successive_halving", {"reduction_factor": 2, "min_early_stopping_rate": 2}, [32]),
        ("hyperband", {}, [4, 12, 36]),
        ("successive_halving", {"min_resource": "auto"}, None),
        ("median", {}, None),
    ],
)
def test_a_trial_evaluated_at_its_rungs_alone_is_pruned_as_one_evaluated_always(
    name, given, expected
):
    training = {"max_steps": 64, "eval_steps": 4}
    pruner = PrunerSpec(name=name, options=given, evaluate="rungs")
    spec = make_spec(base={"training": training}, pruner=pruner, sampler=SamplerSpec(seed=1))
    assert rungs(spec) == expected
    thin = evaluated_at_rungs(spec)
    assert (thin.base.get("evaluation") or {}).get("steps") == expected
    if expected is None:
        return
    assert rungs(thin) == expected
    ends = []
    for shown, one in ((range(4, 65, 4), spec), ((*expected, 64), thin)):
        decider = OptunaDecider(one, "study", in_memory())
        ends.append(pruned_at(decider, shown))
    assert ends[0] == ends[1]
    assert set(ends[0]) > {64}


def pruned_at(decider: OptunaDecider, steps: Iterable[int]) -> list[int]:
    """The last step of thirty trials whose curves cross."""
    found = []
    for number in range(30):
        proposal, last = decider.ask(), 0
        for step in steps:
            last = step
            loss = math.sin(7.0 * number) + math.cos(number) * step / 64
            if decider.report(proposal.number, Evaluation(step=step, eval_loss=loss)):
                break
        found.append(last)
    return found


def test_hyperband_prunes_before_any_trial_is_complete():
    """It is told how long trials are, and need not wait for one to show."""
    base = {"training": {"max_steps": 27, "eval_steps": 1}}
    pruner = PrunerSpec(name="hyperband", options={"reduction_factor": 3})
    decider = OptunaDecider(make_spec(base=base, pruner=pruner), "study", in_memory())
    pruned = 0
    for number in range(12):
        proposal = decider.ask()
        steps = (Evaluation(step=step, eval_loss=float(number)) for step in range(1, 27))
        pruned += any(decider.report(proposal.number, evaluation) for evaluation in steps)
    assert pruned > 0


MEDIAN = {"name": "median", "options": {"n_startup_trials": 2}}


PRUNERS = [
    # pruner, its keywords, at which step the worst of five curves is stopped
    ("none", {}, None),
    ("median", {"n_startup_trials": 2}, 1),
    ("median", {"n_startup_trials": 2, "n_warmup_steps": 2}, 2),
    ("percentile", {"percentile": 50.0, "n_startup_trials": 2}, 1),
    ("successive_halving", {"reduction_factor": 2}, 1),
    ("successive_halving", {"reduction_factor": 2, "min_resource": 2}, 2),
    ("threshold", {"upper": 5.0}, 1),
    ("patient", {"patience": 1, "wrapped": MEDIAN}, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "expected"), PRUNERS)
def test_pruners_stop_the_worst_curve_where_they_say(name, options, expected):
    base = {"training": {"eval_steps": 1, "max_steps": 8}}
    spec = make_spec(base=base, pruner=PrunerSpec(name=name, options=options))
    decider = OptunaDecider(spec, "study", in_memory())
    stopped = {}
    for level in (1.0, 2.0, 1.5, 1.2, 9.0):
        proposal = decider.ask()
        for step in range(1, 5):
            # Every curve falls: patience has nothing to lose.
            if decider.report(proposal.number, Evaluation(step=step, eval_loss=level - step / 100)):
                stopped[level] = step
                break
        state = "pruned" if level in stopped else "complete"
        decider.tell(proposal.number, Result(state=state, eval_loss=level, steps=4))
    assert stopped.get(9.0) == expected


def test_nothing_is_pruned_on_the_evaluation_before_the_first_step():
    spec = make_spec(pruner=PrunerSpec(name="threshold", options={"upper": 1.0}))
    decider = OptunaDecider(spec, "study", in_memory())
    proposal = decider.ask()
    assert not decider.report(proposal.number, Evaluation(step=0, eval_loss=9.0))
    assert decider.report(proposal.number, Evaluation(step=1, eval_loss=9.0))
