"""A trial's estimated memory beside its device's: refusals, warnings, published runs."""

import pytest
from helpers.training.memory import llama_trial, trial

from trial.builtin import model_path
from trial.config.trial_config import parse
from trial.devices.device_memory import DeviceMemory, card_generation
from trial.model.known_shapes import known_settings, shapes_of
from trial.model.model_folder import ModelFolder
from trial.preflight.memory_estimate import GIB, MemoryEstimate, estimate
from trial.preflight.memory_fit import MemoryFit, memory_fit, shapes_for


def fit_on(card_gib, config, name, ranks=1):
    shapes = shapes_of(known_settings(name))
    return MemoryFit(estimate(config, shapes, ranks=ranks), DeviceMemory("card", card_gib * GIB))


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
    assert fit_on(96, config, name, ranks).problem() is None


def test_a_trial_that_cannot_fit_is_refused_with_its_arithmetic():
    config = trial(model={"dtype": "bfloat16"}, training={"bf16": True})
    fit = fit_on(96, config, "meta-llama/Llama-2-70b-hf")
    problem = fit.problem()
    assert fit.too_large
    assert problem.key == "model.name_or_path"
    text = str(problem)
    assert "fits 96 GiB" in text
    assert "68,976,648,192 x 2 bytes" in text
    assert f"{68_976_648_192 * 2 / GIB:.2f}" in text
    rows = [line for line in text.splitlines() if "bytes" in line or "words" in line]
    assert len(rows) >= 4


def test_the_refusal_names_the_key_of_the_largest_part():
    large = fit_on(96, llama_trial(rows=128), "meta-llama/Llama-2-7b-hf").problem()
    assert large.key == "training.per_device_train_batch_size"
    whole = trial(lora={"r": 0}, training={"per_device_train_batch_size": 1})
    assert fit_on(96, whole, "meta-llama/Llama-2-13b-hf").problem().key == "lora.r"


def test_memory_per_device_gb_is_in_gib():
    given = memory_fit(parse({"device": "hpu"}), device_gib=24, here=False).capacity
    assert given.bytes == 24 * 1024**3
    assert given.what == "resources.memory_per_device_gb"


def test_a_trial_that_nearly_fills_its_device_is_not_refused():
    fit = MemoryFit(
        MemoryEstimate(fit_on(96, llama_trial(), "huggyllama/llama-7b").estimate.parts), None
    )
    assert not fit.nearly_full
    assert fit.device_text().endswith("not known; say resources.memory_per_device_gb (in GiB)")
    likely = fit.estimate.likely / GIB
    assert fit_on(likely / 0.95, llama_trial(), "huggyllama/llama-7b").nearly_full
    assert not fit_on(likely / 0.85, llama_trial(), "huggyllama/llama-7b").nearly_full
    assert not fit_on(likely / 0.95, llama_trial(), "huggyllama/llama-7b").too_large


def test_an_unknown_card_is_assumed_to_be_the_largest():
    config = trial(
        model={"name_or_path": "meta-llama/Llama-2-13b-hf"}, training={"optim": "adamw_torch"},
        lora={"r": 0},
    )  # fmt: skip
    fit = memory_fit(config, here=False)
    assert fit.capacity.bytes == 128 * GIB
    lighter = trial(model={"name_or_path": "meta-llama/Llama-2-13b-hf"}, data={"max_length": 1024})
    assert "Gaudi 2 has 96: too small" in memory_fit(lighter, here=False).device_text()
    assert "Gaudi 2" not in memory_fit(config, device_gib=300.0).device_text()


def test_a_models_memory_on_this_machine():
    fit = memory_fit(parse({"device": "cpu"}))
    assert not fit.too_large
    assert fit.capacity.bytes > 2**30
    two = memory_fit(parse({"device": "cpu", "zero_stage": 1}), ranks=2)
    assert two.capacity.bytes == fit.capacity.bytes / 2


@pytest.mark.parametrize(
    ("name", "card"),
    [("HL-225", "Gaudi 2"), ("HL-325L", "Gaudi 3"), ("GAUDI2", "Gaudi 2"), ("GAUDI3", "Gaudi 3"),
     ("HL-288", "Gaudi 2"), ("HL-338", "Gaudi 3"), ("HL-205", None), ("", None)],
)  # fmt: skip
def test_cards_by_the_drivers_name(name, card):
    assert card_generation(name) == card


def test_a_model_of_unknown_shapes_has_no_estimate():
    assert memory_fit(trial(model={"name_or_path": "someone/model"})) is None


def test_shapes_of_the_builtin_model():
    assert shapes_for(parse({})) == ModelFolder(model_path()).tensors()
