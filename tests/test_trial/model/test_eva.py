"""`init_lora_weights: eva`: the adapter starts from the inputs of its layers."""

from __future__ import annotations

import pytest
import torch
from helpers.training.packed import StopsAfter, read_adapter
from helpers.training.train import Material
from peft import PeftModel
from transformers import AutoModelForCausalLM

from trial.train import train

EVA = {"init_lora_weights": "eva", "lora_dropout": 0.0, "eva_config": {"rho": 1.0}}
QUERY = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("eva"))


def layer_inputs(material: Material, config) -> torch.Tensor:
    """A layer's centred inputs at all labelled tokens of the training rows, [tokens, 32]."""
    base = AutoModelForCausalLM.from_pretrained(material.model).eval()
    rows, seen = material.process_cache().prepared(config, "llama").train, []
    layer = base.model.layers[1].self_attn.q_proj
    layer.register_forward_hook(lambda _, args, out: seen.append(args[0][0]))
    with torch.no_grad():
        for row in (rows[number] for number in range(len(rows))):
            base(input_ids=row["input_ids"][None], attention_mask=row["attention_mask"][None])
            seen[-1] = seen[-1][row["labels"] != -100]
    inputs = torch.cat(seen)
    return inputs - inputs.mean(0)


def test_a_layer_starts_from_the_directions_in_which_its_inputs_vary(material):
    training = {"learning_rate": 1e-9, "max_steps": 1}
    config = material.config(lora={**EVA, "r": 2}, training=training)
    folder, result = material.train(config)
    assert result.state == "complete", result.cause
    a = read_adapter(folder)[f"{QUERY}.lora_A.weight"]
    inputs = layer_inputs(material, config)
    singular = torch.linalg.svdvals(inputs)
    explained = (inputs @ a.T).square().sum() / singular[:2].square().sum()
    assert explained > 0.8
    # Its rows are unit vectors; those of plain LoRA are not.
    torch.testing.assert_close(a.norm(dim=1), torch.ones(2), atol=1e-3, rtol=0)


def test_ranks_go_where_inputs_vary_and_plain_peft_reads_the_adapter(material):
    lora = {**EVA, "r": 4, "eva_config": {"rho": 2.0}}
    config = material.config(lora=lora, training={"max_steps": 10})
    folder, result = material.train(config)
    _, other = material.train(material.config(lora={"r": 4}, training={"max_steps": 10}))
    assert result.eval_loss != pytest.approx(other.eval_loss, abs=1e-3)
    ranks = {len(a) for name, a in read_adapter(folder).items() if "lora_A" in name}
    assert len(ranks) > 1
    base = AutoModelForCausalLM.from_pretrained(material.model)
    model = PeftModel.from_pretrained(base, folder.adapter).eval()
    assert eval_loss(model, material, config) == pytest.approx(result.eval_loss, abs=1e-5)


def eval_loss(model, material: Material, config) -> float:
    total, count = 0.0, 0
    for row in material.process_cache().prepared(config, "llama").eval:
        labels = row["labels"][1:]
        with torch.no_grad():
            ids, mask = row["input_ids"][None], row["attention_mask"][None]
            logits = model(input_ids=ids, attention_mask=mask).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels != -100).sum())
    return total / count


def test_a_resumed_trial_keeps_its_start(material):
    config = material.config(lora={**EVA, "r": 4, "eva_config": {"rho": 2.0}})
    whole, _ = material.train(config)
    folder = material.folder(config)
    assert train(folder, StopsAfter("interrupt", 10), material.process_cache()) is None
    train(folder, None, material.process_cache())
    losses = [[row.eval_loss for row in one.read_evaluations()] for one in (whole, folder)]
    assert losses[0] == losses[1]


def test_more_components_than_tokens_are_refused_by_name(material):
    """PEFT would go round for ever: it skips batches with too few tokens."""
    lora = {**EVA, "r": 16, "eva_config": {"rho": 60.0}}
    _, result = material.train(material.config(lora=lora, data={"max_train_samples": 8}))
    assert result.state == "failed"
    assert "lora.r" in result.cause.message
