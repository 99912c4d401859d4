"""Sweep specs and results for tests of the decider."""

from __future__ import annotations

from sweep.driver.interfaces import Proposal
from sweep.spec.dimension import Choices, Range
from sweep.spec.spec import StopSpec, SweepSpec
from trial.store.records import Result

RATE = Range(type="float", low=1e-5, high=1e-1, log=True)


def make_spec(**changes) -> SweepSpec:
    """A sweep over learning rate and rank, ten trials."""
    given = {
        "name": "study",
        "space": {"training.learning_rate": (RATE,), "lora.r": (Choices(choices=(2, 4, 8)),)},
        "stop": StopSpec(trials=10),
        **changes,
    }
    return SweepSpec(**given)


def learning_rate(proposal: Proposal) -> float:
    """The learning rate that a proposal trains with."""
    return proposal.config.training["learning_rate"]


def complete(eval_loss: float) -> Result:
    """The result of a complete trial."""
    return Result(state="complete", eval_loss=eval_loss, steps=10)
