"""LoRA targets and parameter counts from shapes: against PEFT."""

import pytest
from helpers.training.models import ARCHITECTURES, tiny_model
from peft import get_peft_model

from trial.config.trial_config import parse
from trial.model.known_shapes import known_settings, shapes_of
from trial.model.load import lora_config
from trial.model.lora_targets import adapter_parameters, backward_fraction, saved_parameters

TARGETS = [
    {},
    {"target_modules": ["q_proj", "v_proj"], "r": 16},
    {"target_modules": r".*\.(up|down)_proj"},
    {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    {"use_dora": True},
    {"bias": "all"},
    {"bias": "lora_only", "target_modules": ["k_proj"]},
    {"modules_to_save": ["lm_head"]},
    {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 3}},
    {"exclude_modules": ["o_proj"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [1, 2]},
    {"lora_bias": True, "target_modules": ["q_proj", "o_proj"]},
    {"r": 0},
]


def trial(**sections):
    return parse({"device": "hpu", **sections})


@pytest.mark.parametrize("lora", TARGETS)
def test_an_adapter_has_as_many_parameters_as_pefts(lora):
    config = trial(lora=lora)
    model = tiny_model("llama with biases")
    shapes = shapes_of(ARCHITECTURES["llama with biases"].to_dict())
    lora_count = adapter_parameters(shapes, config.lora)
    saved_count = saved_parameters(shapes, config.lora)
    if not config.lora.r:
        assert (lora_count, saved_count) == (0, 0)
        return
    model = get_peft_model(model, lora_config(config.lora))
    assert lora_count + saved_count == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_gpt2s_weights_are_transposed():
    config = trial(lora={"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True})
    model = get_peft_model(tiny_model("gpt2"), lora_config(config.lora))
    shapes = shapes_of(ARCHITECTURES["gpt2"].to_dict())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter_parameters(shapes, config.lora) == trained


def test_blocks_before_the_first_adapter_keep_nothing():
    lora = trial(lora={"target_modules": ["q_proj"], "layers_to_transform": [24]}).lora
    assert backward_fraction(shapes_of(known_settings("meta-llama/Llama-2-7b-hf")), lora) == 0.25
