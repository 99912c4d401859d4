"""Products with frozen weights, by either of torch's libraries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.models import make_mixtral
from helpers.train import DEVICE, Material
from torch import nn

from trial.multi_lora import engine, linear_cross_entropy, onednn_linear
from trial.packed.setup import PackedSetup, open_setup

pytestmark = pytest.mark.skipif(
    not onednn_linear.available(), reason="torch has no product of oneDNN's here"
)


@pytest.fixture
def counted(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes that oneDNN has multiplied."""
    shapes: list[tuple[int, ...]] = []
    multiply = onednn_linear._onednn

    def seen(x, weight, bias):
        shapes.append(tuple(x.shape))
        return multiply(x, weight, bias)

    monkeypatch.setattr(onednn_linear, "_onednn", seen)
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
        with onednn_linear.steady(1):
            told.append(
                (onednn_linear.linear(x, exact, constant), onednn_linear.back(slope, exact))
            )
    assert counted == [shape, slope.shape]
    for exact, ours in zip(*told, strict=True):
        torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=1e-5)


def test_shapes_that_may_not_come_again_are_left_to_torch(counted):
    weight = torch.randn(8, 8)
    assert torch.equal(
        onednn_linear.linear(weight, weight, None), nn.functional.linear(weight, weight)
    )
    assert torch.equal(onednn_linear.back(weight, weight), weight @ weight)
    with onednn_linear.steady(8):
        pass
    onednn_linear.linear(weight, weight, None)
    with onednn_linear.steady(8):
        onednn_linear.linear(weight.bfloat16(), weight.bfloat16(), None)
    assert not counted


@pytest.mark.parametrize(("inside", "out"), [(128, 352), (352, 128), (64, 2048), (1500, 96)])
def test_a_rows_bits_are_the_same_among_many_and_few(inside, out):
    """So that a trial's losses do not tell in which company it was trained."""
    torch.manual_seed(0)
    x, slope, weight = torch.randn(700, inside), torch.randn(700, out), torch.randn(out, inside)
    with onednn_linear.steady(700):
        whole, back = onednn_linear.linear(x, weight, None), onednn_linear.back(slope, weight)
        for count in (2, 16, 31, 64, 100, 512):
            here = slice(5, 5 + count)
            assert torch.equal(onednn_linear.linear(x[here], weight, None), whole[here])
            assert torch.equal(onednn_linear.back(slope[here], weight), back[here])


def test_a_frozen_models_layers_have_their_slopes_and_become_plain_again(counted):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 5)).requires_grad_(False)
    x = torch.randn(4, 12, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    onednn_linear.freeze(model)
    assert all(onednn_linear.is_plain(layer) for layer in model[::2])
    for positions in (4, 3):
        with onednn_linear.steady(positions):
            (found,) = torch.autograd.grad(model[1:](model[0](input=x)).square().sum(), x)
        torch.testing.assert_close(found, expected)
        # Forward and backward of each layer; a pass over three positions has other shapes.
        assert len(counted) == 4
    onednn_linear.thaw(model)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Tanh, nn.Linear]


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("frozen"))


def opened(material: Material, **sections: Any) -> PackedSetup:
    """Four slots with adapters on a part of the layers."""
    config = material.config(lora={"r": 4, "target_modules": ["q_proj", "v_proj"]}, **sections)
    stand = open_setup(material.process_cache(), config, material.folder(config), 4, 4)
    for slot in range(4):
        stand.engine.load(slot, stand.initializer.draw(config), 0.0)
    return stand


def passes(stand: PackedSetup, count: int) -> Iterator[None]:
    """Training passes, each with other rows."""
    for turn in range(count):
        rows = [stand.data.train[2 * turn + row] for row in range(2)]
        stand.engine.accumulate([(slot, rows, [0, 1], 40) for slot in range(4)])
        yield


@pytest.mark.skipif(DEVICE != "cpu", reason="elsewhere torch has one library")
@pytest.mark.parametrize(("enough", "parts"), [(1 << 20, {4}), (1, {1})])
def test_a_job_multiplies_in_few_shapes_and_leaves_the_base_model_plain(
    material, counted, monkeypatch, enough, parts
):
    monkeypatch.setattr(engine, "ENOUGH", enough)
    stand = opened(material)
    base, width = stand.engine.base, stand.engine.columns
    list(passes(stand, 3))
    # Adapted layers see slots apart, the others rows of the batch, the output layer pieces.
    slots = {shape for shape in counted if shape[:-1] in {(n, 2 * width) for n in parts}}
    rows = {shape for shape in counted if shape[:-1] in {(2 * n, width) for n in parts}}
    pieces = {shape for shape in counted if len(shape) == 2}
    assert slots
    assert rows
    assert pieces
    assert slots | rows | pieces == set(counted)
    assert all(count % linear_cross_entropy.EVEN == 0 for count, _ in pieces)
    stand.close()
    assert not any(type(part) is onednn_linear.FrozenLinear for part in base.modules())


@pytest.mark.skipif(DEVICE != "cpu", reason="elsewhere torch has one library")
def test_evaluations_in_many_shapes_are_left_to_torch(material, counted, monkeypatch):
    stand = opened(material)
    batches = list(stand.eval_batches(4))
    found = []
    for given, few in ((batches, 100), (batches, 0), (iter(batches), 100)):
        counted.clear()
        monkeypatch.setattr(engine, "FEW", few)
        found.append((stand.engine.evaluate(0, given, lambda: None), bool(counted)))
    (fast, first), (plain, second), (same, third) = found
    assert (first, second, third) == (True, False, False)
    assert plain == same
    assert fast == pytest.approx(plain, rel=1e-6)
    stand.close()


@pytest.mark.skipif(DEVICE != "cpu", reason="elsewhere torch has one library")
def test_experts_whose_shapes_differ_from_pass_to_pass_are_left_to_torch(
    material, counted, tmp_path
):
    stand = opened(material, model={"name_or_path": str(make_mixtral(tmp_path, material.model))})
    found = []
    for _ in passes(stand, 4):
        found.append({shape for shape in counted if len(shape) > 2})
    assert found[0]
    assert found[-1] == found[0]
    positions = {torch.Size(shape[:-1]).numel() for shape in found[0]}
    assert positions == {4 * 2 * stand.engine.columns}
    stand.close()
