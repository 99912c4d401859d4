"""`confirm`: which configurations are repeated over seeds once the search is over."""

from __future__ import annotations

import itertools
import random

import pytest
from helpers.sweeps.decider import RATE, complete, make_spec

from sweep.spec.dimension import Choices
from sweep.spec.spec import ConfirmSpec, ObjectiveSpec, PrunerSpec, SamplerSpec, StopSpec, SweepSpec
from sweep.storage.open import in_memory, open_storage
from sweep.study.decider import OptunaDecider
from trial.store import metrics
from trial.store.folders import StudyFolder
from trial.store.records import DataSummary, Evaluation, Result, Seconds

RANKS = (Choices(choices=(2, 4, 8)),)


def make_decider(**changes) -> OptunaDecider:
    given = {
        "name": "study",
        "space": {"lora.r": RANKS, "training.learning_rate": (RATE,)},
        "stop": StopSpec(trials=20),
        "sampler": SamplerSpec(name="random"),
        **changes,
    }
    return OptunaDecider(SweepSpec(**given), "study", in_memory())


def searched(decider: OptunaDecider, points) -> None:
    """A search that tried these ranks, rates and results, in this order."""
    for rank, rate, result in points:
        decider.study.enqueue_trial({"lora.r": rank, "training.learning_rate": rate})
        decider.tell(decider.ask().number, result)


def loss(value: float) -> Result:
    return Result(state="complete", eval_loss=value, steps=10)


def test_the_best_of_each_value_is_repeated():
    decider = make_decider(confirm=ConfirmSpec(top=1, seeds=3, per="lora.r"))
    tried = [(2, 1e-3, 3.0), (2, 1e-2, 2.9), (4, 1e-3, 2.0), (4, 1e-2, 2.1), (8, 1e-4, 2.5)]
    searched(decider, [(rank, rate, loss(value)) for rank, rate, value in tried])
    repeats = list(decider.confirmations())
    seen = [(p.config.lora.r, p.config.training["learning_rate"], p.config.training["seed"])
            for p in repeats]  # fmt: skip
    assert seen == [(2, 1e-2, 43), (2, 1e-2, 44), (4, 1e-3, 43), (4, 1e-3, 44), (8, 1e-4, 43),
                    (8, 1e-4, 44)]  # fmt: skip
    for proposal in repeats:
        decider.tell(proposal.number, loss(0.1))
    assert list(decider.confirmations()) == []


def test_several_objectives_repeat_the_front_from_end_to_end():
    goals = (ObjectiveSpec(), ObjectiveSpec(metric="seconds"))
    decider = make_decider(objectives=goals, confirm=ConfirmSpec(top=2, seeds=2))
    tried = [(2.0, 50.0), (2.1, 30.0), (2.2, 40.0), (3.0, 10.0), (2.05, 45.0)]
    results = [
        Result(state="complete", eval_loss=value, seconds=Seconds(train=seconds))
        for value, seconds in tried
    ]
    searched(decider, [(2, 10.0 ** -(2 + n / 10), result) for n, result in enumerate(results)])
    assert [p.config.origin.confirms for p in decider.confirmations()] == [0, 3]


def test_the_plan_counts_the_repeats_of_each_value():
    spec = make_decider(confirm=ConfirmSpec(top=2, seeds=3, per="lora.r")).spec
    assert spec.confirmed_count() == 6
    assert make_decider(confirm=ConfirmSpec(top=2, seeds=3)).spec.confirmed_count() == 2
    assert make_decider().spec.confirmed_count() == 0


@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_front_is_what_nothing_beats(width):
    draw = random.Random(width)
    for _ in range(100):
        points = [[float(draw.randint(0, 4)) for _ in range(width)] for _ in range(12)]

        def beaten(point, points=points):
            return any(all(map(float.__le__, o, point)) and o != point for o in points)

        assert sorted(metrics.pareto_front(points)) == [
            i for i, p in enumerate(points) if not beaten(p)
        ]


def test_the_best_come_front_by_front_and_never_twice():
    points = list(itertools.product((1.0, 2.0, 3.0), repeat=2))
    chosen = metrics.best_of(points, 4)
    assert chosen[:3] == [0, 1, 3]
    assert len(chosen) == 4
    assert sorted(metrics.best_of(points, 99)) == list(range(9))
    assert metrics.best_of([[3.0], [1.0], [2.0]], 2) == [1, 2]


def test_the_best_are_repeated_over_the_same_seeds_and_never_pruned(tmp_path):
    space = {"lora.r": (Choices(choices=(2, 4, 8)),)}
    pruner = PrunerSpec(name="threshold", options={"upper": 0.5})
    spec = make_spec(
        space=space,
        base={"training": {"seed": 7}},
        sampler=SamplerSpec(name="grid"),
        pruner=pruner,
        confirm=ConfirmSpec(top=2, seeds=3),
    )
    folder = StudyFolder(tmp_path / "study")
    decider = OptunaDecider(spec, "study", open_storage(folder))
    for loss in (3.0, 1.0, 2.0):
        decider.tell(decider.ask().number, complete(loss))
    repeats = list(decider.confirmations())
    seen = [(p.config.lora.r, p.config.training["seed"], p.config.origin.confirms) for p in repeats]
    assert seen == [(4, 8, 1), (4, 9, 1), (8, 8, 2), (8, 9, 2)]
    assert not decider.report(repeats[0].number, Evaluation(step=1, eval_loss=9.0))
    decider.tell(repeats[0].number, complete(0.1))
    again = OptunaDecider(spec, "study", open_storage(folder))
    assert [p.config.training["seed"] for p in again.pending()] == [9, 8, 9]
    assert list(again.confirmations()) == []


def test_the_best_of_those_measured_alike_are_repeated():
    decider = make_decider(confirm=ConfirmSpec(top=1, seeds=2))

    def measured(value: float, on: str) -> Result:
        data = DataSummary(train_rows=1, eval_rows=1, eval_hash=on)
        return Result(state="complete", eval_loss=value, steps=10, data=data)

    tried = [(1.0, "small"), (2.5, "large"), (2.0, "large"), (3.0, "large"), (1.5, "small")]
    searched(decider, [(4, 10.0**-n, measured(*each)) for n, each in enumerate(tried, 1)])
    assert [p.config.origin.confirms for p in decider.confirmations()] == [2]
