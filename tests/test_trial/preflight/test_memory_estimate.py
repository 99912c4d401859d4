"""A trial's memory by its shapes: against transformers, PEFT and torch, and by hand."""

import pytest
import torch
from helpers.training.memory import llama_trial, trial
from helpers.training.models import ARCHITECTURES, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model

from trial.model.float32_weights import hold_in_float32
from trial.model.known_shapes import known_settings, shapes_of
from trial.model.load import lora_config
from trial.preflight.memory_estimate import estimate


def bytes_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def parts(memory):
    return {part.name: part for part in memory.parts}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [{"r": 4}, {"r": 0}, {"r": 4, "modules_to_save": ["lm_head"]}])
def test_weights_gradients_and_states_are_those_of_a_real_model(dtype, lora):
    config = trial(model={"dtype": dtype}, lora=lora)
    model = tiny_model("llama", getattr(torch, dtype))
    base = bytes_of(model.parameters())
    if config.lora.r:
        model = get_peft_model(model, lora_config(config.lora))
    hold_in_float32(model)
    if not config.lora.r:
        base = bytes_of(model.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    model(input_ids=torch.ones(1, 8, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    states = [t for s in optimizer.state.values() for n, t in s.items() if n != "step"]

    memory = parts(estimate(config, shapes_of(ARCHITECTURES["llama"].to_dict())))
    assert memory["weights"].certain == base
    everything = memory["weights"].certain + (memory["adapter"].certain if config.lora.r else 0)
    assert everything == bytes_of(model.parameters())
    assert memory["gradients"].certain == bytes_of(p.grad for p in trained)
    assert memory["optimizer"].certain == bytes_of(states)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("lora", [{"r": 4}, {"target_modules": ["q_proj"]}, {"r": 0}])
def test_what_a_step_keeps_lies_between_the_two_figures(lora, attention):
    """Against what torch's own autograd saves, each storage once and parameters left out."""
    rows, length = 2, 32
    model = tiny_model("llama")
    model.set_attn_implementation(attention)
    config = trial(
        model={"attn_implementation": attention},
        lora=lora,
        data={"max_length": length},
        training={"per_device_train_batch_size": rows, "per_device_eval_batch_size": 1},
    )
    if config.lora.r:
        model = get_peft_model(model, lora_config(config.lora))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model(input_ids=torch.ones(rows, length, dtype=torch.long))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = sum(size for pointer, size in kept.items() if pointer not in weights)
    assert hidden.logits.requires_grad

    memory = parts(estimate(config, shapes_of(ARCHITECTURES["llama"].to_dict())))["activations"]
    assert memory.certain <= saved
    assert saved < 1.5 * memory.likely


SPREAD = [
    # stage, ranks, weights, adapter, gradients, optimizer: bytes for 100 base and 10 adapter
    # parameters in bfloat16, by hand.
    (None, 1, 200, 40, 40, 80),
    (0, 4, 200, 20, 20, 120 / 4),
    (1, 4, 200, 20, 20, 120 / 4),
    (2, 4, 200, 20, 20 / 4, 120 / 4),
    (3, 4, 200 / 4, 20 / 4, 20 / 4, 120 / 4),
    (3, 1, 200, 20, 20, 120),
]


@pytest.mark.parametrize("row", SPREAD)
def test_zero_spreads_by_its_stage(row):
    stage, ranks, *expected = row
    shapes = {"model.layers.0.a.weight": (5, 20)}
    lora = {"r": 2, "rank_pattern": {}, "target_modules": ["a"]}
    config = trial(
        model={"dtype": "bfloat16"}, training={"bf16": True}, lora=lora, zero_stage=stage
    )
    memory = parts(estimate(config, shapes, ranks=ranks))
    low = 2 * (5 + 20)
    names = ("weights", "adapter", "gradients", "optimizer")
    scaled = [expected[0], *(value * low / 10 for value in expected[1:])]
    assert [memory[name].certain for name in names] == pytest.approx(scaled)


def test_offloading_leaves_nothing_of_it_on_the_device():
    section = {"offload_optimizer": "cpu", "offload_param": "cpu"}
    config = trial(zero_stage=3, deepspeed=section, training={"bf16": True})
    memory = parts(estimate(config, shapes_of(known_settings("huggyllama/llama-7b"))))
    kept = (memory["weights"].certain, memory["optimizer"].likely, memory["gradients"].certain)
    assert kept == (0, 0, 0)
    assert memory["gathered weights"].certain > 0
    assert "kept on the host" in memory["weights"].formula


LLAMA_2_7B = shapes_of(known_settings("meta-llama/Llama-2-7b-hf"))


def test_a_step_by_hand():
    """Llama-2-7B, 8 rows of 512: outputs of a block are 5 x 4096 + 2 x 11008 numbers."""
    memory = parts(estimate(llama_trial(), LLAMA_2_7B))
    assert memory["activations"].certain == 8 * 512 * (5 * 4096 + 2 * 11008) * 2 * 32
    assert memory["logits"].certain == 8 * 512 * 32000 * 4
    assert memory["adapter"].certain == 32 * 2 * 8 * (4096 + 4096) * 4


def test_checkpointing_keeps_one_block_and_every_blocks_input():
    memory = parts(estimate(llama_trial(gradient_checkpointing=True), LLAMA_2_7B))["activations"]
    inside = 8 * 512 * (5 * 4096 + 2 * 11008) * 2
    assert memory.certain == inside + 8 * 512 * 4096 * 2 * 32


def test_twice_the_rows_take_twice_the_step_and_no_more():
    one, two = (estimate(llama_trial(rows=rows), LLAMA_2_7B) for rows in (8, 16))
    extra = sum(parts(one)[name].certain for name in ("activations", "logits"))
    assert two.certain - one.certain == pytest.approx(extra)


def test_where_batches_are_cut_nothing_of_a_step_is_certain():
    memory = estimate(llama_trial(), LLAMA_2_7B, fixed_shapes=False)
    assert parts(memory)["activations"].certain == 0 < parts(memory)["activations"].likely


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([None, 0, 1, 2, 3]),
    st.sampled_from([1, 2, 8]),
    st.sampled_from(["float32", "bfloat16"]),
    st.booleans(),
    st.integers(0, 64),
    st.integers(1, 64),
)
def test_what_is_certain_is_never_more_than_what_is_likely(stage, ranks, dtype, half, rank, rows):
    config = trial(
        model={"dtype": dtype},
        zero_stage=stage,
        lora={"r": rank},
        training={"bf16": half, "per_device_train_batch_size": rows},
    )
    for part in estimate(config, LLAMA_2_7B, ranks=ranks).parts:
        assert 0 <= part.certain <= part.likely, part
