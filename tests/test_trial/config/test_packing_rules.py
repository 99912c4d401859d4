"""Which trials may share a packed job."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.training.train import Material

from trial.config.packing_rules import packing_key, unpackable_reason


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("rules"))


ALONE: list[dict[str, Any]] = [
    {"lora": {"r": 0}},
    {"lora": {"use_dora": True}},
    {"lora": {"bias": "lora_only"}},
    {"lora": {"init_lora_weights": "pissa"}},
    {"lora": {"modules_to_save": ["lm_head"]}},
    {"zero_stage": 0},
    {"zero_stage": 1},
    {"objective": {"name": "grad_ascent"}, "data": {"forget_path": "rows.jsonl"}},
    {"data": {"forget_path": "rows.jsonl"}},
    {"evaluation": {"metrics": ["json:dumps"]}},
    {"training": {"gradient_checkpointing": True}},
    {"training": {"label_smoothing_factor": 0.1}},
    {"training": {"torch_compile": True}},
    {"training": {"optim": "adafactor"}},
    {"training": {"group_by_length": True}},
    {"training": {"lr_scheduler_type": "reduce_lr_on_plateau"}},
]
OTHER_JOB: list[dict[str, Any]] = [
    {"lora": {"r": 17}},
    {"lora": {"rank_pattern": {"v_proj": 17}}},
    {"lora": {"target_modules": ["q_proj"]}},
    {"training": {"per_device_train_batch_size": 4}},
    {"training": {"per_device_eval_batch_size": 8}},
    {"training": {"bf16": True}},
    {"data": {"max_length": 32}},
    {"data": {"split_seed": 1}},
    {"model": {"dtype": "bfloat16"}},
    {"device": "auto"},
]
SAME_JOB: list[dict[str, Any]] = [
    {"lora": {"r": 16, "lora_alpha": 3.0, "lora_dropout": 0.5, "use_rslora": True}},
    {"lora": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 2}}},
    {"training": {"learning_rate": 1e-4, "seed": 9, "data_seed": 3, "weight_decay": 0.1}},
    {"training": {"lr_scheduler_type": "polynomial", "warmup_steps": 3, "max_grad_norm": 0.0}},
    {"training": {"max_steps": 7, "gradient_accumulation_steps": 3, "eval_steps": 2}},
    {"training": {"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-8}},
    {"keep": "last", "diverged_above": 9.0, "keep_checkpoint": True},
]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        *((row, "alone") for row in ALONE),
        *((row, "another job") for row in OTHER_JOB),
        *((row, "the same job") for row in SAME_JOB),
        ({"packed": False}, "not packed"),
    ],
)
def test_what_may_share_a_job(material, sections, expected):
    base = packing_key(material.config(packed=True))
    config = material.config(**{"packed": True, **sections})
    key, why = packing_key(config), unpackable_reason(config)
    found = "alone" if why else "the same job" if key == base else "another job"
    assert base is not None
    assert ("not packed" if not why and key is None else found) == expected
    assert (key is None) == (expected in ("alone", "not packed"))
