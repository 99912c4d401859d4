"""What each field of LoraConfig does, as a table that a test measures and docs/effects.md shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from helpers.training.models import make_model
from helpers.training.train import Material
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from trial.config.errors import ConfigError
from trial.preflight.checks import preflight
from trial.store.folders import TrialFolder
from trial.training import attempt

QUESTION_MARK = 32
"""Its token in the rows of the tests: the adapter of `alora_invocation_tokens` acts after it."""

LORA: dict[str, dict[str, Any]] = {
    "r": {"r": 3},
    "lora_alpha": {"lora_alpha": 3},
    "lora_dropout": {"lora_dropout": 0.2},
    "use_rslora": {"use_rslora": True},
    "use_dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "target_modules": {"target_modules": ["q_proj", "down_proj"]},
    "exclude_modules": {"exclude_modules": ["v_proj"]},
    "init_lora_weights": {"init_lora_weights": "gaussian"},
    "init_lora_weights: eva": {"init_lora_weights": "eva"},
    "init_lora_weights: olora": {"init_lora_weights": "olora"},
    "init_lora_weights: orthogonal": {"init_lora_weights": "orthogonal"},
    "init_lora_weights: pissa": {"init_lora_weights": "pissa"},
    "eva_config": {"init_lora_weights": "eva", "eva_config": {"rho": 1.0}},
    "layers_to_transform": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "layers_pattern": {
        "target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers",
    },
    "rank_pattern": {"rank_pattern": {"q_proj": 2}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 2}},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "modules_to_save: embed_tokens": {"modules_to_save": ["embed_tokens"]},
    "trainable_token_indices": {"trainable_token_indices": [262, 263]},
    "lora_bias": {"lora_bias": True, "target_modules": ["q_proj"]},
    "target_parameters": {
        "target_modules": ["q_proj"], "target_parameters": ["mlp.down_proj.weight"],
        "lora_dropout": 0.0,
    },
    "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
    "ensure_weight_tying": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "use_bdlora": {
        "target_modules": ["q_proj"],
        "use_bdlora": {"nblocks": 2, "target_modules_bd_b": ["q_proj"]},
    },
    "fan_in_fan_out": {"fan_in_fan_out": False},
    "alora_invocation_tokens": {"alora_invocation_tokens": [QUESTION_MARK]},
    "kasa_config": {"kasa_config": {}},
    "velora_config": {"velora_config": {}},
}  # fmt: skip
"""A sensible value of each field, and what it needs beside it."""

FAMILIES = {"untied": "llama", "tied": "tied"}
DTYPES = ("float32", "bfloat16")
LORA_TRAINING = {
    "max_steps": 4, "eval_steps": 4, "learning_rate": 5e-4, "warmup_ratio": 0.0, "logging_steps": 1
}  # fmt: skip


def model_of(material: Material, family: str) -> Path:
    """A tiny Llama, whose output layer is or is not the embeddings."""
    path = material.root / family
    if not path.exists():
        make_model(path)
        if family == "tied":
            torch.manual_seed(0)
            config = AutoModelForCausalLM.from_pretrained(path).config
            config.tie_word_embeddings = True
            AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def plain_loss(model: Any, rows: Any) -> float:
    """Cross-entropy over labelled tokens in nats per token, row by row."""
    model.eval()
    total, count = 0.0, 0
    for row in rows:
        labels = row["labels"][1:]
        with torch.no_grad():
            ids, mask = row["input_ids"][None], row["attention_mask"][None]
            logits = model(input_ids=ids, attention_mask=mask).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels != -100).sum())
    return total / count


def reload_adapter(path: Path, dtype: str, folder: TrialFolder) -> Any:
    """The trained model by plain transformers and PEFT."""
    base = AutoModelForCausalLM.from_pretrained(path, torch_dtype=getattr(torch, dtype))
    return PeftModel.from_pretrained(base, folder.adapter)


def saved_tensors(folder: TrialFolder) -> Mapping[str, torch.Tensor]:
    """The tensors of the saved adapter, by PEFT's names."""
    return load_file(folder.adapter / "adapter_model.safetensors")


OF_PEFT = {"task_type", "peft_type", "inference_mode", "revision", "base_model_name_or_path"}
"""Fields of every PEFT configuration, which say nothing about LoRA."""

EXPECTED_REFUSALS: dict[str, str] = {}
"""Fields of `LORA` that are refused on some models, and the key that the refusal names."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a trial with one field of LoraConfig came to."""

    refused: str = ""
    """Key and rule of the refusal; empty if there was none."""
    types: frozenset[torch.dtype] = frozenset()
    still: tuple[str, ...] = ()
    """Trained tensors that did not move."""
    table: float = 0.0
    """Eval loss of the trial, in nats per token."""
    reloaded: float = 0.0
    """That of the saved adapter by plain transformers and PEFT."""


def measure_lora(
    material: Material, name: str, family: str, dtype: str, setattr_: Callable[..., None]
) -> Measured:
    """Train with one field of `LORA`; `setattr_` is pytest's `monkeypatch.setattr`, or like it."""
    path = model_of(material, family)
    content = {
        "model": {"name_or_path": str(path), "dtype": dtype},
        "lora": LORA[name], "training": LORA_TRAINING, "keep": "last",
    }  # fmt: skip
    try:
        config = material.config(**content)
    except ConfigError as error:
        return Measured(refused=str(error))
    if problems := preflight(config):
        return Measured(refused="; ".join(map(str, problems)))
    trained: dict[str, torch.nn.Parameter] = {}
    before: dict[str, torch.Tensor] = {}
    attach = attempt.attach_adapter

    def remember(*args: Any, **named: Any) -> Any:
        model = attach(*args, **named)
        trained.update({name: p for name, p in model.named_parameters() if p.requires_grad})
        before.update({name: p.detach().clone() for name, p in trained.items()})
        return model

    setattr_(attempt, "attach_adapter", remember)
    try:
        folder, result = material.train(config)
    finally:
        setattr_(attempt, "attach_adapter", attach)
    if result.state != "complete":
        raise AssertionError(f"{name}: {result.cause}")
    base = AutoModelForCausalLM.from_pretrained(path)
    rows = material.process_cache().prepared(config, base).eval
    return Measured(
        types=frozenset(p.dtype for p in trained.values()),
        still=tuple(n for n, p in trained.items() if torch.equal(p, before[n])),
        table=result.eval_loss,
        reloaded=plain_loss(reload_adapter(path, dtype, folder), rows),
    )
