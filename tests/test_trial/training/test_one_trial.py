"""One trial on the real GaudiTrainer, compared with plain loops over PEFT models."""

import math

import pytest
import torch
from helpers.training.models import make_model
from helpers.training.train import DEVICE, Material, Recorder
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from trial.data.prepare import prepare
from trial.devices.device import DEVICES
from trial.train import train


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return Material(tmp_path_factory.mktemp("trial"))


def plain_eval_loss(model, config, tokenizer) -> float:
    """The eval loss row by row, as simple as it can be written."""
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in prepare(config.data, tokenizer).eval:
            inputs = {name: row[name][None] for name in ("input_ids", "attention_mask")}
            log_probabilities = model(**inputs).logits[0].double().log_softmax(-1)
            for position, label in enumerate(row["labels"][1:]):
                if label != -100:
                    total -= log_probabilities[position, label].item()
                    count += 1
    return total / count


def reload(folder, config):
    base = AutoModelForCausalLM.from_pretrained(config.model.name_or_path)
    model = PeftModel.from_pretrained(base, folder.adapter) if config.lora.r else None
    return model or AutoModelForCausalLM.from_pretrained(folder.model)


@pytest.mark.parametrize(
    ("family", "sections"),
    [
        ("llama", {"keep": "best"}),
        ("llama", {"keep": "last", "training": {"learning_rate": 1e-1}}),
        ("llama", {"keep": "best", "training": {"learning_rate": 1e-1}}),
        ("qwen2", {"lora": {"use_rslora": True, "bias": "all"}}),
        ("gpt2", {"lora": {"use_dora": True}}),
        ("llama", {"lora": {"r": 0}}),
        ("llama", {"zero_stage": 1}),
        ("llama", {"zero_stage": 2, "keep": "last"}),
        ("llama", {"zero_stage": 3}),
    ],
)
def test_the_value_is_the_eval_loss_of_the_saved_weights(material, family, sections):
    if family != "llama":
        path = material.root / family
        sections = {"model": {"name_or_path": str(make_model(path, family))}, **sections}
    config = material.config(**sections)
    folder, result = material.train(config)
    assert result.state == "complete"
    tokenizer = AutoTokenizer.from_pretrained(config.model.name_or_path)
    tokenizer.pad_token = tokenizer.eos_token
    assert plain_eval_loss(reload(folder, config), config, tokenizer) == pytest.approx(
        result.eval_loss, abs=1e-5
    )
    losses = {row.step: row.eval_loss for row in folder.read_evaluations()}
    assert result.eval_loss == (losses[20] if config.keep == "last" else min(losses.values()))
    assert losses[result.best_step] == min(losses.values())
    assert not folder.checkpoints.exists()


def order_of(config, rows: int, steps: int) -> list[list[int]]:
    """Row numbers of every batch, as GaudiTrainer and accelerate draw them: a generator seeded
    with seed + epoch, whole permutations until the last batch is full."""
    size, seed = config.training["per_device_train_batch_size"], config.training["seed"]
    batches: list[list[int]] = []
    epoch = 0
    while len(batches) < steps:
        generator = torch.Generator().manual_seed(seed + epoch)
        wanted = math.ceil(rows / size) * size
        order = torch.randperm(rows, generator=generator).tolist()
        order += torch.randperm(rows, generator=generator).tolist()
        batches += [order[i : i + size] for i in range(0, wanted, size)]
        epoch += 1
    return batches[:steps]


def test_a_plain_peft_loop_learns_the_same(material):
    config = material.config(
        lora={"r": 4, "lora_alpha": 16},
        training={"lr_scheduler_type": "linear", "warmup_ratio": 0.0, "max_steps": 25},
    )
    config = config.model_copy(update={"lora": config.lora.model_copy(update={"lora_dropout": 0})})
    _, result = material.train(config)

    tokenizer = AutoTokenizer.from_pretrained(material.model)
    tokenizer.pad_token = tokenizer.eos_token
    data = prepare(config.data, tokenizer).train
    base = AutoModelForCausalLM.from_pretrained(material.model)
    set_seed(42)
    model = get_peft_model(
        base,
        LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3, eps=1e-6, weight_decay=0.0)
    model.train()
    for step, rows in enumerate(order_of(config, len(data), 25)):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 25)
        batch = next(iter(DataLoader([data[i] for i in rows], batch_size=len(rows))))
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
        ).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert plain_eval_loss(model, config, tokenizer) == pytest.approx(
        result.metrics["last_eval_loss"], abs=1e-5
    )


@pytest.fixture(scope="module")
def without_deepspeed(material):
    folder, _result = material.train(material.config())
    return [row.eval_loss for row in folder.read_evaluations()]


@pytest.mark.parametrize(
    "sections",
    [
        {"zero_stage": 0},
        {"zero_stage": 1, "deepspeed": {"offload_optimizer": "cpu"}},
        {"zero_stage": 2},
        {"zero_stage": 3},
        {"zero_stage": 3, "deepspeed": {"offload_optimizer": "cpu", "offload_param": "cpu"}},
        {"zero_stage": 1, "training": {"gradient_checkpointing": True}},
        {"zero_stage": 3, "training": {"gradient_checkpointing": True}},
        {"training": {"gradient_checkpointing": True}},
    ],
    ids=str,
)
def test_every_way_to_save_memory_learns_the_same(material, without_deepspeed, sections):
    folder, result = material.train(material.config(**sections))
    assert result.state == "complete", result.cause
    losses = [row.eval_loss for row in folder.read_evaluations()]
    assert losses == pytest.approx(without_deepspeed, abs=1e-4)


@pytest.mark.parametrize("stage", [None, 1])
def test_two_batches_of_four_are_one_of_eight(material, stage):
    """Rows, losses, gradients and their clipping: all are those of the whole step."""
    lora = {"lora_dropout": 0.0}
    training = {"logging_steps": 1, "max_grad_norm": 0.05, "label_smoothing_factor": 0.1}
    halves = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, **training}
    one, _ = material.train(material.config(lora=lora, training=training, zero_stage=stage))
    two, _ = material.train(material.config(lora=lora, training=halves, zero_stage=stage))
    for lines in (lambda f: f.read_evaluations(), lambda f: f.read_train_logs()):
        values = [getattr(row, "eval_loss", None) or row.loss for row in lines(one)]
        assert [getattr(row, "eval_loss", None) or row.loss for row in lines(two)] == pytest.approx(
            values, abs=2e-4
        )


def test_bf16_is_not_a_silent_no_op_on_cpu(material, without_deepspeed):
    folder, _result = material.train(material.config(training={"bf16": True}))
    losses = [row.eval_loss for row in folder.read_evaluations()]
    assert losses != without_deepspeed
    assert losses == pytest.approx(without_deepspeed, abs=0.02)


def test_the_last_step_is_evaluated_once_whatever_the_interval(material):
    config = material.config(training={"max_steps": 7, "eval_steps": 3, "eval_on_start": True})
    folder, result = material.train(config, recorder := Recorder())
    steps = [row.step for row in folder.read_evaluations()]
    assert steps == [0, 3, 6, 7] == [row.step for row in recorder.evaluations]
    assert result.initial_eval_loss == folder.read_evaluations()[0].eval_loss
    assert recorder.starts == [(DEVICES[DEVICE].label(), 7)]


def test_epochs_are_evaluated_at_their_ends_and_the_last_step_once(material):
    config = material.config(
        training={"max_steps": -1, "num_train_epochs": 1.5, "eval_strategy": "epoch"}
    )
    _folder, result = material.train(config, recorder := Recorder())
    assert [row.step for row in recorder.evaluations] == [11, 17]
    assert result.steps == result.max_steps == 17


def test_counts_are_those_of_the_model_and_the_data(material):
    config = material.config(lora={"target_modules": ["q_proj"]}, training={"max_steps": 11})
    folder, result = material.train(config)
    # Two layers, 4 x 32 down and 32 x 4 up each.
    assert result.trainable_parameters == 2 * (4 * 32 + 32 * 4)
    base = AutoModelForCausalLM.from_pretrained(material.model)
    assert result.total_parameters == base.num_parameters() + result.trainable_parameters
    tokenizer = AutoTokenizer.from_pretrained(material.model)
    tokenizer.pad_token = tokenizer.eos_token
    data = prepare(config.data, tokenizer).train
    used = [i for batch in order_of(config, len(data), 11) for i in batch]
    assert result.tokens == sum(int(data[i]["attention_mask"].sum()) for i in used)
    assert 50e6 < result.peak_memory_bytes < 8e9
    assert result.seconds.total > 0
    assert result.seconds.eval > 0
    assert result.seconds.first_step > 0
    logs = folder.read_train_logs()
    assert [row.step for row in logs] == [5, 10]
    assert logs[0].learning_rate > logs[1].learning_rate > 0


def test_a_folder_with_a_result_is_not_trained_again(material):
    folder, result = material.train(material.config(training={"max_steps": 2}))
    before = folder.metrics.read_bytes()
    assert train(folder, None, material.process_cache()) == result
    assert folder.metrics.read_bytes() == before
    assert len(folder.read_attempts()) == 1
