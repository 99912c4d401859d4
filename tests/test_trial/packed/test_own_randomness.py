"""Base models that draw random numbers of their own in training are not packed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers.training.packed import FLOAT32, deviation, pack
from helpers.training.train import Material
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    FalconConfig,
    OPTConfig,
)

from trial.multi_lora.packable import NotPackableError, refuse_random_passes


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("random"))


@pytest.mark.parametrize(
    ("family", "setting"),
    [(OPTConfig, "dropout"), (BloomConfig, "hidden_dropout"), (FalconConfig, "hidden_dropout")],
)
def test_dropout_that_only_the_models_settings_name_is_not_packed(material, family, setting):
    """OPT, Bloom and Falcon call torch's function, and have no module that shows it."""
    for chance in (0.1, 0.0):
        path = material.root / f"{family.model_type} {chance}"
        settings = {"vocab_size": 320, "hidden_size": 32, "num_attention_heads": 4, setting: chance}
        sizes = {"num_hidden_layers": 2, "ffn_dim": 64, "word_embed_proj_dim": 32}
        model = AutoModelForCausalLM.from_config(family(**settings, **sizes))
        model.save_pretrained(path)
        AutoTokenizer.from_pretrained(material.model).save_pretrained(path)
        config = material.config(
            model={"name_or_path": str(path)}, training={"max_steps": 4, "eval_steps": 4}
        )
        if chance:
            with pytest.raises(NotPackableError):
                pack(material, config, slots=1)
        else:
            alone, _ = material.train(config)
            (folder,), _ = pack(material, config, slots=1)
            assert deviation(alone, folder) < FLOAT32


def test_a_model_that_draws_random_numbers_in_training_is_not_packed():
    class Noisy(torch.nn.Module):
        config = SimpleNamespace(vocab_size=8)
        device = torch.device("cpu")

        def forward(self, input_ids, attention_mask):
            logits = torch.nn.functional.one_hot(input_ids, 8).float()
            noise = 0.1 * torch.randn_like(logits) if self.training else 0.0
            return SimpleNamespace(logits=logits + noise)

    with pytest.raises(NotPackableError, match="random"):
        refuse_random_passes(Noisy(), {})
