"""Packed trials in tests: mixed configurations, logs compared, engines and devices that fail."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.training.train import DEVICE, Material

from trial.devices.device import Device
from trial.multi_lora.engine import Engine
from trial.packed.job import SetupOpener, train_packed
from trial.packed.setup import open_setup
from trial.preload import finish_imports
from trial.store.control import NullControl
from trial.store.folders import TrialFolder
from trial.store.records import Evaluation, Result
from trial.training.process_cache import ProcessCache

FLOAT32 = 2e-5
"""Packed and solo losses differ by at most this in float32, over twenty steps at usual rates."""
BFLOAT16 = 2e-3
"""The same in bfloat16, whose numbers near 1 are 8e-3 apart."""
SHARED_JOB_TOLERANCE = 0.0 if DEVICE == "cpu" else FLOAT32
"""A packed trial differs by this from itself among other trials: a GPU's libraries choose their
kernels by the size of a batch, and round differently."""

MIXED: list[dict[str, Any]] = [
    {"lora": {"r": 4, "lora_dropout": 0.1}, "training": {"seed": 1}},
    {
        "lora": {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0},
        "training": {"learning_rate": 1e-3, "seed": 2, "weight_decay": 0.1, "max_steps": 13},
    },
    {
        "lora": {"r": 2, "lora_alpha": 32, "lora_dropout": 0.3, "use_rslora": True},
        "training": {"seed": 3, "gradient_accumulation_steps": 2, "max_grad_norm": 0.3},
    },
    {
        "lora": {"r": 16},
        "training": {"num_train_epochs": 2, "max_steps": -1, "eval_on_start": True},
    },
]
"""Ranks, scales, dropout, rates, schedules, lengths and accumulation all differ."""


def pack(
    material: Material, *configs: Any, slots: int, **named: Any
) -> tuple[list[TrialFolder], list[Result | None]]:
    """Train new folders of these configurations in one packed job."""
    folders = [material.folder(config) for config in configs]
    named.setdefault("process_cache", material.process_cache())
    return folders, train_packed(folders, slots=slots, **named)


# Logs and adapters


def read_log(folder: TrialFolder) -> list[dict[str, Any]]:
    """Lines of the trial's metrics.jsonl."""
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def read_last(folder: TrialFolder) -> list[dict[str, Any]]:
    """The same, with the last line only of a step that was repeated."""
    return list({(line["kind"], line["step"]): line for line in read_log(folder)}.values())


def deviation(first: TrialFolder, second: TrialFolder, read: Any = read_log) -> float:
    """Largest difference of any number that both logged; they must have logged the same steps."""
    worst = 0.0
    for one, two in zip(read(first), read(second), strict=True):
        assert {**one, **two}.keys() == one.keys()
        for name, value in one.items():
            if name in ("step", "tokens", "kind"):
                assert two[name] == value
            elif isinstance(value, float) and name not in ("train_seconds", "time"):
                difference = abs(value - two[name])
                # The training loss is written with four digits: the last may be rounded either way.
                rounding = name == "loss" and difference == pytest.approx(1e-4)
                worst = max(worst, 0.0 if rounding else difference)
    return worst


def read_adapter(folder: TrialFolder) -> dict[str, torch.Tensor]:
    """The trial's adapter by PEFT's names."""
    from safetensors.torch import load_file

    return load_file(folder.adapter / "adapter_model.safetensors")


# What is handed to a job


class StopsAfter(NullControl):
    """Asks a trial to stop once it was evaluated at a step."""

    def __init__(self, reason: Any, step: int) -> None:
        self.reason, self.step, self.newest = reason, step, 0

    def evaluated(self, folder: TrialFolder, evaluation: Evaluation) -> None:
        self.newest = evaluation.step

    def stop_reason(self, folder: TrialFolder) -> Any:
        return self.reason if self.newest >= self.step else None


class CacheOnDevice(ProcessCache):
    """A process whose device differs from its table entry in some fields."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(finish_imports)
        self.changes = changes

    def start(self, config: Any) -> Device:
        return dataclasses.replace(super().start(config), **self.changes)


def opener(make_engine: Callable[..., Engine]) -> SetupOpener:
    """Opens a job with an engine of another class."""
    return partial(open_setup, make_engine=make_engine)


def out_of_memory() -> Exception:
    """What torch raises."""
    return torch.OutOfMemoryError("CUDA out of memory (a test)")


def failing_engine(
    method: str, error: Callable[[], Exception], when: Callable[[Engine, int], bool]
) -> Any:
    """An engine class with a method that fails `when(engine, number of the call)` says so.

    A failing `step` raises after the step was made. `calls` is the number of calls so far.
    """

    class FailingEngine(Engine):
        calls = 0

    def call(engine: Engine, *args: Any) -> Any:
        FailingEngine.calls += 1
        fails = when(engine, FailingEngine.calls)
        result = getattr(Engine, method)(engine, *args) if not fails or method == "step" else None
        if fails:
            raise error()
        return result

    setattr(FailingEngine, method, call)
    return FailingEngine


def crowded_engine(method: str, call: int, fits: int = 2) -> Any:
    """An engine whose method runs out of memory from the n-th call on in more than `fits` slots."""
    return failing_engine(
        method, out_of_memory, lambda engine, n: n >= call and engine.bank.slots > fits
    )
