"""A trial's memory by its shapes: against transformers, PEFT, torch and published figures."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from trial.builtin import model_path
from trial.config.trial_config import parse
from trial.devices.device_memory import Capacity, card_generation
from trial.model.known_shapes import known_settings, shapes_of
from trial.model.load import lora_config
from trial.model.lora_targets import adapter_parameters, saved_parameters, trained_share
from trial.model.model_folder import ModelFolder
from trial.preflight.memory_estimate import GIB, MemoryEstimate, estimate
from trial.preflight.memory_fit import MemoryFit, memory_fit, shapes_for

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
CONFIGS = {
    "llama": LlamaConfig(**GROUPED),
    "llama with biases": LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True, head_dim=16),
    "llama tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "mistral": MistralConfig(**GROUPED, head_dim=8),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=16),
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "phi": PhiConfig(**SMALL),
    "gpt2": GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64),
}
PUBLISHED = {
    "huggyllama/llama-7b": 6_738_415_616,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
}
"""Parameters, as the models' cards and index files state them."""
TARGETS = [
    {},
    {"target_modules": ["q_proj", "v_proj"], "r": 16},
    {"target_modules": r".*\.(up|down)_proj"},
    {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    {"use_dora": True},
    {"bias": "all"},
    {"bias": "lora_only", "target_modules": ["k_proj"]},
    {"modules_to_save": ["lm_head"]},
    {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 3}},
    {"exclude_modules": ["o_proj"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [1, 2]},
    {"lora_bias": True, "target_modules": ["q_proj", "o_proj"]},
    {"r": 0},
]


def model_of(name, dtype=torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]).to(dtype)


def bytes_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def trial(**sections):
    return parse({"device": "hpu", **sections})


@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_has_its_name_and_shape(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
    real = {key: tuple(value.shape) for key, value in model.named_parameters()}
    assert shapes_of(CONFIGS[name].to_dict()) == real


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_models_have_their_published_size(name):
    shapes = shapes_of(known_settings(name))
    assert sum(math.prod(shape) for shape in shapes.values()) == PUBLISHED[name]


def test_what_is_not_known_is_said_so():
    assert known_settings("someone/model") is None
    assert shapes_of({"model_type": "new"}) is None
    assert memory_fit(trial(model={"name_or_path": "someone/model"})) is None


def test_the_builtin_model_has_the_shapes_of_its_own_file():
    folder = ModelFolder(model_path())
    assert shapes_of(folder.settings()) == folder.tensors() == shapes_for(parse({}))


@pytest.mark.parametrize("lora", TARGETS)
def test_an_adapter_has_as_many_parameters_as_pefts(lora):
    config = trial(lora=lora)
    model = model_of("llama with biases")
    shapes = shapes_of(CONFIGS["llama with biases"].to_dict())
    low = adapter_parameters(shapes, config.lora)
    more = saved_parameters(shapes, config.lora)
    if not config.lora.r:
        assert (low, more) == (0, 0)
        return
    model = get_peft_model(model, lora_config(config.lora))
    assert low + more == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_gpt2s_layers_are_stored_the_other_way_round():
    config = trial(lora={"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True})
    model = get_peft_model(model_of("gpt2"), lora_config(config.lora))
    shapes = shapes_of(CONFIGS["gpt2"].to_dict())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter_parameters(shapes, config.lora) == trained


def parts(found):
    return {part.name: part for part in found.parts}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [{"r": 4}, {"r": 0}, {"r": 4, "modules_to_save": ["lm_head"]}])
def test_weights_gradients_and_states_are_those_of_a_real_model(dtype, lora):
    config = trial(model={"dtype": dtype}, lora=lora)
    model = model_of("llama", getattr(torch, dtype))
    base = bytes_of(model.parameters())
    if config.lora.r:
        model = get_peft_model(model, lora_config(config.lora))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    model(input_ids=torch.ones(1, 8, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    states = [t for s in optimizer.state.values() for n, t in s.items() if n != "step"]

    found = parts(estimate(config, shapes_of(CONFIGS["llama"].to_dict())))
    assert found["weights"].certain == base
    everything = found["weights"].certain + (found["adapter"].certain if config.lora.r else 0)
    assert everything == bytes_of(model.parameters())
    assert found["gradients"].certain == bytes_of(p.grad for p in trained)
    assert found["optimizer"].certain == bytes_of(states)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("lora", [{"r": 4}, {"target_modules": ["q_proj"]}, {"r": 0}])
def test_what_a_step_keeps_lies_between_the_two_figures(lora, attention):
    """Against what torch's own autograd saves, each storage once and parameters left out."""
    rows, length = 2, 32
    model = model_of("llama")
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

    found = parts(estimate(config, shapes_of(CONFIGS["llama"].to_dict())))["activations"]
    assert found.certain <= saved
    assert saved < 1.5 * found.likely


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
    found = parts(estimate(config, shapes, ranks=ranks))
    low = 2 * (5 + 20)
    names = ("weights", "adapter", "gradients", "optimizer")
    scaled = [expected[0], *(value * low / 10 for value in expected[1:])]
    assert [found[name].certain for name in names] == pytest.approx(scaled)


def test_offloading_leaves_nothing_of_it_on_the_device():
    section = {"offload_optimizer": "cpu", "offload_param": "cpu"}
    config = trial(zero_stage=3, deepspeed=section, training={"bf16": True})
    found = parts(estimate(config, shapes_of(known_settings("huggyllama/llama-7b"))))
    assert found["weights"].certain == found["optimizer"].likely == found["gradients"].certain == 0
    assert found["gathered weights"].certain > 0
    assert "kept on the host" in found["weights"].formula


LLAMA_2_7B = shapes_of(known_settings("meta-llama/Llama-2-7b-hf"))


def llama(rows=8, length=512, **training):
    return trial(
        model={"dtype": "bfloat16"},
        data={"max_length": length},
        lora={"r": 8, "target_modules": ["q_proj", "v_proj"]},
        training={"bf16": True, "per_device_train_batch_size": rows, **training},
    )


def test_a_step_by_hand():
    """Llama-2-7B, 8 rows of 512: outputs of a block are 5 x 4096 + 2 x 11008 numbers."""
    found = parts(estimate(llama(), LLAMA_2_7B))
    assert found["activations"].certain == 8 * 512 * (5 * 4096 + 2 * 11008) * 2 * 32
    assert found["logits"].certain == 8 * 512 * 32000 * 4
    assert found["adapter"].certain == 32 * 2 * 8 * (4096 + 4096) * 4


def test_checkpointing_keeps_one_block_and_every_blocks_input():
    found = parts(estimate(llama(gradient_checkpointing=True), LLAMA_2_7B))["activations"]
    inside = 8 * 512 * (5 * 4096 + 2 * 11008) * 2
    assert found.certain == inside + 8 * 512 * 4096 * 2 * 32


def test_twice_the_rows_take_twice_the_step_and_no_more():
    one, two = (estimate(llama(rows=rows), LLAMA_2_7B) for rows in (8, 16))
    extra = sum(parts(one)[name].certain for name in ("activations", "logits"))
    assert two.certain - one.certain == pytest.approx(extra)


def test_blocks_before_the_first_adapter_keep_nothing():
    lora = trial(lora={"target_modules": ["q_proj"], "layers_to_transform": [24]}).lora
    assert trained_share(LLAMA_2_7B, lora) == 0.25


def test_where_batches_are_cut_nothing_of_a_step_is_certain():
    found = estimate(llama(), LLAMA_2_7B, fixed_shapes=False)
    assert parts(found)["activations"].certain == 0 < parts(found)["activations"].likely


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


def on(card_gib, config, name, ranks=1):
    shapes = shapes_of(known_settings(name))
    return MemoryFit(estimate(config, shapes, ranks=ranks), Capacity("card", card_gib * GIB))


RAN = [
    # What is published as having run on a Gaudi 2: rows, length, rank, ranks, more.
    ("huggyllama/llama-7b", 16, 512, 8, 1, {}),
    ("meta-llama/Llama-2-7b-hf", 8, 512, 8, 4, {}),
    ("meta-llama/Llama-2-70b-hf", 10, 2048, 4, 8, {"zero_stage": 3}),
]


@pytest.mark.parametrize("row", RAN)
def test_what_has_run_on_a_gaudi_2_is_not_refused(row):
    name, rows, length, rank, ranks, more = row
    config = trial(
        model={"dtype": "bfloat16"},
        data={"max_length": length},
        lora={"r": rank, "target_modules": ["q_proj", "v_proj", "k_proj", "o_proj"]},
        training={
            "bf16": True,
            "per_device_train_batch_size": rows,
            "per_device_eval_batch_size": 1,
            "gradient_checkpointing": bool(more),
        },
        **more,
    )
    assert on(96, config, name, ranks).problem() is None


def test_a_trial_that_cannot_fit_is_refused_with_its_arithmetic():
    config = trial(model={"dtype": "bfloat16"}, training={"bf16": True})
    found = on(96, config, "meta-llama/Llama-2-70b-hf")
    problem = found.problem()
    assert found.too_large
    assert problem.key == "model.name_or_path"
    text = str(problem)
    assert "fits 96 GiB" in text
    assert "68,976,648,192 x 2 bytes" in text
    assert f"{68_976_648_192 * 2 / GIB:.2f}" in text
    rows = [line for line in text.splitlines() if "bytes" in line or "words" in line]
    assert len(rows) >= 4


def test_the_key_to_turn_goes_by_the_largest_part():
    large = on(96, llama(rows=128), "meta-llama/Llama-2-7b-hf").problem()
    assert large.key == "training.per_device_train_batch_size"
    whole = trial(lora={"r": 0}, training={"per_device_train_batch_size": 1})
    assert on(96, whole, "meta-llama/Llama-2-13b-hf").problem().key == "lora.r"


def test_near_the_edge_it_warns_and_does_not_refuse():
    found = MemoryFit(MemoryEstimate(on(96, llama(), "huggyllama/llama-7b").estimate.parts), None)
    assert not found.nearly_full
    assert "not known" in found.device_text()
    likely = found.estimate.likely / GIB
    assert on(likely / 0.95, llama(), "huggyllama/llama-7b").nearly_full
    assert not on(likely / 0.85, llama(), "huggyllama/llama-7b").nearly_full
    assert not on(likely / 0.95, llama(), "huggyllama/llama-7b").too_large


def test_a_card_that_nobody_knows_is_taken_for_the_largest():
    config = trial(
        model={"name_or_path": "meta-llama/Llama-2-13b-hf"}, training={"optim": "adamw_torch"},
        lora={"r": 0},
    )  # fmt: skip
    found = memory_fit(config, here=False)
    assert found.capacity.bytes == 128 * GIB
    lighter = trial(model={"name_or_path": "meta-llama/Llama-2-13b-hf"}, data={"max_length": 1024})
    assert "Gaudi 2 has 96: too small" in memory_fit(lighter, here=False).device_text()
    assert "Gaudi 2" not in memory_fit(config, device_gib=300.0).device_text()


def test_a_models_memory_on_this_machine():
    found = memory_fit(parse({"device": "cpu"}))
    assert not found.too_large
    assert found.capacity.bytes > 2**30
    two = memory_fit(parse({"device": "cpu", "zero_stage": 1}), ranks=2)
    assert two.capacity.bytes == found.capacity.bytes / 2


@pytest.mark.parametrize(
    ("name", "card"),
    [("HL-225", "Gaudi 2"), ("HL-325L", "Gaudi 3"), ("GAUDI2", "Gaudi 2"), ("GAUDI3", "Gaudi 3"),
     ("HL-288", "Gaudi 2"), ("HL-338", "Gaudi 3"), ("HL-205", None), ("", None)],
)  # fmt: skip
def test_cards_by_the_drivers_name(name, card):
    assert card_generation(name) == card
