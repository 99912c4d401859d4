"""A packed trial's numbers do not depend on which other trials share the job, or on a resume."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from helpers.training.packed import (
    MIXED,
    SHARED_JOB_TOLERANCE,
    StopsAfter,
    deviation,
    pack,
    read_adapter,
)
from helpers.training.train import DEVICE, Material

from trial.multi_lora.adamw import StepSettings
from trial.multi_lora.engine import Engine, EngineSettings, MicroBatch
from trial.packed.job import train_packed
from trial.packed.setup import PackedSetup, open_setup
from trial.packed.slot import STATE_FILE
from trial.store.control import NullControl
from trial.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("packed"))


def opened(material: Material, config: Any, slots: int, **named: Any) -> PackedSetup:
    folder = material.folder(config)
    return open_setup(material.process_cache(), config, folder, slots, slots, **named)


def test_neighbours_are_equal_to_the_bit_whatever_becomes_of_a_trial(material):
    """A trial that diverges, one that is pruned, and the trials that take their slots.

    On batches so large that a product is summed in several parts.
    """
    large = {"per_device_train_batch_size": 24}
    first, later = (
        material.config(lora=mixed["lora"], training={**mixed["training"], **large})
        for mixed in (MIXED[0], MIXED[3])
    )
    wild = material.config(training={"learning_rate": 1e30, "max_grad_norm": 0.0, **large})
    alone, _ = pack(material, first, later, slots=1)
    controls = [NullControl(), NullControl(), StopsAfter("prune", 5), NullControl()]
    folders, results = pack(material, wild, first, first, later, slots=3, controls=controls)
    assert [result.state for result in results] == ["failed", "complete", "pruned", "complete"]
    assert results[0].cause.kind == "diverged"
    assert results[2].steps == 6
    assert not folders[2].checkpoints.exists()
    for apart, together in ((alone[0], folders[1]), (alone[1], folders[3])):
        assert deviation(apart, together) <= SHARED_JOB_TOLERANCE
        ours, theirs = read_adapter(together), read_adapter(apart)
        for key, tensor in theirs.items():
            torch.testing.assert_close(
                ours[key], tensor, atol=SHARED_JOB_TOLERANCE, rtol=SHARED_JOB_TOLERANCE
            )


def test_no_number_of_one_slot_reaches_another(material):
    """To the bit on every device: in equal company, whatever the others' numbers are."""
    found = []
    for rate in (1e-3, 1e30):
        config = material.config(**MIXED[0])
        setup = opened(material, config, 3)
        engine, initial = setup.engine, setup.initializer.create(config)
        for slot in range(3):
            engine.load(slot, initial, 0.1)
        rows = [setup.data.train[index] for index in range(2)]
        numbers = []
        for step in range(1, 6):
            batches = [MicroBatch(slot, rows, [step, -step], 40) for slot in range(3)]
            losses = engine.accumulate(batches)
            settings = [
                StepSettings(step, lr, 0.0, (0.9, 0.999), 1e-6, 0.0) for lr in (rate, 1e-3, rate)
            ]
            numbers += [losses[1], engine.step(settings)[1]]
        wild = engine.bank.read(0, initial)
        assert any(not a.isfinite().all() for a, _ in wild) == (rate > 1)
        adapter = itertools.chain(*engine.bank.read(1, initial))
        found.append([torch.stack(numbers).cpu(), *adapter])
        setup.close()
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(DEVICE != "cpu", reason="elsewhere all slots go through the model at once")
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"], ids=str)
@pytest.mark.parametrize("slots", [[0, 1, 2, 3, 4], [1, 2, 3], [0, 2, 4]], ids=str)
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_slots_in_parts_give_the_bits_of_all_at_once(material, slots, targets, bf16):
    lora = {"lora_dropout": 0.1, "target_modules": targets}
    config = material.config(lora=lora, training={"bf16": bf16})
    found = []
    for tokens in (1 << 20, 1, 100):
        make_engine = partial(Engine, settings=EngineSettings(pass_tokens=tokens))
        setup = opened(material, config, 5, make_engine=make_engine)
        for slot in range(5):
            initial = setup.initializer.create(material.config(lora=lora, training={"seed": slot}))
            setup.engine.load(slot, initial, 0.1 * (slot % 2))
            torch.manual_seed(slot)
            trained = [(layer.a, 0.1 * torch.randn(layer.b.shape)) for layer in initial.layers]
            setup.engine.bank.write(slot, trained)
        rows = [setup.data.train[index] for index in range(2)]
        batches = [MicroBatch(slot, rows, [slot, -slot], 40 + slot) for slot in slots]
        losses = [setup.engine.accumulate(batches) for _ in range(2)]
        found.append([*losses, *(grad.clone() for _, grad in setup.engine.bank.blocks)])
        setup.close()
    whole, *others = found
    assert whole[0].shape == (len(slots),)
    assert sorted(set(whole[-1].flatten(1).any(dim=1).nonzero().flatten().tolist())) == slots
    for other in others:
        assert all(torch.equal(one, two) for one, two in zip(whole, other, strict=True))


@pytest.mark.parametrize("slots", [1, 2])
def test_an_interrupted_trial_resumes_in_any_slot_as_if_nothing_had_happened(material, slots):
    configs = [material.config(**MIXED[index]) for index in (2, 0)]
    straight, _ = pack(material, *configs, slots=2)
    controls = [StopsAfter("interrupt", 5), StopsAfter("interrupt", 10)]
    folders, stopped = pack(material, *configs, slots=2, controls=controls)
    assert stopped == [None, None]
    assert all((Checkpoints(folder).newest() / STATE_FILE).is_file() for folder in folders)
    train_packed(folders[::-1], slots=slots, process_cache=material.process_cache())
    for apart, resumed in zip(straight, folders, strict=True):
        assert deviation(apart, resumed) <= SHARED_JOB_TOLERANCE
        ours, theirs = read_adapter(resumed), read_adapter(apart)
        for key, tensor in theirs.items():
            torch.testing.assert_close(
                ours[key], tensor, atol=SHARED_JOB_TOLERANCE, rtol=SHARED_JOB_TOLERANCE
            )
