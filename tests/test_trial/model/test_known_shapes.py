"""Weight shapes by `config.json`: against transformers and published parameter counts."""

import math

import pytest
import torch
from helpers.training.models import ARCHITECTURES
from transformers import AutoModelForCausalLM

from trial.builtin import model_path
from trial.model.known_shapes import known_settings, shapes_of
from trial.model.model_folder import ModelFolder

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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_has_its_name_and_shape(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(ARCHITECTURES[name])
    expected = {key: tuple(value.shape) for key, value in model.named_parameters()}
    assert shapes_of(ARCHITECTURES[name].to_dict()) == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_models_have_their_published_size(name):
    shapes = shapes_of(known_settings(name))
    assert sum(math.prod(shape) for shape in shapes.values()) == PUBLISHED[name]


def test_unknown_models_have_no_shapes():
    assert known_settings("someone/model") is None
    assert shapes_of({"model_type": "new"}) is None


def test_the_builtin_model_has_the_shapes_of_its_file():
    folder = ModelFolder(model_path())
    assert shapes_of(folder.settings()) == folder.tensors()
