"""Advice on sweeps that are valid and may mislead."""

import pytest
from helpers.sweeps.spaces import make_spec

from sweep.planning.lint import advice
from sweep.spec.spec import ObjectiveSpec, PrunerSpec, SamplerSpec, StopSpec

RATE = {"training.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}}


ALPHA = {"lora.lora_alpha": {"expression": "2 * lora.r"}}


LOSS_AND_TIME = (ObjectiveSpec(), ObjectiveSpec(metric="seconds"))


OWN_SET = {"data": {"eval_path": "held_out.jsonl"}}
PER_BYTE = {"objectives": (ObjectiveSpec(metric="eval_loss_per_byte"),)}


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
    ({"data.split_seed": [0, 1], **RATE}, {}, ["data.split_seed changes the rows that"]),
    ({"data.split_seed": [0, 1], **RATE}, {"base": OWN_SET}, []),
    ({"data.path": ["a", "b"], **RATE}, {}, ["give `data.eval_path` a held-out file"]),
    ({"data.path": ["a", "b"], **RATE}, {"base": OWN_SET}, []),
    ({"data.eval_path": ["a", "b"], **RATE}, {"base": OWN_SET}, ["leave it out of the search"]),
    ({"data.split_seed": [0, 1], **RATE}, PER_BYTE, ["data.split_seed changes the rows that"]),
    ({"data.split_seed": [0, 1], **RATE}, {"objectives": LOSS_AND_TIME[1:]}, []),
    ({"data.max_length": [64, 99], **RATE}, {}, ["say `objective: eval_loss_per_byte`"]),
    ({"data.max_length": [64, 99], **RATE}, PER_BYTE, ["only lengths that cut no eval row"]),
    ({"model.name_or_path": ["a", "b"], **RATE}, {}, ["where tokenizers or their templates"]),
    ({"model.name_or_path": ["a", "b"], **RATE}, PER_BYTE, []),
    ({"data.prompt_format": ["phi", "plain"], **RATE}, {}, ["data.prompt_format changes"]),
    ({"data.max_train_samples": [64, 99], **RATE}, {}, []),
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
