"""Packed trials equal GaudiTrainer's own runs of one trial, and a plain PEFT and AdamW loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.training.models import make_model
from helpers.training.packed import (
    BFLOAT16,
    FLOAT32,
    MIXED,
    CacheOnDevice,
    deviation,
    pack,
    read_adapter,
    read_log,
)
from helpers.training.train import Material
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from trial.config.packing_rules import packing_key
from trial.distributed.rank_group import RankGroup
from trial.store.folders import TrialFolder


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def solo(material) -> list[tuple[TrialFolder, Any]]:
    return [material.train(material.config(**sections)) for sections in MIXED]


def mixed_configs(material: Material) -> list[Any]:
    return [material.config(**sections) for sections in MIXED]


@pytest.mark.parametrize("slots", [1, 3])
def test_mixed_trials_equal_their_solo_runs(material, solo, slots):
    folders, results = pack(material, *mixed_configs(material), slots=slots)
    for (alone, expected), folder, result in zip(solo, folders, results, strict=True):
        assert deviation(alone, folder) < FLOAT32
        assert result.eval_loss == pytest.approx(expected.eval_loss, abs=FLOAT32)
        for name in ("state", "steps", "max_steps", "best_step", "tokens", "data_hash"):
            assert getattr(result, name) == getattr(expected, name)
        for name in ("trainable_parameters", "total_parameters", "model_hash"):
            assert getattr(result, name) == getattr(expected, name)
        ours, theirs = read_adapter(folder), read_adapter(alone)
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            torch.testing.assert_close(ours[key], tensor, atol=1e-4, rtol=1e-3)


class LossReads(RankGroup):
    """One rank, which notes how many passes' losses are read from the device at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[int] = []

    def all_gather(self, value: Any, **named: Any) -> list[Any]:
        if isinstance(value, list):
            self.passes.append(len(value))
        return super().all_gather(value, **named)


def test_losses_are_read_from_a_device_only_when_they_are_logged(material, solo):
    ranks = LossReads()
    folders, _ = pack(
        material,
        *mixed_configs(material),
        slots=3,
        process_cache=CacheOnDevice(reads_without_sync=False),
        rank_group=ranks,
    )
    for (alone, _), folder in zip(solo, folders, strict=True):
        assert deviation(alone, folder) < FLOAT32
    assert max(ranks.passes) > 1


LORA = st.fixed_dictionaries(
    {
        "r": st.integers(1, 16),
        "lora_alpha": st.sampled_from([1.0, 8.0, 32.0]),
        "lora_dropout": st.sampled_from([0.0, 0.05, 0.5]),
        "use_rslora": st.booleans(),
        "target_modules": st.just(["q_proj", "v_proj", "down_proj"]),
    }
)
TRAINING = st.fixed_dictionaries(
    {
        "max_steps": st.integers(1, 9),
        "eval_steps": st.integers(2, 5),
        "learning_rate": st.floats(1e-4, 5e-3),
        "warmup_ratio": st.sampled_from([0.0, 0.3]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "lr_scheduler_type": st.sampled_from(["linear", "cosine", "constant", "polynomial"]),
        "max_grad_norm": st.sampled_from([0.0, 0.05, 1.0]),
        "adam_epsilon": st.sampled_from([1e-6, 1e-4]),
        "gradient_accumulation_steps": st.sampled_from([1, 3]),
        "adam_beta2": st.sampled_from([0.95, 0.999]),
        "seed": st.integers(0, 99),
    }
)


def has_steps_after_the_warm_up(training: dict[str, Any]) -> bool:
    """Without one, transformers' polynomial schedule divides by zero; a rehearsal refuses it."""
    return training["warmup_ratio"] == 0.0 or training["max_steps"] > 1


TRIALS = st.lists(
    st.fixed_dictionaries({"lora": LORA, "training": TRAINING.filter(has_steps_after_the_warm_up)}),
    min_size=2,
    max_size=3,
)


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(TRIALS)
def test_any_trials_equal_their_solo_runs(material, trials):
    configs = [material.config(**sections) for sections in trials]
    folders, _ = pack(material, *configs, slots=2)
    for config, folder in zip(configs, folders, strict=True):
        alone, _ = material.train(config)
        assert deviation(alone, folder) < FLOAT32


@pytest.mark.parametrize(
    ("schedule", "more"),
    [
        ("polynomial", {"lr_end": 1e-3}),
        ("cosine_with_min_lr", {"min_lr": 1e-3}),
        ("warmup_stable_decay", {"num_decay_steps": 5}),
        ("cosine_with_restarts", {"num_cycles": 2}),
    ],
)
def test_schedules_equal_the_trainers(material, schedule, more):
    """Some end at an absolute rate, not at a factor of the first."""
    training = {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": more, "warmup_steps": 3}
    config = material.config(training={**training, "logging_steps": 1})
    alone, _ = material.train(config)
    (folder,), _ = pack(material, config, slots=1)
    assert deviation(alone, folder) < FLOAT32


def test_evaluations_at_chosen_steps_packed_or_not(material):
    """An epoch ends within the trial, and at its end."""
    config = material.config(
        evaluation={"steps": [3, 7, 11, 90]},
        training={"num_train_epochs": 2, "max_steps": -1, "eval_steps": 2},
    )
    alone, result = material.train(config)
    (folder,), _ = pack(material, config, slots=1)
    last = result.steps
    assert 11 < last < 90
    for one in (alone, folder):
        assert [shown.step for shown in one.read_evaluations()] == [3, 7, 11, last]
    assert deviation(alone, folder) < FLOAT32


@pytest.mark.parametrize(
    ("family", "sections", "bound"),
    [
        ("gpt2", {}, FLOAT32),
        ("qwen2", {}, FLOAT32),
        ("llama", {"model": {"dtype": "bfloat16"}}, BFLOAT16),
        ("llama", {"training": {"bf16": True}}, BFLOAT16),
        ("qwen2", {"model": {"dtype": "bfloat16"}, "training": {"bf16": True}}, BFLOAT16),
        ("llama", {"lora": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 9}}}, 1e-5),
        ("llama", {"lora": {"target_modules": ".*layers.1.*_proj"}, "keep": "last"}, FLOAT32),
        ("llama", {"training": {"data_seed": 5, "eval_delay": 8, "save_steps": 0.3}}, FLOAT32),
    ],
)  # fmt: skip
def test_families_and_types_equal_their_solo_runs(material, family, sections, bound):
    """Beside a trial of another rank, rate and dropout; the adapter is one that PEFT reads."""
    from peft import PeftModel

    path = material.root / family
    if not path.exists():
        make_model(path, family)
    model = {"name_or_path": str(path), **sections.get("model", {})}
    named = {name: part for name, part in sections.items() if name != "model"}
    config = material.config(model=model, packed=True, **named)
    lora = {**sections.get("lora", {}), "r": 9, "lora_dropout": 0.2}
    training = {**sections.get("training", {}), "learning_rate": 1e-2, "seed": 7}
    other = material.config(model=model, packed=True, lora=lora, training=training)
    assert packing_key(config) == packing_key(other) is not None
    alone, expected = material.train(config.model_copy(update={"packed": False}))
    (_, folder), (_, result) = pack(material, other, config, slots=2)
    assert deviation(alone, folder) < bound
    assert result.eval_loss == pytest.approx(expected.eval_loss, abs=bound)
    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), folder.adapter)
    ours = read_adapter(folder)
    theirs = {key: value for key, value in read.state_dict().items() if "lora_" in key}
    assert len(theirs) == len(ours) > 0
    assert all(
        torch.equal(theirs[key.replace(".weight", ".default.weight")], ours[key]) for key in ours
    )


def test_a_packed_trial_equals_a_plain_peft_and_adamw_loop(material):
    from peft import LoraConfig, get_peft_model
    from transformers import get_cosine_schedule_with_warmup, set_seed

    steps, rate = 12, 3e-3
    training = {"max_steps": steps, "learning_rate": rate, "logging_steps": 1, "warmup_ratio": 0.25}
    config = material.config(lora={"r": 4, "lora_dropout": 0.0}, training=training)
    other = material.config(lora={"r": 9, "lora_dropout": 0.2}, training={"learning_rate": 1e-2})
    process_cache = material.process_cache()
    (_, folder), _ = pack(material, other, config, slots=2, process_cache=process_cache)

    base = AutoModelForCausalLM.from_pretrained(material.model)
    set_seed(config.training["seed"])
    lora = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, eps=1e-6, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(0.25 * steps), steps)
    data = process_cache.prepared(config, base).train
    order: list[int] = []
    for epoch in range(5):
        # The last step of an epoch is filled up with rows drawn anew.
        generator = torch.Generator().manual_seed(42 + epoch)
        drawn = [torch.randperm(len(data), generator=generator) for _ in range(2)]
        order += torch.cat(drawn)[: -(-len(data) // 8) * 8].tolist()
    logged = [line for line in read_log(folder) if "loss" in line]
    assert len(logged) == steps
    for step, line in enumerate(logged):
        rows = [data[row] for row in order[step * 8 : step * 8 + 8]]
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        loss = model(**batch).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        assert line["loss"] == pytest.approx(loss.item(), abs=1e-4)
        assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        assert line["learning_rate"] == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
