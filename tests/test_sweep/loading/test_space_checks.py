"""What the messages about a space suggest instead."""

from __future__ import annotations

import pytest
from helpers.sweeps.sweep_files import refused, write

DIVIDED = """
stop: {trials: 4}
space:
  training.per_device_train_batch_size: [1, 2, 4]
  training.gradient_accumulation_steps: {expression: 8 / training.per_device_train_batch_size}
"""


def test_a_fraction_of_whole_numbers_points_to_the_other_operator(tmp_path):
    (got,) = refused(write(tmp_path, DIVIDED))
    assert "`//` divides to a whole number" in got
    assert "8.0 at training.per_device_train_batch_size=1" in got


@pytest.mark.parametrize(
    ("given", "listed"),
    [
        ("{low: 1e-4, high: 1e-2, log: true}", "[0.0001, 0.00032, 0.001, 0.0032, 0.01]"),
        ("{low: 0.1, high: 0.5}", "[0.1, 0.2, 0.3, 0.4, 0.5]"),
    ],
)
def test_a_range_in_a_grid_suggests_a_list(tmp_path, given, listed):
    text = f"sampler: grid\nspace: {{training.learning_rate: {given}}}\n"
    (got,) = refused(write(tmp_path, text))
    assert f"or a list: `{listed}`" in got


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("model.load_in_4bit", "quantised base models are not supported"),
        ("lora.peft_type", "of PEFT, only LoRA is supported"),
    ],
)
def test_what_is_out_of_scope_is_said(tmp_path, key, says):
    section, _, name = key.partition(".")
    text = (
        f"base: {{{section}: {{{name}: true}}}}\nspace: {{lora.r: [4, 8]}}\nstop: {{trials: 2}}\n"
    )
    (got,) = refused(write(tmp_path, text))
    assert says in got
