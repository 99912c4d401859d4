"""Whole models are saved so that plain transformers loads what was trained."""

import json

import pytest
import torch
from helpers.training.models import make_model, tiny_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig

from trial.model.whole_model import repair_generation, save_model

ROW = torch.arange(2, 14)[None]


def saved(model, folder):
    folder.mkdir()
    save_model(model, folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def names(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def logits(model):
    with torch.no_grad():
        return model.eval()(ROW).logits


@pytest.mark.parametrize(
    ("odd", "kept"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {}),
        ({"temperature": 0.9, "do_sample": True}, {"temperature": 0.9, "do_sample": True}),
        ({"top_k": 7, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"early_stopping": "maybe", "max_new_tokens": 9}, {"max_new_tokens": 9}),
        ({"num_return_sequences": 3}, {}),
        ({"pad_token_id": -1}, {}),
        ({"length_penalty": 0.5, "output_scores": True}, {}),
    ],
)
def test_odd_generation_settings_lose_what_has_no_effect(odd, kept):
    generation = GenerationConfig(bos_token_id=0, eos_token_id=1)
    for name, value in odd.items():
        setattr(generation, name, value)
    changed = repair_generation(generation)
    generation.validate(strict=True)
    assert changed == {name: value for name, value in odd.items() if name not in kept}
    expected = GenerationConfig(bos_token_id=0, eos_token_id=1, **kept)
    assert generation.to_dict() == expected.to_dict()


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_a_model_with_odd_generation_settings_is_saved(tmp_path, file):
    folder = make_model(tmp_path / "base")
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, "temperature": 0.9, "top_p": 0.6}))
    model = AutoModelForCausalLM.from_pretrained(folder)
    before = model.generation_config
    again = saved(model, tmp_path / "out")
    again.generation_config.validate(strict=True)
    assert again.generation_config.eos_token_id == 1
    assert model.generation_config is before
    torch.testing.assert_close(logits(again), logits(model))


def test_a_tied_head_is_written_once(tmp_path):
    model = tiny_model("llama tied")
    again = saved(model, tmp_path / "out")
    assert "lm_head.weight" not in names(tmp_path / "out")
    torch.testing.assert_close(logits(again), logits(model))


def test_a_head_that_shares_the_embeddings_without_being_tied_is_written_too(tmp_path):
    model = tiny_model("llama")
    model.lm_head.weight = model.model.embed_tokens.weight
    again = saved(model, tmp_path / "out")
    torch.testing.assert_close(logits(again), logits(model))


def test_layers_that_share_a_weight_are_both_written(tmp_path):
    model = tiny_model("llama")
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    second.q_proj.weight = first.q_proj.weight
    with pytest.raises(RuntimeError, match="shared tensors"):
        model.save_pretrained(tmp_path / "plain")
    again = saved(model, tmp_path / "out")
    torch.testing.assert_close(logits(again), logits(model))


def test_the_cache_is_on_in_what_is_saved_and_off_in_the_model(tmp_path):
    model = tiny_model("llama")
    model.config.use_cache = False
    assert saved(model, tmp_path / "out").config.use_cache is True
    assert model.config.use_cache is False
