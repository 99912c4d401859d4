"""The private names of torch that packed trials depend on are there, and do what they did."""

from __future__ import annotations

import functools

import pytest
import torch

from trial.devices import compat_torch
from trial.multi_lora import onednn_linear


@pytest.mark.parametrize("name", compat_torch.PRIVATE_NAMES)
def test_torch_has_the_name(name):
    path = name.split(".")[1:]
    try:
        functools.reduce(getattr, path, torch)
    except AttributeError:
        tested = compat_torch.TESTED_TORCH
        pytest.fail(f"torch {torch.__version__} has lost {name}, which torch {tested} has")


@pytest.mark.skipif(not onednn_linear.available(), reason="torch has no product of oneDNN's here")
def test_onednns_product_is_the_linear_layers():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(5, 12), torch.randn(7, 12), torch.randn(7)
    for constant in (None, bias):
        expected = torch.nn.functional.linear(x, weight, constant)
        torch.testing.assert_close(compat_torch.mkldnn_linear(x, weight, constant), expected)


def test_a_module_computes_with_other_tensors_and_gets_its_parameters_back():
    linear = torch.nn.Linear(3, 2)
    weight, x = linear.weight, torch.ones(1, 3)
    with compat_torch.parameters_replaced(linear, {"weight": torch.zeros(2, 3)}):
        torch.testing.assert_close(linear(x), linear.bias.unsqueeze(0))
    assert linear.weight is weight
    with pytest.raises(ZeroDivisionError), compat_torch.parameters_replaced(linear, {"bias": x}):
        raise ZeroDivisionError
    assert isinstance(linear.bias, torch.nn.Parameter)


def test_torchs_checkpointing_has_the_parameter_that_optimum_habanas_copy_lacks():
    assert compat_torch.checkpoint_generator_stops_early()
