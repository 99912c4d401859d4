"""Pruners decide on a trial as if only trials that were measured on the same things existed."""

from __future__ import annotations

import math

import pytest
from helpers.sweeps.decider import make_spec

from sweep.driver.interfaces import Proposal
from sweep.sampling.measured_alike import MEASURED_ON
from sweep.spec.spec import ObjectiveSpec, PrunerSpec
from sweep.storage.open import in_memory
from sweep.study.decider import OptunaDecider
from trial.store.records import DataSummary, Evaluation, Result

STEPS = 9
PRUNERS = [
    ("median", {"n_startup_trials": 2}),
    ("percentile", {"percentile": 40.0, "n_startup_trials": 2}),
    ("successive_halving", {"reduction_factor": 2}),
    ("successive_halving", {"reduction_factor": 2, "min_resource": "auto"}),
    ("hyperband", {"reduction_factor": 2}),
    ("patient", {"patience": 0, "wrapped": {"name": "median", "options": {"n_startup_trials": 1}}}),
    ("wilcoxon", {"p_threshold": 0.3}),
]


def loss_at(number: int, step: int) -> float:
    """Curves that cross; those of odd trials lie far below."""
    shift = -9.0 if number % 2 else 0.0
    return shift + math.sin(7.0 * number) + math.cos(3.0 * number) * step / STEPS


def evaluation(number: int, step: int, known: bool = True) -> Evaluation:
    on = f"set {number % 2}" if known else ""
    return Evaluation(step=step, eval_loss=loss_at(number, step), eval_hash=on)


def run_trial(decider: OptunaDecider, proposal: Proposal, known: bool = True) -> int | None:
    """The step at which a trial is pruned; None when it ends complete."""
    number = proposal.number
    for step in range(1, STEPS + 1):
        if decider.report(number, evaluation(number, step, known)):
            decider.tell(number, Result(state="pruned", steps=step))
            return step
    data = DataSummary(train_rows=1, eval_rows=1, eval_hash=f"set {number % 2}" if known else "")
    result = Result(state="complete", eval_loss=loss_at(number, STEPS), steps=STEPS, data=data)
    decider.tell(number, result)
    return None


def decisions(name: str, options: dict, parities: tuple[int, ...], known: bool) -> dict:
    """By number: at which step trials are pruned; those of other parities fail unseen."""
    base = {"training": {"eval_steps": 1, "max_steps": STEPS}}
    spec = make_spec(base=base, pruner=PrunerSpec(name=name, options=options))
    storage, found = in_memory(), {}
    decider = OptunaDecider(spec, "study", storage)
    for number in range(40):
        if number == 25:
            decider = OptunaDecider(spec, "study", storage)  # As after a resume.
        proposal = decider.ask()
        assert proposal.number == number
        if number % 2 in parities:
            found[number] = run_trial(decider, proposal, known)
        else:
            decider.tell(number, Result(state="failed"))
    return found


@pytest.mark.parametrize(("name", "options"), PRUNERS)
def test_a_group_is_pruned_as_if_it_were_alone(name, options):
    both = decisions(name, options, (0, 1), True)
    alone = [decisions(name, options, (parity,), True) for parity in (0, 1)]
    assert both == {**alone[0], **alone[1]}
    assert any(both.values())
    # The curves are such that comparing them all decides otherwise.
    assert decisions(name, options, (0, 1), False) != both


def test_trials_in_flight_at_once_are_compared_with_their_own_kind():
    base = {"training": {"eval_steps": 1, "max_steps": STEPS}}
    options = {"reduction_factor": 2, "min_resource": 1}
    pruner = PrunerSpec(name="successive_halving", options=options)
    decider = OptunaDecider(make_spec(base=base, pruner=pruner), "study", in_memory())
    numbers = [decider.ask().number for _ in range(4)]
    losses = {0: 5.0, 1: 1.0, 2: 6.0, 3: 2.0}
    pruned = [
        decider.report(n, Evaluation(step=1, eval_loss=losses[n], eval_hash=f"set {n % 2}"))
        for n in numbers
    ]
    assert pruned == [False, False, True, True]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("eval_loss", "tokens"), ("eval_loss_per_byte", "text"), ("seconds", None)],
)
def test_what_is_noted_is_what_the_objective_depends_on(metric, expected):
    goal = ObjectiveSpec(metric=metric)
    decider = OptunaDecider(make_spec(objectives=(goal,)), "study", in_memory())
    for reported in (True, False):
        number = decider.ask().number
        on = {"eval_hash": "tokens", "eval_text_hash": "text"}
        if reported:
            at = Evaluation(step=1, eval_loss=1.0, eval_loss_per_byte=0.5, **on)
            decider.report(number, at)
        data = DataSummary(train_rows=1, eval_rows=1, eval_tokens=2, eval_bytes=4, **on)
        result = Result(state="complete", eval_loss=1.0, data=data, data_hash="all")
        decider.tell(number, result)
        assert decider.study.trials[number].user_attrs.get(MEASURED_ON) == expected
