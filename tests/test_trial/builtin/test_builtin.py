"""The built-in model and datasets: complete, held out, and worth tuning."""

import inspect
import logging.handlers
import math
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from trial import builtin
from trial.builtin import docs_dataset, make_tiny_llama
from trial.builtin.docs_dataset import MAX_CHARACTERS, MIN_CHARACTERS
from trial.builtin.row_cache import cached_rows
from trial.config.sections import DataConfig
from trial.data.prepare import prepare


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(builtin.model_path())


@pytest.fixture(scope="module")
def prepared(tokenizer, tmp_path_factory):
    config = DataConfig(max_length=96, max_eval_samples=96)
    return prepare(config, tokenizer, tmp_path_factory.mktemp("cache"), model_family="llama")


@pytest.fixture
def one_thread():
    """Beside other busy processes, threads that wait for one another are far slower than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def base_model():
    return AutoModelForCausalLM.from_pretrained(builtin.model_path(), torch_dtype=torch.float32)


def test_the_shipped_files_are_the_recorded_ones():
    assert builtin.content_hash(builtin.model_path()) == builtin.TINY_LLAMA_HASH
    assert sum(file.stat().st_size for file in builtin.model_path().iterdir()) < 3e6
    for file in builtin.model_path().glob("*.json"):
        assert "/work" not in file.read_text()
        assert "/tmp" not in file.read_text()


def test_the_model_accepts_the_tokenizers_output(tokenizer):
    inputs = tokenizer("What does sorted do?", return_tensors="pt")
    ids = base_model().generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=2)
    assert ids.shape[1] > inputs["input_ids"].shape[1]


def test_names_resolve():
    assert builtin.resolve_model("builtin:tiny-llama") == str(builtin.model_path())
    assert builtin.resolve_model("org/name") == "org/name"


def test_the_model_is_a_small_llama():
    model = base_model()
    assert model.config.model_type == "llama"
    assert 0.8e6 < model.num_parameters() < 1.5e6
    assert model.config.max_position_embeddings >= 512
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("text", ["def f(x):\n    return x\n", "Où ça ? 東京 🙂\t\0", ""])
def test_the_tokenizer_gives_back_every_text(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == text
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert tokenizer.eos_token_id not in ids


def test_rows_say_what_the_docstrings_say():
    answers = {
        row["question"].split("`")[1].split("(")[0]: row["answer"] for row in docs_dataset.read()
    }
    documented = {
        "shutil.copytree": shutil.copytree,
        "logging.handlers.SocketHandler.createSocket": logging.handlers.SocketHandler.createSocket,
        "shutil.SpecialFileError": shutil.SpecialFileError,
    }
    for name, thing in documented.items():
        docstring = " ".join((inspect.getdoc(thing) or "").split())
        assert docstring.startswith(answers[name])


def test_rows_are_enough_and_different():
    rows = docs_dataset.read()
    assert 1500 <= len(rows) <= 4000
    assert len({row["question"] for row in rows}) == len(rows)
    assert len({row["answer"] for row in rows}) == len(rows)
    assert all(MIN_CHARACTERS <= len(row["answer"]) <= MAX_CHARACTERS for row in rows)
    assert len({row["question"].split("`")[0] for row in rows}) >= 4


def test_rows_are_extracted_once_from_the_same_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source, calls = tmp_path / "module.py", []
    source.write_text("x = 1")

    def extract() -> list[Any]:
        calls.append(source.read_text())
        return [{"question": "x?", "answer": calls[-1]}]

    first = cached_rows("rows", [source], extract)
    assert first == [{"question": "x?", "answer": "x = 1"}]
    assert cached_rows("rows", [source], extract) == first
    source.write_text("x = 22")
    assert cached_rows("rows", [source], extract)[0]["answer"] == "x = 22"
    for broken in (tmp_path / "cache").rglob("*.json"):
        broken.write_text("[{")
    assert cached_rows("rows", [source], extract)[0]["answer"] == "x = 22"
    assert calls == ["x = 1", "x = 22", "x = 22"]


def test_rows_are_returned_where_the_cache_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cached_rows("rows", [], lambda: [{"question": "x?", "answer": "1"}])


def test_the_modules_of_the_questions_are_not_imported():
    program = (
        "import sys; from trial.builtin import docs_dataset; docs_dataset.read();"
        "print({'turtle', 'xmlrpc.server', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return the  answer\n   to everything.\n\nMore.", "Return the answer to everything."),
        ("Too short.", ""),
        (">>> print('an example, not an answer')", ""),
        ("One good sentence here. " + "x" * 200, "One good sentence here."),
        ("x" * 200, ""),
    ],
)
def test_summaries(docstring, expected):
    assert docs_dataset.summary(docstring) == expected


def test_answers_were_not_in_the_pretraining_text():
    text = " ".join(" ".join(make_tiny_llama.corpus()).split())
    answers = [row["answer"] for row in docs_dataset.read()]
    seen = [answer for answer in answers if answer in text]
    # A few answers are mere scraps, such as a usage line.
    assert len(seen) < 0.01 * len(answers)
    assert len(text) > 2e6


def test_docstrings_are_removed():
    source = (
        '"""Module."""\nimport a\nclass B:\n    """Two\n    lines."""\n    x = "kept"  # kept\n'
    )
    stripped = make_tiny_llama.without_docstrings(source)
    assert stripped == 'import a\nclass B:\n    x = "kept"  # kept\n'


def test_the_model_can_be_made(tmp_path, capsys, one_thread):
    recipe = make_tiny_llama.Recipe(steps=2, warmup=1, batch_size=2, length=16)
    make_tiny_llama.main(tmp_path, recipe, [inspect.getsource(shutil)] * 2)
    assert builtin.content_hash(tmp_path) in capsys.readouterr().out
    config = AutoModelForCausalLM.from_pretrained(tmp_path).config
    assert config.vocab_size <= make_tiny_llama.VOCABULARY
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {file.name for file in builtin.model_path().iterdir()}


@torch.no_grad()
def eval_loss(model, dataset):
    """Nats per answer token over the whole set."""
    total = count = 0.0
    model.eval()
    for batch in DataLoader(dataset, batch_size=32):
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1].float()
        total += cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        count += int((labels != -100).sum())
    model.train()
    return total / count


def tuned_loss(prepared, rank, learning_rate, steps=30):
    """Eval loss after a plain PEFT and AdamW loop of cosine decay."""
    torch.manual_seed(0)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    model = get_peft_model(base_model(), lora).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / steps)
    )
    loader = DataLoader(prepared.train, batch_size=8, shuffle=True)
    for _, batch in zip(range(steps), loader, strict=False):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return eval_loss(model, prepared.eval)


def test_lora_lowers_the_held_out_loss_and_the_learning_rate_matters(prepared, one_thread):
    base = eval_loss(base_model(), prepared.eval)
    low, good, high = (tuned_loss(prepared, 8, rate) for rate in (3e-4, 5e-3, 1e-1))
    assert 4.6 < base < 5.6
    assert good < base - 0.8
    assert good < low - 0.3
    assert good < high - 0.3
