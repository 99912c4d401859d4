"""Trials that take over freed slots: nothing is compiled again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.training.packed import FLOAT32, CacheOnDevice, deviation, opener, pack
from helpers.training.train import Material

from trial.multi_lora.adamw import adamw_update
from trial.multi_lora.engine import Engine


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("packed"))


def compiled(function: Any) -> Any:
    return torch.compile(function, backend="aot_eager", dynamic=False)


class CompiledEngine(Engine):
    """Compiles model and optimizer step; from the fifth trial on nothing may be compiled again."""

    loaded = 0

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        CompiledEngine.loaded = 0
        self.base.forward = compiled(self.base.forward)
        self.adamw.update = compiled(adamw_update)

    def load(self, *args: Any) -> None:
        CompiledEngine.loaded += 1
        torch._dynamo.config.error_on_recompile = CompiledEngine.loaded > 4
        super().load(*args)

    def close(self) -> Any:
        del self.base.forward
        return super().close()


@pytest.fixture
def counters() -> Iterator[Any]:
    """What dynamo counts, from zero; dynamo's settings and graphs are reset afterwards."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=False):
        yield counters
    torch._dynamo.reset()


def test_twenty_refills_compile_nothing(material, counters):
    """Ranks, scales, dropouts, rates, seeds, lengths, accumulation differ; slots stay empty."""
    configs = [
        material.config(
            lora={"r": 1 + number % 9, "lora_alpha": 1 + number, "lora_dropout": dropout},
            training={
                "seed": number, "learning_rate": 1e-3 * (1 + number), "eval_steps": 2,
                "max_steps": 2 + number % 3, "gradient_accumulation_steps": 1 + number % 2,
                "max_grad_norm": number % 4, "per_device_train_batch_size": 2,
            },
        )
        for number, dropout in zip(range(22), itertools.cycle([0.0, 0.0, 0.0, 0.1, 0.3]))
    ]  # fmt: skip
    folders, results = pack(
        material, *configs, slots=2, process_cache=CacheOnDevice(fixed_shapes=True),
        opener=opener(CompiledEngine),
    )  # fmt: skip
    assert CompiledEngine.loaded == 22
    assert [result.state for result in results] == ["complete"] * 22
    # The model in training and in evaluation, and the step of an A and a B of every shape.
    assert counters["stats"]["unique_graphs"] < 12
    torch._dynamo.config.error_on_recompile = False
    torch._dynamo.reset()
    alone, _ = material.train(configs[-1])
    assert deviation(alone, folders[-1]) < FLOAT32
