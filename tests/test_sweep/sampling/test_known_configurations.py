"""Grids and small spaces: every configuration is trained once."""

from __future__ import annotations

from helpers.sweeps.decider import complete, make_spec

from sweep.spec.dimension import Choices, Range
from sweep.spec.spec import SamplerSpec
from sweep.storage.open import in_memory
from sweep.study.decider import OptunaDecider
from trial.store.records import Result


def test_a_grid_is_walked_once_in_file_order_and_goes_on_where_it_was():
    space = {"lora.r": (Choices(choices=(2, 4)),), "zero_stage": (Choices(choices=(0, 1, 2)),)}
    spec = make_spec(space=space, sampler=SamplerSpec(name="grid"))
    storage = in_memory()
    first = OptunaDecider(spec, "study", storage)
    seen = []
    for _ in range(4):
        proposal = first.ask()
        seen.append((proposal.config.lora.r, proposal.config.zero_stage))
        first.tell(proposal.number, complete(1.0))
    second = OptunaDecider(spec, "study", storage)
    while (proposal := second.ask()) is not None:
        seen.append((proposal.config.lora.r, proposal.config.zero_stage))
        second.tell(proposal.number, complete(1.0))
    assert seen == [(2, 0), (2, 1), (2, 2), (4, 0), (4, 1), (4, 2)]


def test_a_small_space_is_exhausted_without_training_anything_twice():
    space = {
        "lora.r": (Choices(choices=(2, 4, 8)),),
        "lora.use_rslora": (Choices(choices=(False, True)),),
    }
    decider = OptunaDecider(make_spec(space=space), "study", in_memory())
    trained, repeats = [], 0
    while (proposal := decider.ask()) is not None:
        if proposal.duplicate_of is None:
            trained.append((proposal.config.lora.r, proposal.config.lora.use_rslora))
            decider.tell(proposal.number, complete(float(proposal.config.lora.r)))
        else:
            repeats += 1
            result = Result(state="duplicate", duplicate_of=proposal.duplicate_of)
            decider.tell(proposal.number, result)
    assert len(trained) == len(set(trained)) == 6
    states = [trial.state.name for trial in decider.study.trials]
    assert states.count("COMPLETE") == 6
    assert states.count("FAIL") == repeats


def test_two_names_for_one_configuration_are_a_duplicate():
    space = {
        "lora.r": (Choices(choices=(4,)),),
        "lora.lora_alpha": (Choices(choices=(8, 8.0 + 8)),),
    }
    variables = {"spare": (Range(type="float", low=0.0, high=1.0),)}
    spec = make_spec(space=space, variables=variables)
    decider = OptunaDecider(spec, "study", in_memory())
    proposals = [decider.ask() for _ in range(4)]
    originals = [p for p in proposals if p.duplicate_of is None]
    assert len(originals) == 2
    assert {p.duplicate_of for p in proposals if p.duplicate_of is not None} <= {
        p.number for p in originals
    }


def test_a_preview_shows_only_what_would_be_trained():
    space = {"lora.r": (Choices(choices=(2, 4, 8)),)}
    shown = OptunaDecider(make_spec(space=space), "study", in_memory()).preview(10)
    assert sorted(config.lora.r for config in shown) == [2, 4, 8]
