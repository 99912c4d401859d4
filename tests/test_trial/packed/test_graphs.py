"""Packed jobs that capture passes as graphs and replay them; a stand-in where there are none."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from helpers.training.packed import (
    MIXED,
    SHARED_JOB_TOLERANCE,
    CacheOnDevice,
    deviation,
    failing_engine,
    opener,
    out_of_memory,
    pack,
    read_last,
)
from helpers.training.train import DEVICE, Material

from trial.devices.device import DEVICES


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("packed"))


class Graph:
    """Stands for a captured graph where nothing can be captured: a replay computes anew."""

    def __init__(self, capture: Capture, body: Any) -> None:
        self.capture = capture
        self.body = body

    def replay(self) -> None:
        self.capture.replays += 1
        self.output = self.body()

    def clone(self) -> torch.Tensor:
        return self.output


class Capture:
    """The device's own way to capture graphs, or its stand-in; counts them."""

    def __init__(self) -> None:
        self.graphs = 0
        self.replays = 0

    def __call__(self, body: Any, earlier: Any) -> tuple[Any, Any]:
        self.graphs += 1
        own = DEVICES[DEVICE].record
        if own is not None:
            return own(body, earlier)
        graph = Graph(self, body)
        return graph, graph


def capturing(record: Any) -> CacheOnDevice:
    return CacheOnDevice(reads_without_sync=False, record=record)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_replayed_passes_equal_launched_ones(material, bf16):
    """Slots that come and go, dropout in some of them, evaluations of batches of several widths."""
    configs = [
        material.config(**{**sections, "training": {**sections.get("training", {}), "bf16": bf16}})
        for sections in (*MIXED, *MIXED[::-1])
    ]
    capture = Capture()
    launched, _ = pack(material, *configs, slots=3, process_cache=capturing(None))
    cache = capturing(capture)
    replayed, _ = pack(material, *configs, slots=3, process_cache=cache)
    assert capture.graphs > 3
    assert DEVICE != "cpu" or capture.replays > 10 * capture.graphs
    for one, other in zip(launched, replayed, strict=True):
        assert deviation(one, other) <= SHARED_JOB_TOLERANCE
    base = cache.take_base(configs[0], cache.start(configs[0]))
    assert base.config._attn_implementation == "sdpa"


def test_where_capturing_fails_passes_are_launched_as_before(material, caplog):
    def broken(body: Any, earlier: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    config = material.config(**MIXED[0])
    (apart,), _ = pack(material, config, slots=1, process_cache=capturing(None))
    (together,), _ = pack(material, config, slots=1, process_cache=capturing(broken))
    assert deviation(apart, together) <= SHARED_JOB_TOLERANCE
    (line,) = [line for line in caplog.messages if "kernel by kernel" in line]
    assert "not permitted" in line


def test_graphs_go_before_slots_do_when_memory_runs_out(material):
    config, slots = material.config(**MIXED[0]), []

    def ninth(engine: Any, call: int) -> bool:
        slots.append(engine.bank.slots)
        return call == 9

    crowded = failing_engine("accumulate", out_of_memory, ninth)
    (apart,), _ = pack(material, config, slots=1, process_cache=capturing(Capture()))
    folders, results = pack(
        material, config, config, slots=2, process_cache=capturing(Capture()),
        opener=opener(crowded),
    )  # fmt: skip
    assert crowded.calls > 9
    assert [result.state for result in results] == ["complete"] * 2
    assert set(slots) == {2}
    for folder in folders:
        assert deviation(apart, folder, read_last) <= SHARED_JOB_TOLERANCE


def test_what_a_device_still_computes_is_charged_to_training(material):
    """A device that is 50 ms behind its host whenever it is waited for."""
    synchronise = DEVICES[DEVICE].synchronise

    def late() -> None:
        synchronise()
        time.sleep(0.05)

    training = {"logging_steps": 20, "eval_steps": 4, "max_steps": 20}
    _, (result,) = pack(
        material,
        material.config(training=training),
        slots=1,
        process_cache=CacheOnDevice(reads_without_sync=False, synchronise=late),
    )
    assert result.seconds.train > 5 * 0.05
