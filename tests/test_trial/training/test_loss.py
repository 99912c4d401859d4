"""The packed jobs' cross-entropy against torch's own."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from trial.data.tokens import IGNORE_INDEX
from trial.training.loss import target_cross_entropy


def test_a_tokens_loss_and_its_gradient_are_torchs_own():
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(40, 300, generator=generator) * 20).requires_grad_()
    targets = torch.randint(0, 300, (40,), generator=generator)
    targets[::3] = IGNORE_INDEX
    weights = torch.rand(40, generator=generator)
    results = []
    for nats in (
        target_cross_entropy(logits, targets),
        cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none"),
    ):
        (gradient,) = torch.autograd.grad((nats * weights).sum(), logits)
        results.append((nats.detach(), gradient))
    (ours, our_gradient), (theirs, their_gradient) = results
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(our_gradient, their_gradient, atol=1e-7, rtol=1e-5)
    assert not ours[::3].any()
    assert not our_gradient[::3].any()
