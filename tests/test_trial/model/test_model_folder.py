"""What a model folder says without torch: against torch and transformers."""

from transformers import AutoModelForCausalLM

from trial.builtin import model_path
from trial.model import model_folder


def test_shapes_from_headers_are_those_of_the_model():
    shapes = model_folder.ModelFolder(model_path()).tensors()
    loaded = AutoModelForCausalLM.from_pretrained(model_path()).state_dict()
    loaded.pop("lm_head.weight")  # tied
    assert shapes == {name: tuple(value.shape) for name, value in loaded.items()}


def test_causal_model_types_are_those_of_transformers():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    assert model_folder.causal_model_types() == set(NAMES)
