"""Output layer and cross-entropy in chunks against torch's own on whole logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.training.models import make_model
from helpers.training.train import Material
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from trial.data.tokens import IGNORE_INDEX
from trial.multi_lora.adapter_init import AdapterInitializer
from trial.multi_lora.linear_cross_entropy import (
    ChunkSizes,
    LinearCrossEntropy,
    extract_output_layer,
)


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("loss"))


def make_loss(
    out: int, inside: int, cast: Any = None, *, bias: bool = False, skip: bool = True,
    sizes: ChunkSizes | None = None,
) -> LinearCrossEntropy:  # fmt: skip
    layer = torch.nn.Linear(inside, out, bias=bias).requires_grad_(False)
    return LinearCrossEntropy(layer, cast, skip_unlabelled=skip, sizes=sizes)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(
    ("bias", "cast", "bound"),
    [(False, None, 1e-5), (True, None, 1e-5), (True, torch.bfloat16, 2e-2)],
)
def test_chunks_give_the_loss_and_gradient_of_the_whole(bias, cast, bound, skip):
    sizes = ChunkSizes(positions=7, multiple=4, logits=50 * 33)
    torch.manual_seed(0)
    ours = make_loss(50, 12, cast, bias=bias, skip=skip, sizes=sizes)
    hidden = torch.randn(3, 40, 12, requires_grad=True)
    targets = torch.randint(0, 50, (3, 40))
    targets[0, ::3] = IGNORE_INDEX
    targets[2] = IGNORE_INDEX
    weights = torch.tensor([0.3, 2.0, 1.0])
    results = []
    for nats in (
        ours.forward(hidden, targets, weights),
        torch.stack([
            weight
            * cross_entropy(ours.layer(rows), labels, ignore_index=IGNORE_INDEX, reduction="sum")
            for rows, labels, weight in zip(hidden, targets, weights, strict=True)
        ]),
    ):  # fmt: skip
        (gradient,) = torch.autograd.grad((nats * weights).sum(), hidden)
        results.append((nats.detach(), gradient))
    (found, gradient), (expected, expected_gradient) = results
    torch.testing.assert_close(found, expected, atol=bound, rtol=bound)
    torch.testing.assert_close(gradient, expected_gradient, atol=bound, rtol=bound)
    assert found[2] == 0.0
    assert not gradient[2].any()
    assert not gradient[0, ::3].any()
    with torch.no_grad():
        assert torch.equal(ours.forward(hidden, targets, weights), found)


@pytest.mark.parametrize("skip", [True, False])
def test_a_bfloat16_layers_gradient_is_rounded_where_a_trainers_is(skip):
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 300, bias=False).bfloat16().requires_grad_(False)
    hidden = torch.randn(1, 200, 64).bfloat16().requires_grad_()
    targets, weights = torch.randint(0, 300, (1, 200)), torch.tensor([1 / 200])
    loss = LinearCrossEntropy(layer, None, skip_unlabelled=skip)
    ours = loss.forward(hidden, targets, weights).sum()
    logits = layer(hidden[0]).float()
    theirs = cross_entropy(logits, targets[0], reduction="sum") / 200
    gradients = [torch.autograd.grad(one, hidden)[0] for one in (ours, theirs)]
    # A last bit in float32 now and then falls on the other side.
    assert float((gradients[0] == gradients[1]).double().mean()) > 0.98


@pytest.mark.parametrize("skip", [True, False])
def test_neighbours_labels_change_no_bit_of_a_slots_loss(skip):
    torch.manual_seed(0)
    ours = make_loss(300, 32, skip=skip)
    hidden = torch.randn(2, 500, 32, requires_grad=True)
    targets = torch.randint(0, 300, (2, 500))
    results = []
    for labelled in (500, 3):
        targets[1, labelled:] = IGNORE_INDEX
        nats = ours.forward(hidden, targets, torch.ones(2))
        (gradient,) = torch.autograd.grad(nats.sum(), hidden)
        results.append((nats.detach(), gradient))
    (many, gradient), (few, other_gradient) = results
    assert many[1] != few[1]
    assert torch.equal(many[0], few[0])
    assert torch.equal(gradient[0], other_gradient[0])


@pytest.mark.parametrize(
    ("family", "targets", "expected"),
    [("llama", ["q_proj"], True), ("gpt2", ["c_attn"], True), ("qwen2", ["q_proj"], True),
     ("llama", ["q_proj", "lm_head"], False)],
)  # fmt: skip
def test_the_output_layer_is_extracted_where_no_adapter_is_on_it(
    material, tmp_path, family, targets, expected
):
    base = AutoModelForCausalLM.from_pretrained(make_model(tmp_path, family))
    lora = {"r": 2, "target_modules": targets}
    initial = AdapterInitializer(base).create(material.config(lora=lora))
    assert_extracted(base, initial, expected)


def test_the_output_layer_stays_where_logits_are_capped(material):
    from transformers import Gemma2Config

    capped = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=16,
        num_attention_heads=2, num_key_value_heads=1, final_logit_softcapping=3.0,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_config(capped)
    initial = AdapterInitializer(base).create(material.config(lora={"r": 2}))
    assert_extracted(base, initial, False)


def assert_extracted(base: Any, initial: Any, expected: bool) -> None:
    layer = base.get_output_embeddings()
    ids = torch.randint(3, 60, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = base(input_ids=ids).logits
        with extract_output_layer(base, initial, None, {}, skip_unlabelled=True) as loss:
            assert (loss is not None) is expected
            output = base(input_ids=ids).logits
            assert torch.equal(loss.layer(output) if loss else output, logits)
        assert base.get_output_embeddings() is layer
        assert torch.equal(base(input_ids=ids).logits, logits)
