"""Products with frozen weights, by either of torch's libraries."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trial.packed import frozen

pytestmark = pytest.mark.skipif(
    not frozen.available(), reason="torch has no product of oneDNN's here"
)


@pytest.fixture
def counted(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes that oneDNN has multiplied."""
    shapes: list[tuple[int, ...]] = []
    multiply = frozen._onednn

    def seen(x, weight, bias):
        shapes.append(tuple(x.shape))
        return multiply(x, weight, bias)

    monkeypatch.setattr(frozen, "_onednn", seen)
    return shapes


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(3, 40, 96), (7, 96), (1, 1, 96)])
def test_both_libraries_find_the_same_product(counted, shape, bias):
    torch.manual_seed(0)
    layer = nn.Linear(96, 56, bias=bias).requires_grad_(False)
    x, slope = torch.randn(shape), torch.randn(*shape[:-1], 56)
    told = []
    for exact in (layer.weight.double(), layer.weight):
        x, slope = x.to(exact.dtype), slope.to(exact.dtype)
        constant = None if layer.bias is None else layer.bias.to(exact.dtype)
        with frozen.steady():
            told.append((frozen.linear(x, exact, constant), frozen.back(slope, exact)))
    assert counted == [shape, slope.shape]
    for exact, ours in zip(*told, strict=True):
        torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=1e-5)


def test_shapes_that_may_not_come_again_are_left_to_torch(counted):
    weight = torch.randn(8, 8)
    assert torch.equal(frozen.linear(weight, weight, None), nn.functional.linear(weight, weight))
    assert torch.equal(frozen.back(weight, weight), weight @ weight)
    with frozen.steady(), frozen.steady():
        pass
    frozen.linear(weight, weight, None)
    with frozen.steady():
        frozen.linear(weight.bfloat16(), weight.bfloat16(), None)
    assert not counted


@pytest.mark.parametrize(("inside", "out"), [(128, 352), (352, 128), (64, 2048), (1500, 96)])
def test_a_rows_bits_are_the_same_among_many_and_few(inside, out):
    """So that a trial's losses do not tell in which company it was trained."""
    torch.manual_seed(0)
    x, slope, weight = torch.randn(700, inside), torch.randn(700, out), torch.randn(out, inside)
    with frozen.steady():
        whole, back = frozen.linear(x, weight, None), frozen.back(slope, weight)
        for count in (2, 16, 31, 64, 100, 512):
            here = slice(5, 5 + count)
            assert torch.equal(frozen.linear(x[here], weight, None), whole[here])
            assert torch.equal(frozen.back(slope[here], weight), back[here])


def test_a_frozen_models_layers_have_their_slopes_and_become_plain_again(counted):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 5)).requires_grad_(False)
    x = torch.randn(4, 12, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    frozen.freeze(model)
    assert all(frozen.is_plain(layer) for layer in model[::2])
    with frozen.steady():
        (found,) = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(found, expected)
    assert len(counted) == 4
    frozen.thaw(model)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Tanh, nn.Linear]
