"""Every trained weight is float32 and moves, over a bfloat16 base too."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from helpers.training.models import make_model
from helpers.training.train import Material
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from trial.config.trial_config import problems_of
from trial.model.float32_weights import hold_in_float32
from trial.training import attempt

RATE = 2e-4
"""Half the distance between bfloat16's numbers near 1.0 is ten times this."""


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("float32"))


def eval_loss(model: Any, data: Any) -> float:
    """Cross-entropy over labelled tokens, in nats, row by row."""
    model.eval()
    total, count = 0.0, 0
    for row in data:
        labels = row["labels"][1:]
        with torch.no_grad():
            ids, mask = row["input_ids"][None], row["attention_mask"][None]
            logits = model(input_ids=ids, attention_mask=mask).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels != -100).sum())
    return total / count


def trained(material: Material, monkeypatch, **sections):
    """A trial's configuration, folder, result, and its trained weights before and after."""
    before: dict[str, torch.Tensor] = {}
    attach = attempt.attach_adapter

    def remember(*args: Any, **named: Any) -> Any:
        model = attach(*args, **named)
        before.update(
            {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        )
        models.append(model)
        return model

    models: list[Any] = []
    monkeypatch.setattr(attempt, "attach_adapter", remember)
    training = {"max_steps": 5, "eval_steps": 5, "learning_rate": RATE, "warmup_ratio": 0.0}
    config = material.config(training=training, keep="last", **sections)
    folder, result = material.train(config)
    assert result.state == "complete", result.cause
    after = {name: p.detach() for name, p in models[0].named_parameters() if p.requires_grad}
    return config, folder, result, before, after


ADAPTERS: list[dict[str, Any]] = [
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["embed_tokens", "norm"]},
    {"modules_to_save": ["mlp"], "target_modules": ["q_proj"]},
    {"trainable_token_indices": [262, 263]},
    {"use_dora": True},
    {"bias": "all"},
]


@pytest.mark.parametrize("lora", ADAPTERS, ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_what_is_trained_beside_an_adapter(material, monkeypatch, lora, family):
    path = material.root / family
    if not path.exists():
        make_model(path, family)
    model = {"name_or_path": str(path), "dtype": "bfloat16"}
    config, folder, result, before, after = trained(material, monkeypatch, model=model, lora=lora)
    assert len(before) > 1
    # Rows of unused tokens and the queries' and keys' shares of a bias need not move everywhere.
    for name, weight in after.items():
        assert weight.dtype == torch.float32, name
        assert not torch.equal(weight, before[name]), name
    saved = load_file(folder.adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    base = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.bfloat16)
    reloaded = PeftModel.from_pretrained(base, folder.adapter)
    data = material.process_cache().prepared(config, family).eval
    assert eval_loss(reloaded, data) == pytest.approx(result.eval_loss, abs=2e-3)


def test_a_whole_bfloat16_model(material, monkeypatch):
    """Saved in bfloat16, as it is computed: plain transformers reads the loss of the table."""
    sections = {"model": {"dtype": "bfloat16"}, "lora": {"r": 0}}
    config, folder, result, before, after = trained(material, monkeypatch, **sections)
    for name, weight in after.items():
        assert weight.dtype == torch.float32, name
        assert not torch.equal(weight, before[name]), name
    assert json.loads((folder.model / "config.json").read_text())["torch_dtype"] == "bfloat16"
    saved = load_file(folder.model / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    reloaded = AutoModelForCausalLM.from_pretrained(folder.model, torch_dtype="auto")
    data = material.process_cache().prepared(config, "llama").eval
    assert eval_loss(reloaded, data) == pytest.approx(result.eval_loss, abs=1e-4)


def test_a_pass_has_the_bits_of_the_lower_type(material):
    lower = AutoModelForCausalLM.from_pretrained(material.model, torch_dtype=torch.bfloat16)
    held = AutoModelForCausalLM.from_pretrained(material.model, torch_dtype=torch.bfloat16)
    hold_in_float32(held)
    ids = torch.arange(12).view(1, -1)
    assert torch.equal(lower(input_ids=ids).logits, held(input_ids=ids).logits)
    assert {p.dtype for p in held.parameters()} == {torch.float32}


def test_modules_that_share_a_weight_go_on_sharing_it():
    shared = torch.nn.ModuleList([torch.nn.Linear(3, 3, bias=False) for _ in range(2)])
    shared[1].weight = shared[0].weight
    hold_in_float32(shared.to(torch.bfloat16))
    assert shared[0].weight is shared[1].weight
    x = torch.ones(1, 3, dtype=torch.bfloat16)
    assert torch.equal(shared[0](x), shared[1](x))
    assert shared[0](x).dtype == torch.bfloat16


def test_deepspeed_holds_them_in_float32_itself(material):
    """Thirty steps of 2e-4 move a weight of 1.0, whose bfloat16 neighbours are 4e-3 away."""
    training = {"max_steps": 30, "learning_rate": RATE, "lr_scheduler_type": "constant"}
    config = material.config(
        model={"dtype": "bfloat16"},
        lora={"modules_to_save": ["norm"], "target_modules": ["q_proj"]},
        zero_stage=1,
        keep="last",
        training={**training, "eval_steps": 30},
    )
    folder, result = material.train(config)
    assert result.state == "complete", result.cause
    saved = load_file(folder.adapter / "adapter_model.safetensors")
    for name, tensor in saved.items():
        if "norm" in name:
            assert (tensor != 1.0).float().mean() > 0.3, name


@pytest.mark.parametrize("lora", [{"modules_to_save": ["norm"]}, {"bias": "all"}])
def test_stage_3_takes_weights_of_one_type(lora):
    content = {"zero_stage": 3, "lora": lora, "model": {"dtype": "bfloat16"}}
    assert [problem.key for problem in problems_of(content)] == ["zero_stage"]
    assert problems_of({**content, "zero_stage": 2}) == []
    assert problems_of({**content, "model": {}}) == []
