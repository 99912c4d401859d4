"""Products with frozen weights, by either of torch's libraries."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from helpers.training.models import make_mixtral
from helpers.training.train import DEVICE, Material
from torch import nn

from trial.devices import compat_torch
from trial.multi_lora import onednn_linear
from trial.multi_lora.engine import Engine, EngineSettings, MicroBatch
from trial.multi_lora.linear_cross_entropy import ChunkSizes
from trial.packed.setup import PackedSetup, open_setup

pytestmark = pytest.mark.skipif(
    not onednn_linear.available(), reason="torch has no product of oneDNN's here"
)


@pytest.fixture
def counted(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes that oneDNN has multiplied."""
    shapes: list[tuple[int, ...]] = []
    multiply = compat_torch.mkldnn_linear

    def counting(x, weight, bias):
        shapes.append(tuple(x.shape))
        return multiply(x, weight, bias)

    monkeypatch.setattr(compat_torch, "mkldnn_linear", counting)
    return shapes


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(3, 40, 96), (7, 96), (1, 1, 96)])
def test_both_libraries_find_the_same_product(counted, shape, bias):
    torch.manual_seed(0)
    layer = nn.Linear(96, 56, bias=bias).requires_grad_(False)
    x, gradient = torch.randn(shape), torch.randn(*shape[:-1], 56)
    results = []
    for exact in (layer.weight.double(), layer.weight):
        x, gradient = x.to(exact.dtype), gradient.to(exact.dtype)
        constant = None if layer.bias is None else layer.bias.to(exact.dtype)
        with onednn_linear.recurring_shape(1):
            results.append(
                (
                    onednn_linear.linear(x, exact, constant),
                    onednn_linear.input_gradient(gradient, exact),
                )
            )
    assert counted == [shape, gradient.shape]
    for exact, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=1e-5)


def test_shapes_that_may_not_come_again_are_left_to_torch(counted):
    weight = torch.randn(8, 8)
    assert torch.equal(
        onednn_linear.linear(weight, weight, None), nn.functional.linear(weight, weight)
    )
    assert torch.equal(onednn_linear.input_gradient(weight, weight), weight @ weight)
    with onednn_linear.recurring_shape(8):
        pass
    onednn_linear.linear(weight, weight, None)
    with onednn_linear.recurring_shape(8):
        onednn_linear.linear(weight.bfloat16(), weight.bfloat16(), None)
    assert not counted


@pytest.mark.parametrize(("inside", "out"), [(128, 352), (352, 128), (64, 2048), (1500, 96)])
def test_a_rows_bits_are_the_same_among_many_and_few(inside, out):
    """So that a trial's losses do not depend on which others it was trained with."""
    torch.manual_seed(0)
    x, gradient, weight = torch.randn(700, inside), torch.randn(700, out), torch.randn(out, inside)
    with onednn_linear.recurring_shape(700):
        whole, whole_gradient = (
            onednn_linear.linear(x, weight, None),
            onednn_linear.input_gradient(gradient, weight),
        )
        for count in (2, 16, 31, 64, 100, 512):
            here = slice(5, 5 + count)
            assert torch.equal(onednn_linear.linear(x[here], weight, None), whole[here])
            assert torch.equal(
                onednn_linear.input_gradient(gradient[here], weight), whole_gradient[here]
            )


def test_a_frozen_models_layers_have_their_gradients_and_become_plain_again(counted):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 5)).requires_grad_(False)
    x = torch.randn(4, 12, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    onednn_linear.freeze_linears(model)
    assert all(onednn_linear.is_plain_linear(layer) for layer in model[::2])
    for positions in (4, 3):
        with onednn_linear.recurring_shape(positions):
            (found,) = torch.autograd.grad(model[1:](model[0](input=x)).square().sum(), x)
        torch.testing.assert_close(found, expected)
        # Forward and backward of each layer; a pass over three positions has other shapes.
        assert len(counted) == 4
    onednn_linear.restore_linears(model)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Tanh, nn.Linear]


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("frozen"))


def opened(
    material: Material, settings: EngineSettings | None = None, **sections: Any
) -> PackedSetup:
    """Four slots with adapters on a part of the layers."""
    config = material.config(lora={"r": 4, "target_modules": ["q_proj", "v_proj"]}, **sections)
    setup = open_setup(
        material.process_cache(), config, material.folder(config), 4, 4,
        make_engine=partial(Engine, settings=settings),
    )  # fmt: skip
    for slot in range(4):
        setup.engine.load(slot, setup.initializer.create(config), 0.0)
    return setup


def passes(setup: PackedSetup, count: int) -> Iterator[None]:
    """Training passes, each with other rows."""
    for number in range(count):
        rows = [setup.data.train[2 * number + row] for row in range(2)]
        setup.engine.accumulate([MicroBatch(slot, rows, [0, 1], 40) for slot in range(4)])
        yield


@pytest.mark.skipif(DEVICE != "cpu", reason="elsewhere torch has one library")
@pytest.mark.parametrize(("tokens", "slots_at_once"), [(1 << 20, {4}), (1, {1})])
def test_a_job_multiplies_in_few_shapes_and_leaves_the_base_model_plain(
    material, counted, tokens, slots_at_once
):
    setup = opened(material, EngineSettings(pass_tokens=tokens))
    base, width = setup.engine.base, setup.engine.columns
    list(passes(setup, 3))
    # Adapted layers see slots apart, the others rows of the batch, the output layer chunks.
    slots = {shape for shape in counted if shape[:-1] in {(n, 2 * width) for n in slots_at_once}}
    rows = {shape for shape in counted if shape[:-1] in {(2 * n, width) for n in slots_at_once}}
    chunks = {shape for shape in counted if len(shape) == 2}
    assert slots
    assert rows
    assert chunks
    assert slots | rows | chunks == set(counted)
    assert all(count % ChunkSizes().multiple == 0 for count, _ in chunks)
    setup.close()
    assert not any(type(part) is onednn_linear.FrozenLinear for part in base.modules())


@pytest.mark.skipif(DEVICE != "cpu", reason="elsewhere torch has one library")
def test_evaluations_in_many_shapes_are_left_to_torch(material, counted):
    found = []
    for kept, most in ((True, 100), (True, 0), (False, 100)):
        setup = opened(material, EngineSettings(recurring_eval_shapes=most))
        batches = list(setup.eval_batches(4))
        counted.clear()
        given = batches if kept else iter(batches)
        found.append((setup.engine.evaluate(0, given, lambda: None), bool(counted)))
        setup.close()
    (fast, first), (plain, second), (same, third) = found
    assert (first, second, third) == (True, False, False)
    assert plain == same
    assert fast == pytest.approx(plain, rel=1e-6)


@pytest.mark.skipif(DEVICE != "cpu", reason="elsewhere torch has one library")
def test_experts_whose_shapes_differ_from_pass_to_pass_are_left_to_torch(
    material, counted, tmp_path
):
    setup = opened(material, model={"name_or_path": str(make_mixtral(tmp_path, material.model))})
    found = []
    for _ in passes(setup, 4):
        found.append({shape for shape in counted if len(shape) > 2})
    assert found[0]
    assert found[-1] == found[0]
    positions = {torch.Size(shape[:-1]).numel() for shape in found[0]}
    assert positions == {4 * 2 * setup.engine.columns}
    setup.close()
