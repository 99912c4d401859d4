"""LoRA dropout's hashed mask: the right share, no pattern, the same however a step is divided."""

from __future__ import annotations

import math

import pytest
import torch

from trial.model.dropout import lora_dropout
from trial.model.dropout.dropout_hash import KEEP_ALL, row_key, threshold
from trial.model.dropout.lora_dropout import BatchPositions, HashDropout, feature_keys, keep_mask

CPU = torch.device("cpu")


def mask_deviations(p: float, steps: int = 30) -> torch.Tensor:
    """[steps, rows, columns, features]: 1 - p where kept, -p where dropped."""
    positions, masks = BatchPositions(), []
    for step in range(steps):
        positions.set([row_key(7, step, row) for row in range(6)], 64, CPU)
        masks.append(keep_mask(positions.keys, feature_keys(2, 96), threshold(p)))
    return torch.stack(masks).double() - (1 - p)


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_the_share_is_right_and_neighbours_are_independent(p):
    values = mask_deviations(p)
    variance = p * (1 - p)
    deviations = [float(values.mean()) * math.sqrt(values.numel() / variance)]
    for axis in range(4):
        first, second = (values.narrow(axis, start, values.shape[axis] - 1) for start in (0, 1))
        deviations.append(float((first * second).mean()) / variance * math.sqrt(first.numel()))
    # Standard deviations of five independent looks at fair draws.
    assert max(map(abs, deviations)) < 4.5


def test_seeds_steps_rows_and_layers_differ_and_the_same_position_does_not():
    positions = BatchPositions()

    def kept(seed: int, step: int, row: int, layer: int) -> torch.Tensor:
        positions.set([row_key(seed, step, row)], 16, CPU)
        return keep_mask(positions.keys, feature_keys(layer, 32), threshold(0.5))

    base = kept(1, 0, 0, 0)
    assert torch.equal(base, kept(1, 0, 0, 0))
    for other in ((2, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1)):
        assert 0.3 < (base == kept(*other)).double().mean() < 0.7


def test_a_row_is_dropped_alike_in_any_batch():
    keys = [row_key(3, 5, row) for row in range(4)]
    x = torch.randn(4, 12, 8)
    whole, part = BatchPositions(), BatchPositions()
    whole.set(keys, 12, CPU)
    part.set(keys[2:], 9, CPU)
    first = HashDropout(0.3, whole, 1, 8)(x)
    second = HashDropout(0.3, part, 1, 8)(x[2:, :9])
    assert torch.equal(first[2:, :9], second)


def test_kept_elements_are_scaled_up_and_evaluation_drops_nothing():
    positions = BatchPositions()
    positions.set([row_key(0, 0, 0)], 8, CPU)
    dropout = HashDropout(0.25, positions, 0, 8)
    ones = torch.ones(1, 8, 8)
    assert dropout(ones).unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert dropout.bfloat16()(ones).unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(dropout.eval()(ones), ones)
    assert threshold(0.0) == KEEP_ALL
    assert bool(keep_mask(positions.keys, feature_keys(0, 8), KEEP_ALL).all())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a kernel")
def test_without_a_kernel_dropout_goes_on_step_by_step_and_says_so(caplog):
    with caplog.at_level("WARNING"):
        assert lora_dropout.triton_kernel.__wrapped__(torch.device("cuda")) is None
    assert "step by step" in caplog.text
    positions = BatchPositions()
    positions.set([row_key(0, 0, 0)], 8, CPU)
    limits = torch.tensor(threshold(0.5), dtype=torch.int32).view(1, 1, 1)
    mask = lora_dropout.dropout_mask(
        positions.keys, feature_keys(0, 8), limits, torch.tensor(2.0).view(1, 1, 1)
    )
    ones = torch.ones(1, 8, 8)
    assert mask.apply(ones, torch.bfloat16).unique().tolist() == [0.0, 2.0]
    total = ones.bfloat16()
    mask.add_to(total, ones.bfloat16())
    assert torch.equal(total, ones + mask.apply(ones, torch.float32))
