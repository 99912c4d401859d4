"""Problems of model, tokenizer and LoRA targets, by key."""

import pytest
import requests
import torch
from helpers.training.preflight import changed, only_problem
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config

from trial.config.sections import LoraSection
from trial.preflight.checks import preflight


def test_a_missing_model_folder(config, model):
    problem = only_problem(changed(config, "model", name_or_path=str(model.with_name("modle"))))
    assert (problem.key, problem.near) == ("model.name_or_path", str(model))
    problem = only_problem(changed(config, "model", name_or_path=str(model / "config.json")))
    assert "which is a file" in problem.got
    problem = only_problem(changed(config, "model", name_or_path="builtin:tiny-lama"))
    assert problem.near == "builtin:tiny-llama"
    assert only_problem(changed(config, "model", name_or_path="")).key == "model.name_or_path"
    assert only_problem(changed(config, "data", path="")).key == "data.path"
    problem = only_problem(changed(config, "model", tokenizer_name_or_path="./none"))
    assert problem.key == "model.tokenizer_name_or_path"


def test_hub_names(config, model, tmp_path, monkeypatch):
    wanted = changed(config, "model", name_or_path="org/name")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    problem = only_problem(wanted)
    assert problem.key == "model.name_or_path"
    assert "HF_HUB_OFFLINE" in problem.expected
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    nowhere = "http://127.0.0.1:9"  # nobody listens there
    head = requests.head
    monkeypatch.setattr(requests, "head", lambda url, **more: head(nowhere, **more))
    assert "cannot be reached" in only_problem(wanted).expected
    assert "cannot be reached" in only_problem(changed(config, "data", path="org/name")).expected

    repository = tmp_path / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    (repository / "snapshots").mkdir()
    model.rename(repository / "snapshots" / "abc123")
    assert preflight(wanted) == []
    assert preflight(changed(wanted, "model", revision="abc123")) == []
    assert only_problem(changed(wanted, "model", revision="other")).key == "model.name_or_path"
    assert only_problem(changed(wanted, "lora", target_modules=["qq"])).key == "lora.target_modules"


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("config.json", None, "config.json"),
        ("config.json", b"{", "line 1"),
        ("config.json", b"[]", "not a JSON object"),
        ("config.json", b"{}", "`model_type` is missing"),
        ("config.json", b'{"model_type": "bert_of_mine"}', "transformers"),
        ("config.json", b'{"model_type": "t5"}', "causal language model"),
        ("model.safetensors", None, "weights"),
        ("model.safetensors", b"", "not a safetensors file"),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}xx", "cut short"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "b.safetensors"}}', "every file"),
    ],
)
def test_damaged_model_folders(config, model, file, content, part):
    if content is None:
        (model / file).unlink()
    else:
        (model / file).write_bytes(content)
    problem = only_problem(config)
    assert problem.key == "model.name_or_path"
    assert part in str(problem)


def test_a_truncated_download_is_refused_with_its_length(config, model):
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) - 1000])
    assert f"cut short, {len(whole) - 1000} bytes of {len(whole)}" in only_problem(config).expected


def test_tokenizers(config, model, rows_file):
    template = changed(config, "data", prompt_format="chat_template")
    assert only_problem(template).key == "data.prompt_format"
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert preflight(template) == []
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    problem = only_problem(config)
    assert (problem.key, problem.got) == ("model.name_or_path", "none")
    apart = changed(config, "model", tokenizer_name_or_path="builtin:tiny-llama")
    assert preflight(apart) == []


@pytest.mark.parametrize(
    ("targets", "near"),
    [
        ("all-linear", None),
        (["q_proj", "v_proj"], None),
        (["lm_head"], None),
        (["layers.0.self_attn.q_proj"], None),
        (r".*\.(q|v)_proj", None),
        (r"model\.layers\.\d+\.mlp\.(up|down)_proj", None),
        (["q_prooj"], "q_proj"),
        (["proj"], "v_proj"),
        ("q_proj", "q_proj"),
        (r".*\.query_key_value", ""),
        ("(", ""),
    ],
)
def test_target_modules(config, targets, near):
    problems = preflight(changed(config, "lora", target_modules=targets))
    expected = [] if near is None else [("lora.target_modules", near)]
    assert [(problem.key, problem.near) for problem in problems] == expected


def test_other_module_lists(config):
    extra = LoraSection(modules_to_save=["embed_tokens", "lm_heed"])
    problem = only_problem(config.model_copy(update={"lora": extra}))
    assert (problem.key, problem.got) == ("lora.modules_to_save", "'lm_heed'")
    assert preflight(changed(config, "lora", r=0, target_modules=["none"])) == []


def test_a_family_whose_files_lack_the_models_prefix(config, tmp_path):
    folder = tmp_path / "gpt2"
    made = AutoModelForCausalLM.from_config(
        GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=32, vocab_size=16)
    )
    made.config.save_pretrained(folder)
    # As the hub's own GPT-2 has them: without `transformer.` before every name.
    tensors = {name: value.clone() for name, value in made.transformer.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    gpt2 = changed(
        config, "model", name_or_path=str(folder), tokenizer_name_or_path="builtin:tiny-llama"
    )
    gpt2 = changed(gpt2, "data", max_length=32)
    for targets in (["c_attn"], r"transformer\.h\.\d+\.attn\.c_attn"):
        assert preflight(changed(gpt2, "lora", target_modules=targets)) == []
    assert only_problem(changed(gpt2, "data", max_length=33)).key == "data.max_length"
    assert (
        only_problem(changed(gpt2, "lora", target_modules=["q_proj"])).key == "lora.target_modules"
    )


def test_weights_in_pickles_are_not_opened(config, model):
    (model / "model.safetensors").unlink()
    torch.save({}, model / "pytorch_model.bin")
    assert preflight(changed(config, "lora", target_modules=["anything"])) == []
