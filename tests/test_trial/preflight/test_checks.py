"""What is known to keep a trial from starting, by key; and that a good one is let through."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config

from trial.builtin import model_path
from trial.config.sections import DataConfig, DeepSpeedSection, LoraSection, ModelConfig
from trial.config.trial_config import TrialConfig
from trial.devices import detect
from trial.model import hub, model_folder
from trial.preflight.checks import preflight

ROWS = [{"question": f"q{number}", "answer": "a"} for number in range(4)]


@pytest.fixture
def rows_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    return str(path)


@pytest.fixture
def model(tmp_path):
    """A whole small model folder of its own, to be damaged."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model_path().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def config(model, rows_file):
    return TrialConfig(
        model=ModelConfig(name_or_path=str(model)), data=DataConfig(path=rows_file, max_length=64)
    )


def changed(config, section, **values):
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def only(config, **more):
    (problem,) = preflight(config, **more)
    return problem


def test_good_trials_pass(config):
    assert preflight(TrialConfig()) == []
    assert preflight(config) == []


def test_the_check_loads_no_torch(config):
    program = (
        "import json, sys; from trial.preflight.checks import preflight;"
        "from trial.config.trial_config import parse;"
        "assert preflight(parse(json.loads(sys.argv[1]))) == [];"
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    content = json.dumps(config.model_dump(mode="json"))
    done = subprocess.run(
        [sys.executable, "-c", program, content], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_mistake_at_once(config):
    bad = changed(config, "data", path="nowhere/rows.csv", prompt_format="lama2", max_length=9999)
    bad = changed(bad, "lora", target_modules=["q_prooj", "v_proj"])
    assert {problem.key: problem.near for problem in preflight(bad)} == {
        "data.max_length": "",
        "lora.target_modules": "q_proj",
        "data.prompt_format": "llama2",
        "data.path": "",
    }


def test_a_missing_model_folder(config, model):
    problem = only(changed(config, "model", name_or_path=str(model.with_name("modle"))))
    assert (problem.key, problem.near) == ("model.name_or_path", str(model))
    problem = only(changed(config, "model", name_or_path=str(model / "config.json")))
    assert "which is a file" in problem.got
    problem = only(changed(config, "model", name_or_path="builtin:tiny-lama"))
    assert problem.near == "builtin:tiny-llama"
    assert only(changed(config, "model", name_or_path="")).key == "model.name_or_path"
    assert only(changed(config, "data", path="")).key == "data.path"
    problem = only(changed(config, "model", tokenizer_name_or_path="./none"))
    assert problem.key == "model.tokenizer_name_or_path"


def test_hub_names(config, model, tmp_path, monkeypatch):
    wanted = changed(config, "model", name_or_path="org/name")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    problem = only(wanted)
    assert problem.key == "model.name_or_path"
    assert "HF_HUB_OFFLINE" in problem.expected
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    nowhere = "http://127.0.0.1:9"  # nobody listens there
    head = requests.head
    monkeypatch.setattr(requests, "head", lambda url, **more: head(nowhere, **more))
    assert "cannot be reached" in only(wanted).expected
    assert "cannot be reached" in only(changed(config, "data", path="org/name")).expected

    repository = tmp_path / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    (repository / "snapshots").mkdir()
    model.rename(repository / "snapshots" / "abc123")
    assert preflight(wanted) == []
    assert preflight(changed(wanted, "model", revision="abc123")) == []
    assert only(changed(wanted, "model", revision="other")).key == "model.name_or_path"
    assert only(changed(wanted, "lora", target_modules=["qq"])).key == "lora.target_modules"


class Answer:
    def __init__(self, status_code, code=""):
        self.status_code = status_code
        self.headers = {"X-Error-Code": code} if code else {}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(200), ""),
        (Answer(307), ""),
        (Answer(404, "EntryNotFound"), ""),
        (Answer(401, "RepoNotFound"), "the hub says 401 RepoNotFound"),
        (Answer(403, "GatedRepo"), "the hub says 403 GatedRepo"),
    ],
)
def test_what_the_hub_says(answer, said, monkeypatch):
    asked = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(requests, "head", lambda url, **more: asked.append(url) or answer)
    assert hub.unavailable_reason("model", "org/name") == said
    assert asked == [f"{constants.ENDPOINT}/org/name/resolve/main/config.json"]


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
    problem = only(config)
    assert problem.key == "model.name_or_path"
    assert part in str(problem)


def test_a_truncated_download_is_told_by_its_length(config, model):
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) - 1000])
    assert f"cut short, {len(whole) - 1000} bytes of {len(whole)}" in only(config).expected


def test_tokenizers(config, model, rows_file):
    template = changed(config, "data", prompt_format="chat_template")
    assert only(template).key == "data.prompt_format"
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert preflight(template) == []
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    problem = only(config)
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
    problem = only(config.model_copy(update={"lora": extra}))
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
    assert only(changed(gpt2, "data", max_length=33)).key == "data.max_length"
    assert only(changed(gpt2, "lora", target_modules=["q_proj"])).key == "lora.target_modules"


def test_weights_in_pickles_are_not_opened(config, model):
    (model / "model.safetensors").unlink()
    torch.save({}, model / "pytorch_model.bin")
    assert preflight(changed(config, "lora", target_modules=["anything"])) == []


def test_shapes_from_headers_are_those_of_the_model():
    shapes = model_folder.ModelFolder(model_path()).tensors()
    loaded = AutoModelForCausalLM.from_pretrained(model_path()).state_dict()
    loaded.pop("lm_head.weight")  # tied
    assert shapes == {name: tuple(value.shape) for name, value in loaded.items()}


def test_causal_model_types_are_those_of_transformers():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    assert model_folder.causal_model_types() == set(NAMES)


def test_data_is_read_again_when_the_file_changes(config, rows_file):
    assert preflight(config) == []
    Path(rows_file).write_text(json.dumps(ROWS[0]))
    assert "two different prompts" in only(config).expected
    Path(rows_file).write_text('{"question": "q", "anser": "a"}')
    assert only(config).key == "data.completion_column"


def test_an_eval_file_is_looked_at_too(config):
    assert only(changed(config, "data", eval_path="none/x.csv")).key == "data.eval_path"


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("ds.json", '{"zero_optimization": {"stage": 2}}', None),
        ("ds.json", "[1]", "not a JSON object"),
        ("ds.json", "{'a': 1}", "line 1"),
        ("sd.json", "{}", "an existing JSON file"),
    ],
)
def test_deepspeed_files(config, tmp_path, name, content, part):
    (tmp_path / name).write_text(content)
    section = DeepSpeedSection(config=str(tmp_path / "ds.json"))
    problems = preflight(config.model_copy(update={"deepspeed": section}))
    assert [problem.key for problem in problems] == (["deepspeed.config"] if part else [])
    assert part is None or part in problems[0].expected


def test_devices(config, tmp_path, monkeypatch):
    monkeypatch.setattr(detect, "CUDA_FILES", (str(tmp_path / "nvidia0"),))
    cuda = config.model_copy(update={"device": "cuda"})
    assert only(cuda).key == "device"
    assert preflight(cuda, here=False) == []
    (tmp_path / "nvidia0").touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert preflight(cuda) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert only(cuda).key == "device"

    hpu = config.model_copy(update={"device": "hpu"})
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    if "habana_frameworks" not in sys.modules and not detect.has_gaudi_software():
        assert only(hpu).key == "device"
    (tmp_path / "habana_frameworks").mkdir()
    (tmp_path / "habana_frameworks" / "__init__.py").touch()
    assert preflight(hpu) == []


@pytest.mark.parametrize("asked", ["mlflow", ["tensorboard", "mlflow"]])
def test_a_tracker_that_is_not_installed_is_found_before_any_trial(monkeypatch, asked):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "mlflow" else there(n))
    wanted = TrialConfig(
        model=ModelConfig(name_or_path="builtin:tiny-llama"),
        data=DataConfig(path="builtin:python-docs"),
        training={"report_to": asked},
    )
    (problem,) = preflight(wanted)
    assert str(problem) == "training.report_to: an installed package 'mlflow', got 'mlflow'"
    assert preflight(wanted, here=False) == []
