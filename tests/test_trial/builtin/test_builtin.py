"""The built-in model: complete, small, and worth tuning on the built-in dataset."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from trial import builtin
from trial.config.sections import DataConfig
from trial.data.prepare import prepare


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(builtin.model_path())


@pytest.fixture(scope="module")
def prepared(tokenizer, tmp_path_factory):
    config = DataConfig(max_length=96, max_eval_samples=96)
    return prepare(config, tokenizer, tmp_path_factory.mktemp("cache"), model_family="llama")


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
