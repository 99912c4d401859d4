"""Advice on sweeps that are valid and may mislead."""

import pytest
from helpers.sweeps.spaces import make_spec

from sweep.planning.lint import advice
from sweep.spec.spec import ObjectiveSpec, PrunerSpec, SamplerSpec, StopSpec

RATE = {"training.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}}


ALPHA = {"lora.lora_alpha": {"expression": "2 * lora.r"}}


LOSS_AND_TIME = (ObjectiveSpec(), ObjectiveSpec(metric="seconds"))


ADVICE = [
    ({"lora.r": [4, 8], **ALPHA, **RATE}, {}, []),
    ({"lora.r": [4, 8], **RATE}, {}, ["effective scale"]),
    ({"lora.r": [4, 8], "lora.lora_alpha": [8, 16], **RATE}, {}, []),
    ({"lora.r": [4, 8], **ALPHA}, {}, ["every value of lora.r is compared at one learning rate"]),
    ({"lora.lora_alpha": [4, 8]}, {}, ["every value of lora.lora_alpha"]),
    ({"zero_stage": [0, 2]}, {}, ["zero_stage moves eval_loss by noise"]),
    ({"zero_stage": [0, 2]}, {"sampler": SamplerSpec(name="grid")}, []),
    ({"training.seed": [0, 2]}, {"objectives": LOSS_AND_TIME}, ["training.seed moves eval_loss"]),
    ({"zero_stage": [0, 2]}, {"objectives": LOSS_AND_TIME[1:]}, []),
    ({"training.learning_rate": {"low": 1e-5, "high": 1e-3}}, {}, ["say `log: true`"]),
    ({"training.warmup_ratio": {"low": 0, "high": 1}}, {}, ["say `type: float`"]),
    (RATE, {"stop": StopSpec(trials=10)}, ["the sampler never learns"]),
    (RATE, {"stop": StopSpec(trials=11)}, []),
    (
        {"lora.bias": ["none", "all"], **RATE},
        {"sampler": SamplerSpec(name="cmaes")},
        ["draws choices at random: lora.bias"],
    ),
    (RATE, {"objectives": (ObjectiveSpec(metric="rouge"),)}, ["`rouge` is none of"]),
    (
        RATE,
        {"base": {"training": {"eval_strategy": "no"}}, "pruner": PrunerSpec(name="median")},
        ["the pruner sees nothing"],
    ),
]


@pytest.mark.parametrize(("space", "fields", "messages"), ADVICE)
def test_advice(space, fields, messages):
    said = advice(make_spec(space, **fields))
    assert len(said) == len(messages)
    assert all(message in line for message, line in zip(messages, said, strict=True))
