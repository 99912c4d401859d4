"""Exports: what is written, that it is measured, that a failed one leaves nothing."""

import json
import os
import shutil
import sys

import pytest
import torch
from helpers.training.models import make_model
from helpers.training.train import Material
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from trial.data.prepare import prepare
from trial.export import __main__ as command
from trial.export.merge import merged_model
from trial.export.prompt import apply_format
from trial.export.write import export
from trial.model.load import load_tokenizer
from trial.store.folders import TrialFolder

SHORT = {"max_steps": 4, "eval_steps": 4, "logging_steps": 4, "save_strategy": "no"}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return Material(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def adapter(material):
    """A finished trial with an adapter."""
    return material.train(material.config(data={"prompt_format": "llama2"}, training=SHORT))


@pytest.fixture(scope="module")
def whole(material):
    """A finished trial without: `r: 0`, over a base with odd generation settings."""
    base = make_model(material.root / "odd")
    (base / "generation_config.json").write_text('{"temperature": 0.9, "eos_token_id": 1}')
    return material.train(
        material.config(model={"name_or_path": str(base)}, lora={"r": 0}, training=SHORT)
    )


def test_the_adapter_is_measured_and_its_card_says_so(adapter, tmp_path):
    folder, result = adapter
    measured = export(folder, tmp_path / "out")
    assert measured.loss == pytest.approx(result.eval_loss, abs=1e-5)
    assert "PEFT" in measured.libraries
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| held-out loss | {result.eval_loss:.4f} nats" in card
    assert f"| measured again | {measured.loss:.4f} over {measured.tokens} tokens, by PEFT" in card
    assert "prompt format `llama2`" in card
    assert "[INST] QUESTION [/INST]" in card
    content = json.loads((tmp_path / "out" / "prompt_format.json").read_text())
    assert content["prompt_format"] == "llama2"
    assert content["question_start"] == "[INST] "


def test_a_whole_model_with_odd_generation_settings_is_trained_and_exported(whole, tmp_path):
    folder, result = whole
    assert result.state == "complete"
    measured = export(folder, tmp_path / "out")
    assert measured.loss == pytest.approx(result.eval_loss, abs=1e-5)
    assert "PEFT" not in measured.libraries


def test_an_export_that_is_another_model_is_refused_and_leaves_nothing(adapter, tmp_path, capsys):
    folder, result = adapter
    copy = TrialFolder(shutil.copytree(folder.path, tmp_path / "trial"))
    weights = copy.adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    save_file({name: 3 * tensor for name, tensor in tensors.items()}, weights)
    copy.write_result(result)  # It names the new weights.
    sys_argv = ["export", str(copy.path), str(tmp_path / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", sys_argv)
        assert command.main() == 2
    message = capsys.readouterr().err
    assert "the export is not the trained model" in message
    assert f"{result.eval_loss:.4f}" in message
    assert os.listdir(tmp_path) == ["trial"]
    # Unmeasured, it is the user's decision; the card says so.
    assert export(copy, tmp_path / "out", verified=False) is None
    assert "| measured again | not measured |" in (tmp_path / "out" / "README.md").read_text()


def test_a_merge_that_fails_leaves_nothing_and_can_be_tried_again(adapter, tmp_path, monkeypatch):
    folder, _ = adapter

    def disk_full(model, target, state=None):
        (target / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("trial.model.whole_model.save_model", disk_full)
        with pytest.raises(OSError, match="No space"):
            export(folder, tmp_path / "out", merge=True, verified=False)
    assert os.listdir(tmp_path) == []
    export(folder, tmp_path / "out", merge=True, verified=False)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="exists already"):
        export(folder, tmp_path / "out", merge=True, verified=False)


def test_a_damaged_adapter_is_refused_in_a_sentence(adapter, tmp_path):
    folder, _ = adapter
    copy = TrialFolder(shutil.copytree(folder.path, tmp_path / "trial"))
    (copy.adapter / "adapter_model.safetensors").unlink()
    (copy.adapter / "adapter_model.safetensors").write_bytes(b"no tensors")
    copy.write_result(copy.read_result())
    with pytest.raises(ValueError, match="cannot merge this adapter"):
        export(copy, tmp_path / "out", merge=True)
    assert os.listdir(tmp_path) == ["trial"]


def test_the_type_of_merged_weights_can_be_chosen(adapter):
    folder, _ = adapter
    config = folder.read_config()
    half = merged_model(config, folder.adapter, "bfloat16").state_dict()
    whole = merged_model(config, folder.adapter).state_dict()
    assert {tensor.dtype for tensor in half.values()} == {torch.bfloat16}
    for name, tensor in whole.items():
        # Rounded once, from the sum in float32, where the base is representable.
        torch.testing.assert_close(half[name].float(), tensor, rtol=2**-7, atol=1e-3)


CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "what is red?"},
    {"role": "assistant", "content": "red stone"},
    {"role": "user", "content": "what is old {{ moon }}?"},
    {"role": "assistant", "content": 'old "moon"'},
]


@pytest.mark.parametrize("tokenize", ["together", "apart"])
@pytest.mark.parametrize("name", ["question_answer", "llama2", "llama3", "qwen", "plain"])
def test_the_exported_template_writes_what_was_trained_on(material, tmp_path, name, tokenize):
    rows = tmp_path / "chat.jsonl"
    rows.write_text("".join(
        json.dumps({"messages": [{**turn, "content": f"{turn['content']} {n}"} for turn in CHAT]})
        + "\n" for n in range(8)
    ))  # fmt: skip
    config = material.config(
        data={
            "path": str(rows),
            "prompt_format": name,
            "max_length": 400,
            "eval_fraction": 0.9,
            "tokenize": tokenize,
            "train_on": "last",
        }
    )
    trained = load_tokenizer(config.model)
    held_out = prepare(config.data, trained).eval
    apply_format(trained, name, together=tokenize == "together")
    trained.save_pretrained(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    seen = set()
    for index in range(len(held_out)):
        row = held_out[index]
        ids = row["input_ids"][row["attention_mask"].bool()].tolist()
        number = next(n for n in range(8) if f"moon }}}}? {n}" in tokenizer.decode(ids))
        turns = [{**turn, "content": f"{turn['content']} {number}"} for turn in CHAT]

        if tokenize == "together":
            assert tokenizer.apply_chat_template(turns) == ids
        assert tokenizer.apply_chat_template(turns, tokenize=False) == tokenizer.decode(ids)
        masked = [-100, *row["labels"][: len(ids)].tolist()]
        answer = max(n for n in range(len(ids)) if masked[n] < 0 <= masked[n + 1])
        prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True)
        assert prompt == ids[:answer]
        seen.add(number)
    assert len(seen) >= 4


def test_damaged_weights_are_not_exported(adapter, tmp_path):
    source, _ = adapter
    folder = TrialFolder(shutil.copytree(source.path, tmp_path / "trial"))
    weights = folder.adapter / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"adapter_model.safetensors has other content"):
        export(folder, tmp_path / "out", verified=False)
    assert not (tmp_path / "out").exists()


OWN = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<bot>{% generation %}{{ m.content }}"
    "{{ eos_token }}{% endgeneration %}{% else %}<{{ m.role }}>{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


def test_the_users_own_template_goes_along_unless_it_has_changed(material, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(OWN)
    config = material.config(data={"chat_template": str(file)}, training=SHORT)
    folder, result = material.train(config)
    assert result.data.format_words == "chat_template mine.jinja"
    measured = export(folder, tmp_path / "out")
    assert measured.loss == pytest.approx(result.eval_loss, abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == OWN
    content = json.loads((tmp_path / "out" / "prompt_format.json").read_text())
    assert content == {"prompt_format": "chat_template", "chat_template": "mine.jinja"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "<user>QUESTION<bot>" in card
    assert "prompt format `chat_template mine.jinja`" in card

    file.write_text(OWN.replace("bot", "reply"))
    with pytest.raises(ValueError, match="the chat template has changed since the trial"):
        export(folder, tmp_path / "later", verified=False)
    assert not (tmp_path / "later").exists()
