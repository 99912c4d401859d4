"""Attention without masks, and the private names of transformers that it depends on."""

from __future__ import annotations

import pytest
import torch
import transformers
from helpers.training.models import make_model
from transformers import AutoModelForCausalLM

from trial.multi_lora.causal_attention import NAME, maskless_attention, register_maskless_sdpa


@pytest.mark.parametrize(
    ("family", "change", "expected"),
    [
        ("llama", {}, True),
        ("gpt2", {}, True),
        ("qwen2", {"sliding_window": 8, "layer_types": ["sliding_attention"] * 2}, False),
        ("llama", {"_attn_implementation": "eager"}, False),
    ],
)
def test_attention_without_a_mask_where_the_result_is_the_same(tmp_path, family, change, expected):
    base = AutoModelForCausalLM.from_pretrained(make_model(tmp_path, family))
    for name, value in change.items():
        setattr(base.config, name, value)
    ids = torch.randint(3, 60, (2, 16), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        logits = base(**inputs).logits
        with maskless_attention(base) as same:
            assert same is expected
            assert torch.equal(base(**inputs).logits, logits)
        assert torch.equal(base(**inputs).logits, logits)


def test_transformers_has_the_names_that_this_depends_on(tmp_path):
    """Without them packed jobs would quietly do without CUDA graphs."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    base, version = AutoModelForCausalLM.from_pretrained(make_model(tmp_path)), transformers
    register_maskless_sdpa()
    lost = [
        name
        for name, there in {
            "AttentionInterface.register": NAME in AttentionInterface().valid_keys(),
            "an attention function without masks": NAME not in ALL_MASK_ATTENTION_FUNCTIONS,
            "config._attn_implementation": base.config._attn_implementation == "sdpa",
            "model._supports_attention_backend": base._supports_attention_backend is True,
        }.items()
        if not there
    ]
    assert not lost, f"transformers {version.__version__} has lost {', '.join(lost)}"
