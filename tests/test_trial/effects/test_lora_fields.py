"""Every field of LoraConfig: what is trained is float32 and moves, and plain PEFT reads it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.effects import lora_fields as effects
from helpers.training.train import Material

from trial.config import config_rules, library_arguments
from trial.config.trial_config import problems_of
from trial.preload import finish_imports
from trial.train import train
from trial.training.process_cache import ProcessCache

BOUND = 2e-3
"""Largest difference between the table's eval loss and that of the reloaded adapter, in nats."""


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("fields"))


def test_every_field_is_tried_or_refused():
    known = set(library_arguments.lora_arguments()) - effects.OF_PEFT
    tried = {name.partition(":")[0] for name in effects.LORA}
    assert tried | set(config_rules.refused_lora_fields()) == known
    assert not tried & set(config_rules.refused_lora_fields())


@pytest.mark.parametrize("name", config_rules.refused_lora_fields())
def test_a_refused_field_is_named(name):
    found = {problem.key for problem in problems_of({"lora": {name: {"any": "value"}}})}
    assert f"lora.{name}" in found


CASES = [("untied", "float32"), ("tied", "bfloat16")]
"""The command that writes docs/effects.md measures all four."""


@pytest.mark.parametrize(("family", "dtype"), CASES)
@pytest.mark.parametrize("name", effects.LORA)
def test_what_is_trained_moves_and_plain_peft_reads_its_loss(
    material, monkeypatch, name, family, dtype
):
    measured = effects.measure_lora(material, name, family, dtype, monkeypatch.setattr)
    if measured.refused:
        assert effects.EXPECTED_REFUSALS[name] in measured.refused
        return
    assert name not in effects.EXPECTED_REFUSALS
    assert measured.types == {torch.float32}
    assert measured.still == ()
    assert measured.reloaded == pytest.approx(measured.table, abs=BOUND)


@pytest.fixture(scope="module")
def in_a_new_process_cache(material) -> tuple[dict[str, Any], float]:
    """Sections of a plain trial, and its eval loss as the first one of a process."""
    model = {"name_or_path": str(effects.model_of(material, "untied")), "dtype": "float32"}
    plain = {"model": model, "training": effects.LORA_TRAINING, "keep": "last"}
    result = train(material.folder(material.config(**plain)), None, ProcessCache(finish_imports))
    return plain, result.eval_loss


@pytest.mark.parametrize("name", effects.LORA)
def test_the_next_trial_of_the_process_is_as_the_first(material, in_a_new_process_cache, name):
    """The base model is kept for it only where taking the adapter off restores all of it."""
    plain, expected = in_a_new_process_cache
    cache = ProcessCache(finish_imports)
    train(material.folder(material.config(**plain, lora=effects.LORA[name])), None, cache)
    after = train(material.folder(material.config(**plain)), None, cache)
    assert after.eval_loss == expected
