"""Eval loss per byte of models that know nothing: their nats are those of a uniform guess."""

import math

import pytest
import torch
from helpers.training.letters import letter_tokenizer
from helpers.training.models import make_tokenizer
from helpers.training.packed import pack
from helpers.training.train import Material
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from trial.data.prepare import prepare
from trial.data.split import read_split
from trial.store.metrics import of_evaluation, of_result

TOKENIZERS = {"letters": letter_tokenizer, "pieces": make_tokenizer}


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("bytes"))


def guessing_model(folder, tokenizer):
    """A Llama whose logits are all zero, whatever its adapter does: each token costs ln(V)."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_nats_of_a_uniform_guess_per_byte_of_the_answers(material, kind, packed):
    path = guessing_model(material.root / kind, TOKENIZERS[kind]())
    tokenizer = AutoTokenizer.from_pretrained(path)
    config = material.config(
        model={"name_or_path": str(path)}, data={"max_length": 256}, training={"max_steps": 5}
    )
    if packed:
        [folder], [result] = pack(material, config, slots=2)
        assert folder.read_attempts()[0].slots == 2
    else:
        folder, result = material.train(config)
    answers = [row.completion for row in read_split(config.data).eval]
    tokens = sum(int((r["labels"] != -100).sum()) for r in prepare(config.data, tokenizer).eval)
    if kind == "letters":
        # One token a character, and eos.
        assert tokens == sum(len(answer) + 1 for answer in answers)
    expected = tokens * math.log(len(tokenizer)) / sum(len(a.encode()) for a in answers)
    assert of_result(result, "eval_loss_per_byte") == pytest.approx(expected, rel=1e-5)
    [evaluation] = folder.read_evaluations()
    assert of_evaluation(evaluation, "eval_loss_per_byte") == pytest.approx(expected, rel=1e-5)
    assert of_evaluation(evaluation, "seconds") is None
