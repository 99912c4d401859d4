"""A frozen layer and its adapters as one function, against the plain expression."""

from __future__ import annotations

import pytest
import torch

from trial.model.dropout.lora_dropout import TensorMask
from trial.multi_lora.fused_lora import GradBuffers, lora_linear


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("drops", [False, True])
def test_output_and_gradients_equal_the_plain_expression(bias, drops):
    torch.manual_seed(0)
    x, weight, a, b, scale = (
        torch.randn(shape, dtype=torch.double)
        for shape in ((2, 5, 4), (3, 4), (2, 2, 4), (2, 3, 2), (2, 1, 1))
    )
    constant = torch.randn(3, dtype=torch.double) if bias else None
    keep = torch.randint(0, 2, x.shape) * 1.25 if drops else None
    for leaf in (x, a, b):
        leaf.requires_grad_()
    inner = (x if keep is None else x * keep) @ a.transpose(1, 2) * scale
    expected = torch.nn.functional.linear(x, weight, constant) + inner @ b.transpose(1, 2)
    mask = None if keep is None else TensorMask(keep)
    torch.testing.assert_close(lora_linear(x, weight, constant, a, b, scale, mask), expected)
    assert torch.autograd.gradcheck(
        lambda x, a, b: lora_linear(x, weight, constant, a, b, scale, mask), (x, a, b)
    )


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("drops", [False, True])
def test_output_and_gradients_are_computed_as_autocast_would(drops, buffered):
    """Two passes add up; `buffered`: the adapters' gradients do so in buffers of their own."""
    torch.manual_seed(0)
    x, a, b = torch.randn(2, 5, 64).bfloat16(), torch.randn(2, 4, 64), torch.randn(2, 32, 4)
    weight, scale = torch.randn(32, 64).bfloat16(), torch.rand(2, 1, 1)
    keep = torch.randint(0, 2, x.shape) * 1.25 if drops else None
    mask = None if keep is None else TensorMask(keep)
    leaves, outward = [leaf.requires_grad_() for leaf in (x, a, b)], torch.randn(2, 5, 32)

    def plain() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inner = x if keep is None else x.float() * keep
            inner = torch.bmm(inner, a.transpose(1, 2)) * scale
            return torch.nn.functional.linear(x, weight) + inner.bfloat16() @ b.mT

    low = [leaf.detach().bfloat16() for leaf in (a, b)]
    grads = GradBuffers(
        *(torch.zeros_like(part) for part in low), torch.zeros((), requires_grad=True)
    )

    def ours() -> torch.Tensor:
        if buffered:
            return lora_linear(x, weight, None, *low, scale, mask, torch.bfloat16, grads)
        return lora_linear(x, weight, None, a, b, scale, mask, torch.bfloat16)

    results = []
    for compute in (ours, plain):
        for leaf in leaves:
            leaf.grad = None
        for _ in range(2):
            output = compute()
            assert output.dtype == torch.bfloat16
            (output * outward).sum().backward()
        found = [leaf.grad for leaf in leaves]
        if buffered and compute is ours:
            assert found[1:] == [None, None]
            found[1:] = [grads.a.float(), grads.b.float()]
        results.append((output.float(), *found))
    for mine, expected in zip(*results, strict=True):
        assert mine.dtype == expected.dtype
        difference = (mine.float() - expected.float()).norm() / expected.float().norm()
        assert difference < 0.01


@pytest.mark.parametrize("drops", [False, True])
def test_a_small_adapters_part_of_a_float32_gradient_is_not_lost_in_rounding(drops):
    torch.manual_seed(0)
    leaf, a = torch.randn(2, 50, 64, requires_grad=True), torch.randn(2, 4, 64)
    b, weight, scale = 1e-3 * torch.randn(2, 32, 4), torch.randn(32, 64), torch.ones(2, 1, 1)
    mask = TensorMask(torch.full(leaf.shape, 1.25)) if drops else None
    outward = torch.randn(2, 50, 32)

    def gradient(b: torch.Tensor) -> torch.Tensor:
        output = lora_linear(leaf * 1.0, weight, None, a, b, scale, mask, torch.bfloat16)
        return torch.autograd.grad((output * outward).sum(), leaf)[0]

    part = gradient(b) - gradient(torch.zeros_like(b))
    expected = outward @ b @ a * (1.25 if drops else 1.0)
    assert (part - expected).norm() / expected.norm() < 0.02
