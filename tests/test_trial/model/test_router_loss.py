"""A mixture's router loss, against transformers' own loss in a plain loop."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.training.models import make_mixtral
from helpers.training.packed import pack
from helpers.training.train import Material
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, set_seed

from trial.model.router_loss import router_loss_factor
from trial.multi_lora.packable import NotPackableError
from trial.train import train
from trial.training.loss import TrainingLoss

FACTOR = 2.0
"""Large, so that the router's loss is as large as the cross-entropy."""
TARGETS = ["q_proj", "v_proj"]
STEPS, RATE = 8, 5e-3


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("router"))


@pytest.fixture(scope="module")
def mixture(material) -> Path:
    path = make_mixtral(material.root / "mixtral", material.model)
    settings = json.loads((path / "config.json").read_text())
    settings |= {"output_router_logits": True, "router_aux_loss_coef": FACTOR}
    (path / "config.json").write_text(json.dumps(settings))
    return path


def configuration(material: Material, mixture: Path, **sections):
    return material.config(
        model={"name_or_path": str(mixture)},
        lora={"lora_dropout": 0.0, "target_modules": TARGETS},
        training={
            "max_steps": STEPS, "eval_steps": 4, "learning_rate": RATE, "warmup_ratio": 0.0,
            "lr_scheduler_type": "constant", "logging_steps": 1,
        },
        keep="last",
        **sections,
    )  # fmt: skip


def plain_losses(material: Material, mixture: Path, config) -> tuple[list[float], float]:
    """transformers' own training losses, with the router's, and the cross-entropy at the end."""
    base = AutoModelForCausalLM.from_pretrained(mixture)
    data = material.process_cache().prepared(config, base)
    set_seed(42)
    lora = LoraConfig(r=4, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, eps=1e-6, weight_decay=0.0)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(42)).tolist()
    losses = []
    for step in range(STEPS):
        rows = [data.train[row] for row in order[step * 8 : step * 8 + 8]]
        loss = model(**{name: torch.stack([row[name] for row in rows]) for name in rows[0]}).loss
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    total, count = 0.0, 0
    for row in data.eval:
        ids, mask, labels = row["input_ids"][None], row["attention_mask"][None], row["labels"][1:]
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels != -100).sum())
    return losses, total / count


def test_a_trial_trains_with_the_routers_loss_and_evaluates_without_it(material, mixture):
    config = configuration(material, mixture)
    expected, at_end = plain_losses(material, mixture, config)
    folder, result = material.train(config)
    assert result.state == "complete", result.cause
    assert [row.loss for row in folder.read_train_logs()] == pytest.approx(expected, abs=2e-4)
    assert result.eval_loss == pytest.approx(at_end, abs=1e-4)
    # What it was before: the same trial without the router's loss.
    settings = json.loads((mixture / "config.json").read_text())
    without = mixture.with_name("without")
    without.mkdir()
    for file in mixture.iterdir():
        (without / file.name).write_bytes(file.read_bytes())
    (without / "config.json").write_text(json.dumps({**settings, "output_router_logits": False}))
    _, plain = material.train(configuration(material, without))
    assert abs(plain.eval_loss - result.eval_loss) > 1e-3


def test_another_objective_trains_with_it_too(material, mixture):
    config = configuration(material, mixture)
    _, sft = material.train(config)
    own = configuration(material, mixture, objective="helpers.training.objectives:weighted")
    _, result = material.train(own)
    assert result.state == "complete", result.cause
    assert result.eval_loss == pytest.approx(sft.eval_loss, abs=1e-4)


def test_such_a_model_is_not_packed_and_a_packed_trial_equals_the_one_alone(material, mixture):
    config = configuration(material, mixture, packed=True)
    with pytest.raises(NotPackableError):
        pack(material, config, slots=1)
    folder = material.folder(config)
    packed = train(folder, None, material.process_cache())
    _, alone = material.train(configuration(material, mixture))
    assert packed.eval_loss == alone.eval_loss


def test_batches_of_a_step_count_by_their_labelled_tokens():
    """Two batches, of 3 and 1 labelled tokens: their router losses have weights 3/4 and 1/4."""
    logits, labels = torch.zeros(1, 4, 5), torch.tensor([[-100, 1, 2, 3]])
    short = torch.tensor([[-100, -100, -100, 3]])
    loss = TrainingLoss(dense=False, smoothing=0.0, router_factor=10.0)
    found = [
        float(loss({"logits": logits, "aux_loss": torch.tensor(router)}, targets, 4))
        for router, targets in ((1.0, labels), (3.0, short))
    ]
    chance = torch.tensor(5.0).log()
    assert found[0] == pytest.approx(float(3 / 4 * (chance + 10 * 1.0)))
    assert found[1] == pytest.approx(float(1 / 4 * (chance + 10 * 3.0)))


def test_a_factor_under_another_name_is_found_or_refused():
    asks = SimpleNamespace(output_router_logits=True, model_type="own", aux_loss_coef=0.5)
    assert router_loss_factor(SimpleNamespace(config=asks)) == 0.5
    asks.output_router_logits = False
    assert router_loss_factor(SimpleNamespace(config=asks)) == 0.0
    unknown = SimpleNamespace(output_router_logits=True, model_type="own")
    with pytest.raises(ValueError, match="own has `output_router_logits`"):
        router_loss_factor(SimpleNamespace(config=unknown))
