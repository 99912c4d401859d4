"""A spec as JSON: what is stored with a study."""

import json

from helpers.sweeps.sweep_files import spec_of

from sweep.spec.spec import SweepSpec


def test_content_survives_json_and_means_the_same(tmp_path):
    content = {
        "variables": {"ratio": [0.5, 1, 2]},
        "space": {
            "lora": {"r": [4, 8], "lora_alpha": {"expression": "ratio * lora.r"}},
            "lora.target_modules": ["all-linear", ["q_proj", "v_proj"]],
            "zero_stage": [None, 2],
            "training.learning_rate": {"low": 1e-5, "high": 1, "log": True},
            "lora.lora_dropout": {"low": 0.0, "high": 0.5, "when": {"zero_stage": None}},
        },
        "enqueue": [{"lora": {"r": 4}, "ratio": 1}],
    }
    spec = spec_of(tmp_path, **content)
    again = SweepSpec.from_content(json.loads(json.dumps(spec.content())))
    assert again == spec
    assert again.content() == spec.content()
    assert again.space["training.learning_rate"][0].high == 1.0


def test_files_that_mean_the_same_have_the_same_content(tmp_path):
    short = {"sampler": "grid", "space": {"lora": {"r": [4, 8], "bias": "none"}}}
    long = {
        "sampler": {"name": "grid", "seed": 0},
        "objective": {"metric": "eval_loss", "direction": "minimize"},
        "pruner": {"name": "none"},
        "space": {"lora.r": {"choices": [4, 8]}, "lora.bias": {"value": "none"}},
    }
    assert spec_of(tmp_path, **short).content() == spec_of(tmp_path, **long).content()
    other = {"sampler": "grid", "space": {"lora": {"r": [4, 16], "bias": "none"}}}
    assert spec_of(tmp_path, **other).content() != spec_of(tmp_path, **short).content()
