"""Samplers by name, each in a study whose trials are only told."""

from __future__ import annotations

import math

import pytest
from helpers.sweeps.decider import RATE, complete, learning_rate, make_spec

from sweep.spec.dimension import Range
from sweep.spec.spec import ObjectiveSpec, SamplerSpec
from sweep.storage.open import in_memory
from sweep.study.decider import OptunaDecider
from trial.store.records import Cause, Result


@pytest.mark.parametrize("name", ["tpe", "gp", "random", "qmc", "cmaes"])
def test_a_sampler_finds_the_minimum(name):
    space = {
        "training.learning_rate": (RATE,),
        "lora.lora_dropout": (Range(type="float", low=0.0, high=0.5),),
    }
    spec = make_spec(space=space, sampler=SamplerSpec(name=name, seed=1))
    decider = OptunaDecider(spec, "study", in_memory())
    losses = []
    for _ in range(25):
        proposal = decider.ask()
        losses.append(abs(math.log10(learning_rate(proposal)) + 3))
        decider.tell(proposal.number, complete(losses[-1]))
    assert min(losses) < 0.25
    assert decider.study.best_value == min(losses)


LOSS_AND_SIZE = (ObjectiveSpec(), ObjectiveSpec(metric="trainable_parameters"))


@pytest.mark.parametrize(
    ("name", "objectives", "most"),
    [
        ("tpe", 1, 20),
        ("tpe", 2, 20),
        ("gp", 1, 6),
        ("nsga2", 1, 16),
        ("nsga2", 2, 16),
        ("cmaes", 1, 12),
    ],
)
def test_samplers_avoid_infeasible_configurations(name, objectives, most):
    """The loss falls with the rank, and above rank 32 (a third of the space) there is no memory."""
    ranks = Range(type="int", low=2, high=128, log=True)
    count = 24 if name == "gp" else 60
    options = {"population_size": 10} if name == "nsga2" else {}
    spec = make_spec(
        space={"lora.r": (ranks,), "training.learning_rate": (RATE,)},
        sampler=SamplerSpec(name=name, seed=3, options=options),
        objectives=LOSS_AND_SIZE[:objectives],
    )
    decider, without = OptunaDecider(spec, "study", in_memory()), []
    for _ in range(count):
        proposal = decider.ask()
        if proposal.duplicate_of is not None:
            decider.tell(proposal.number, Result(state="duplicate", duplicate_of=0))
            continue
        rank = proposal.config.lora.r
        loss = 5 - math.log2(rank) / 4 + (math.log10(learning_rate(proposal)) + 3) ** 2
        good = Result(state="complete", eval_loss=loss, trainable_parameters=rank)
        cause = Cause(kind="out_of_memory", message="none left")
        decider.tell(proposal.number, good if rank <= 32 else Result(state="failed", cause=cause))
        without.append(rank > 32)
    assert any(without)
    assert sum(without[len(without) // 2 :]) <= most
    assert all(best.params["lora.r"] <= 32 for best in decider.study.best_trials)
