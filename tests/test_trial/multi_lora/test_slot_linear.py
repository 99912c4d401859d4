"""The layer that applies every slot's adapter to its rows, in each of its ways to compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.training.train import Material
from transformers import AutoModelForCausalLM

from trial.multi_lora.adapter_bank import AdapterBank
from trial.multi_lora.adapter_init import AdapterInitializer, InitialAdapter
from trial.multi_lora.batch_view import make_view
from trial.multi_lora.packable import NotPackableError
from trial.multi_lora.slot_linear import SlotLinear


@pytest.fixture(scope="module")
def initial(tmp_path_factory) -> InitialAdapter:
    material = Material(tmp_path_factory.mktemp("slots"))
    base = AutoModelForCausalLM.from_pretrained(material.model)
    return AdapterInitializer(base).create(material.config(lora={"r": 2}))


def trained_bank(initial: InitialAdapter, slots: int, **named: Any) -> AdapterBank:
    """Every slot with another B."""
    bank = AdapterBank(initial, slots, 16, torch.device("cpu"), **named)
    torch.manual_seed(0)
    for slot in range(slots):
        bank.load(slot, initial, 0.0)
        bank.write(slot, [(layer.a, torch.randn(layer.b.shape)) for layer in initial.layers])
    return bank


def begin(bank: AdapterBank, slots: list[int] | None, rows: int, columns: int = 8) -> None:
    """A batch of these slots' rows; None: of all slots."""
    inputs = {"input_ids": torch.zeros(rows, columns, dtype=torch.long)}
    if slots is not None:
        inputs["slot_index"] = torch.tensor(slots)
    bank.begin_batch(make_view(inputs, bank.slots))


def plain_layer(bank: AdapterBank) -> torch.nn.Linear:
    layer = bank.layers[0]
    own = torch.nn.Linear(layer.a.shape[2], layer.b.shape[1], bias=False)
    return own.requires_grad_(False)


class OtherLinear(torch.nn.Linear):
    """A layer that is not plain, so that the adapters' product is added to its output."""


@pytest.mark.parametrize("slots", [None, [1, 2], [0, 2]], ids=str)
@pytest.mark.parametrize(("flat", "fused"), [(True, True), (True, False), (False, False)], ids=str)
def test_each_slots_rows_get_its_own_adapter(initial, slots, flat, fused):
    """All slots, adjacent ones and others; as one function or composed; gradients as well."""
    bank = trained_bank(initial, 3, flat=flat)
    layer, own = bank.layers[0], plain_layer(bank)
    if not fused:
        own.__class__ = OtherLinear
    chosen = slots or [0, 1, 2]
    begin(bank, slots, 2 * len(chosen))
    x = torch.randn(2 * len(chosen), 8, own.in_features)
    output = SlotLinear(own, layer, bank)(x)
    output.square().sum().backward()
    bank.end_batch()
    a, b = (tensor.detach().clone().requires_grad_() for tensor in (layer.a, layer.b))
    parts = [
        own(rows) + rows @ a[slot].T @ b[slot].T * float(layer.scale[slot])
        for slot, rows in zip(chosen, x.split(2), strict=True)
    ]
    expected = torch.cat(parts)
    expected.square().sum().backward()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(layer.a.grad, a.grad, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(layer.b.grad, b.grad, atol=1e-3, rtol=1e-4)


def test_a_layer_that_gets_part_of_a_batch_is_refused(initial):
    bank = AdapterBank(initial, 2, 16, torch.device("cpu"))
    begin(bank, None, 2)
    own = plain_layer(bank)
    layer = SlotLinear(own, bank.layers[0], bank)
    assert layer(torch.zeros(2, 8, own.in_features)).shape == (2, 8, own.out_features)
    with pytest.raises(NotPackableError, match="part of the batch"):
        layer(torch.zeros(6, own.in_features))


def test_a_layer_outside_autocast_has_its_adapters_in_float32(initial):
    bank = trained_bank(initial, 1, cast=torch.bfloat16)
    begin(bank, None, 1)
    layer, own = bank.layers[0], plain_layer(bank)
    ((a, b), *_) = bank.read(0, initial)
    x = torch.randn(1, 8, own.in_features)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        output = SlotLinear(own, layer, bank)(x)
    torch.testing.assert_close(output, own(x) + x @ a.T @ b.T * float(bank.scales[0, 0]))
