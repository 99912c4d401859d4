"""AdamW over slots against torch's own, one optimizer for each slot."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from trial.multi_lora.adamw import SlotAdamW, StepSettings

B_PARTS = [slice(10, 25), slice(38, 40)]
"""Elements that belong to a B."""


@pytest.mark.parametrize("ratio", [1.0, 8.0])
@pytest.mark.parametrize("how", [{}, {"masked": True}, {"fused": True}], ids=str)
def test_slots_step_as_torchs_own_adamw(how, ratio):
    torch.manual_seed(0)
    settings = [
        StepSettings(1, 1e-2, 0.1, (0.9, 0.999), 1e-8, 1.0, ratio),
        StepSettings(1, 1e-3, 0.0, (0.8, 0.95), 1e-6, 0.0),
        None,
    ]
    value, grad = torch.randn(3, 40), torch.zeros(3, 40)
    ours = SlotAdamW([(value, grad)], b_parts=[B_PARTS], **how)
    of_b = torch.zeros(40, dtype=torch.bool)
    for part in B_PARTS:
        of_b[part] = True
    singles = [
        [torch.nn.Parameter(value[slot][mask].clone()) for mask in (~of_b, of_b)]
        for slot in range(2)
    ]
    theirs = [
        torch.optim.AdamW(
            [{"params": a, "lr": one.lr}, {"params": b, "lr": one.lr * one.lr_ratio}],
            betas=one.betas, eps=one.eps, weight_decay=one.weight_decay,
        )
        for (a, b), one in zip(singles, settings[:2], strict=True)
    ]  # fmt: skip
    untouched = value[2].clone()
    for step in range(1, 6):
        fresh = torch.randn(3, 40) * 3
        fresh[2, step] = math.inf
        grad.copy_(fresh)
        norms = ours.step([one and dataclasses.replace(one, step=step) for one in settings])
        for slot, (single, optimizer) in enumerate(zip(singles, theirs, strict=True)):
            for parameter, mask in zip(single, (~of_b, of_b), strict=True):
                parameter.grad = fresh[slot][mask].clone()
            limit = settings[slot].max_grad_norm or math.inf
            expected = torch.nn.utils.clip_grad_norm_(single, limit)
            optimizer.step()
            assert norms[slot] == pytest.approx(expected.item(), rel=1e-5)
            for parameter, mask in zip(single, (~of_b, of_b), strict=True):
                stepped = parameter.detach()
                torch.testing.assert_close(value[slot][mask], stepped, atol=1e-6, rtol=1e-5)
    assert torch.equal(value[2], untouched)
    assert torch.equal(grad[2], fresh[2])
    assert not grad[:2].any()
