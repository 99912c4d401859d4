"""LoRA+ alone and packed, against a plain loop with PEFT's own optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.training.packed import FLOAT32, CacheOnDevice, deviation, pack, read_adapter
from helpers.training.train import Material
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM, set_seed

from trial.config.errors import ConfigError
from trial.config.trial_config import parse, problems_of
from trial.devices.deepspeed_config import deepspeed_config

STEPS, RATE, RATIO, DECAY = 8, 1e-3, 16.0, 0.1


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("loraplus"))


def configuration(material: Material, **sections: Any):
    training = {
        "max_steps": STEPS, "eval_steps": 4, "learning_rate": RATE, "logging_steps": 1,
        "warmup_ratio": 0.0, "lr_scheduler_type": "linear", "weight_decay": DECAY,
        "loraplus_lr_ratio": RATIO, **sections.pop("training", {}),
    }  # fmt: skip
    return material.config(lora={"lora_dropout": 0.0}, training=training, keep="last", **sections)


@pytest.fixture(scope="module")
def plain(material) -> dict[str, torch.Tensor]:
    """The adapter that a plain loop trains, by its names in a saved one."""
    base = AutoModelForCausalLM.from_pretrained(material.model)
    data = material.process_cache().prepared(configuration(material), base).train
    set_seed(42)
    lora = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).train()
    optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=RATIO, eps=1e-6,
        betas=(0.9, 0.999), loraplus_weight_decay=DECAY,
    )  # fmt: skip
    first = [group["lr"] for group in optimizer.param_groups]
    trained = [p for p in model.parameters() if p.requires_grad]
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(42)).tolist()
    for step in range(STEPS):
        for group, rate in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = rate * (1 - step / STEPS)
        rows = [data[row] for row in order[step * 8 : step * 8 + 8]]
        model(
            **{name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        ).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {
        name.replace(".default", ""): p.detach()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def compare(folder: Any, plain: dict[str, torch.Tensor]) -> None:
    found = read_adapter(folder)
    assert found.keys() == plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("stage", [None, 1])
def test_a_trial_alone_equals_the_plain_loop(material, plain, stage):
    folder, result = material.train(configuration(material, zero_stage=stage))
    assert result.state == "complete", result.cause
    compare(folder, plain)


@pytest.mark.parametrize(
    "changes", [{}, {"reads_without_sync": False}, {"fixed_shapes": True}], ids=str
)
def test_packed_trials_equal_it_beside_one_without(material, plain, changes):
    """Steps by torch's fused AdamW, by tensors over slots, and by masked ones."""
    without = configuration(material, training={"loraplus_lr_ratio": None, "max_steps": 6})
    configs = [without, configuration(material)]
    folders, _ = pack(material, *configs, slots=2, process_cache=CacheOnDevice(**changes))
    compare(folders[1], plain)
    for config, folder in zip(configs, folders, strict=True):
        alone, _ = material.train(config)
        assert deviation(alone, folder) < FLOAT32


def test_a_ratio_acts(material, plain):
    folder, _ = material.train(configuration(material, training={"loraplus_lr_ratio": 1}))
    one = read_adapter(folder)
    assert any(not torch.allclose(one[name], plain[name], atol=1e-3) for name in plain)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"training": {"loraplus_lr_ratio": 0.5}}, "training.loraplus_lr_ratio"),
        ({"training": {"loraplus_lr_ratio": "16"}}, "training.loraplus_lr_ratio"),
        ({"training": {"loraplus_lr_ratio": 16}, "lora": {"r": 0}}, "lora.r"),
        ({"training": {"loraplus_lr_ratio": 16, "optim": "lomo"}}, "training.optim"),
    ],
)
def test_what_cannot_be_is_refused_by_name(content, key):
    assert [problem.key for problem in problems_of(content)] == [key]


def test_offloaded_states_have_one_rate():
    config = parse(
        {
            "training": {"loraplus_lr_ratio": 16},
            "zero_stage": 2,
            "deepspeed": {"offload_optimizer": "cpu"},
        }
    )
    with pytest.raises(ConfigError, match=r"training\.loraplus_lr_ratio"):
        deepspeed_config(config, "cpu", {})
