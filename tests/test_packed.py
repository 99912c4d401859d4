"""Packed trials equal solo ones: GaudiTrainer's own runs, and a plain PEFT and AdamW loop."""

from __future__ import annotations

import json
import math
import shutil
from typing import Any

import pytest
import torch
from helpers_train import Material
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trial.checkpoints import Checkpoints
from trial.control import Free
from trial.folder import TrialFolder
from trial.packed import floor, job
from trial.packed.adamw import Rule, SlotAdamW
from trial.packed.job import train_packed
from trial.packed.skeleton import NotPackableError
from trial.packed.slot import STATE
from trial.sharing import share_key, why_alone

FLOAT32 = 2e-5
"""Packed and solo losses part by at most this in float32, over twenty steps at usual rates."""

MIXED: list[dict[str, Any]] = [
    {"lora": {"r": 4, "lora_dropout": 0.1}, "training": {"seed": 1}},
    {
        "lora": {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0},
        "training": {"learning_rate": 1e-3, "seed": 2, "weight_decay": 0.1, "max_steps": 13},
    },
    {
        "lora": {"r": 2, "lora_alpha": 32, "lora_dropout": 0.3, "use_rslora": True},
        "training": {"seed": 3, "gradient_accumulation_steps": 2, "max_grad_norm": 0.3},
    },
    {
        "lora": {"r": 16},
        "training": {"num_train_epochs": 2, "max_steps": -1, "eval_on_start": True},
    },
]
"""Ranks, scales, dropout, rates, schedules, lengths and accumulation all differ."""


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def solo(material) -> list[tuple[TrialFolder, Any]]:
    return [material.train(material.config(**sections)) for sections in MIXED]


def lines(folder: TrialFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def deviation(first: TrialFolder, second: TrialFolder) -> float:
    """Largest difference of any number that both logged; they must have logged alike."""
    worst = 0.0
    for one, two in zip(lines(first), lines(second), strict=True):
        assert {**one, **two}.keys() == one.keys()
        for name, value in one.items():
            if name in ("step", "tokens", "kind"):
                assert two[name] == value
            elif isinstance(value, float) and name not in ("train_seconds", "time"):
                apart = abs(value - two[name])
                # The training loss is written with four digits: a last one may fall either way.
                rounding = name == "loss" and apart == pytest.approx(1e-4)
                worst = max(worst, 0.0 if rounding else apart)
    return worst


def adapter(folder: TrialFolder) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder.adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("slots", [1, 3])
def test_mixed_trials_end_as_their_solo_runs(material, solo, slots):
    folders = [material.folder(material.config(**sections)) for sections in MIXED]
    results = train_packed(folders, slots=slots, bench=material.bench())
    for (alone, expected), folder, result in zip(solo, folders, results, strict=True):
        assert deviation(alone, folder) < FLOAT32
        assert result.value == pytest.approx(expected.value, abs=FLOAT32)
        for name in ("state", "steps", "max_steps", "best_step", "tokens", "data_hash"):
            assert getattr(result, name) == getattr(expected, name)
        for name in ("trainable_parameters", "total_parameters", "model_hash"):
            assert getattr(result, name) == getattr(expected, name)
        ours, theirs = adapter(folder), adapter(alone)
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            torch.testing.assert_close(ours[key], tensor, atol=1e-4, rtol=1e-3)


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "lora": st.fixed_dictionaries(
                    {
                        "r": st.integers(1, 16),
                        "lora_alpha": st.sampled_from([1.0, 8.0, 32.0]),
                        "lora_dropout": st.sampled_from([0.0, 0.05, 0.5]),
                        "use_rslora": st.booleans(),
                        "target_modules": st.just(["q_proj", "v_proj", "down_proj"]),
                    }
                ),
                "training": st.fixed_dictionaries(
                    {
                        "max_steps": st.integers(1, 9),
                        "eval_steps": st.integers(2, 5),
                        "learning_rate": st.floats(1e-4, 5e-3),
                        "warmup_ratio": st.sampled_from([0.0, 0.3]),
                        "weight_decay": st.sampled_from([0.0, 0.1]),
                        "lr_scheduler_type": st.sampled_from(["linear", "cosine", "constant"]),
                        "gradient_accumulation_steps": st.sampled_from([1, 3]),
                        "adam_beta2": st.sampled_from([0.95, 0.999]),
                        "seed": st.integers(0, 99),
                    }
                ),
            }
        ),
        min_size=2,
        max_size=3,
    )
)
def test_any_trials_end_as_their_solo_runs(material, drawn):
    configs = [material.config(**sections) for sections in drawn]
    folders = [material.folder(config) for config in configs]
    train_packed(folders, slots=2, bench=material.bench())
    for config, folder in zip(configs, folders, strict=True):
        alone, _ = material.train(config)
        assert deviation(alone, folder) < FLOAT32


def test_a_packed_trial_equals_a_plain_peft_and_adamw_loop(material):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup, set_seed

    steps, rate = 12, 3e-3
    training = {"max_steps": steps, "learning_rate": rate, "logging_steps": 1, "warmup_ratio": 0.25}
    sections = {"lora": {"r": 4, "lora_dropout": 0.0}, "training": training}
    other = {"lora": {"r": 9, "lora_dropout": 0.2}, "training": {"learning_rate": 1e-2}}
    config = material.config(**sections)
    folder = material.folder(config)
    bench = material.bench()
    train_packed([material.folder(material.config(**other)), folder], slots=2, bench=bench)

    base = AutoModelForCausalLM.from_pretrained(material.model)
    set_seed(config.training["seed"])
    lora = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, eps=1e-6, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(0.25 * steps), steps)
    data = bench.prepared(config, "").train
    order: list[int] = []
    for epoch in range(5):
        # The last step of an epoch is filled up with rows drawn anew.
        generator = torch.Generator().manual_seed(42 + epoch)
        drawn = [torch.randperm(len(data), generator=generator) for _ in range(2)]
        order += torch.cat(drawn)[: -(-len(data) // 8) * 8].tolist()
    for step, logged in enumerate(line for line in lines(folder) if "loss" in line):
        rows = [data[row] for row in order[step * 8 : step * 8 + 8]]
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        loss = model(**batch).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        assert logged["loss"] == pytest.approx(loss.item(), abs=1e-4)
        assert logged["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        assert logged["learning_rate"] == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


class Stops(Free):
    """Asks a trial to stop after an evaluation at some step."""

    def __init__(self, reason: Any, step: int) -> None:
        self.reason, self.step, self.heard = reason, step, 0

    def evaluated(self, folder: TrialFolder, evaluation: Any) -> None:
        self.heard = evaluation.step

    def stop_reason(self, folder: TrialFolder) -> Any:
        return self.reason if self.heard >= self.step else None


def test_neighbours_are_equal_to_the_bit_whatever_becomes_of_a_trial(material):
    """A trial that diverges, one that is pruned, and the trials that take their slots."""
    steady, later = material.config(**MIXED[0]), material.config(**MIXED[3])
    wild = material.config(training={"learning_rate": 1e30, "max_grad_norm": 0.0})
    quiet = [material.folder(steady), material.folder(later)]
    train_packed(quiet, slots=1, bench=material.bench())
    folders = [material.folder(config) for config in (wild, steady, steady, later)]
    controls = [Free(), Free(), Stops("prune", 5), Free()]
    results = train_packed(folders, slots=3, bench=material.bench(), controls=controls)
    assert [result.state for result in results] == ["failed", "complete", "pruned", "complete"]
    assert results[0].cause.kind == "diverged"
    assert results[2].steps == 6
    assert not folders[2].checkpoints.exists()
    for apart, together in ((quiet[0], folders[1]), (quiet[1], folders[3])):
        assert deviation(apart, together) == 0.0
        for key, tensor in adapter(apart).items():
            assert torch.equal(adapter(together)[key], tensor)


@pytest.mark.parametrize("slots", [1, 2])
def test_an_interrupted_trial_goes_on_in_any_slot_as_if_nothing_had_happened(material, slots):
    configs = [material.config(**MIXED[index]) for index in (2, 0)]
    straight = [material.folder(config) for config in configs]
    train_packed(straight, slots=2, bench=material.bench())
    folders = [material.folder(config) for config in configs]
    controls = [Stops("interrupt", 5), Stops("interrupt", 10)]
    stopped = train_packed(folders, slots=2, bench=material.bench(), controls=controls)
    assert stopped == [None, None]
    assert all((Checkpoints(folder).newest() / STATE).is_file() for folder in folders)
    train_packed(folders[::-1], slots=slots, bench=material.bench())
    for apart, resumed in zip(straight, folders, strict=True):
        assert deviation(apart, resumed) == 0.0
        assert torch.equal(*(next(iter(adapter(f).values())) for f in (apart, resumed)))


def test_running_out_of_memory_halves_the_slots_and_loses_nothing(material, monkeypatch):
    configs = [material.config(**MIXED[index]) for index in (0, 3, 0, 3)]
    apart = [material.folder(config) for config in configs[:2]]
    train_packed(apart, slots=1, bench=material.bench())
    accumulate = floor.Engine.accumulate
    turns = iter(range(1000))

    def crowded(engine: Any, shares: Any) -> Any:
        if len(shares) > 2 and next(turns) >= 4:
            raise torch.OutOfMemoryError("CUDA out of memory (a test)")
        return accumulate(engine, shares)

    monkeypatch.setattr(floor.Engine, "accumulate", crowded)
    folders = [material.folder(config) for config in configs]
    results = train_packed(folders, slots=4, bench=material.bench())
    assert [result.state for result in results] == ["complete"] * 4
    for index, folder in enumerate(folders):
        assert deviation(apart[index % 2], folder) == 0.0


def test_a_fault_of_the_whole_lets_each_trial_train_alone(material, monkeypatch):
    def broken(engine: Any, shares: Any) -> Any:
        raise RuntimeError("shapes do not agree")

    monkeypatch.setattr(floor.Engine, "accumulate", broken)
    folders = [material.folder(material.config()) for _ in range(2)]
    with pytest.raises(RuntimeError, match="do not agree"):
        train_packed(folders, slots=2, bench=material.bench())
    assert not any(folder.read_result() for folder in folders)


def test_a_model_with_dropout_of_its_own_is_not_packed(material, tmp_path):
    shutil.copytree(material.model, tmp_path / "model")
    about = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**about, "attention_dropout": 0.1}))
    config = material.config(model={"name_or_path": str(tmp_path / "model")}, packed=True)
    with pytest.raises(NotPackableError):
        train_packed([material.folder(config)], slots=2, bench=material.bench())
    _, result = material.train(config)
    assert result.state == "complete"


def test_slots_step_as_torchs_own_adamw():
    torch.manual_seed(0)
    rules = [
        Rule(1, 1e-2, 0.1, (0.9, 0.999), 1e-8, 1.0),
        Rule(1, 1e-3, 0.0, (0.8, 0.95), 1e-6, 0.0),
        None,
    ]
    value, grad = torch.randn(3, 40), torch.zeros(3, 40)
    ours = SlotAdamW([(value, grad)])
    singles = [torch.nn.Parameter(value[slot].clone()) for slot in range(2)]
    theirs = [
        torch.optim.AdamW([p], lr=rule.rate, betas=rule.betas, eps=rule.epsilon,
                          weight_decay=rule.decay)
        for p, rule in zip(singles, rules[:2], strict=True)
    ]  # fmt: skip
    untouched = value[2].clone()
    for step in range(1, 6):
        fresh = torch.randn(3, 40) * 3
        grad.copy_(fresh)
        norms = ours.step([rule and Rule(step, *_rest(rule)) for rule in rules])
        for slot, (single, optimizer) in enumerate(zip(singles, theirs, strict=True)):
            single.grad = fresh[slot].clone()
            limit = rules[slot].max_norm or math.inf
            expected = torch.nn.utils.clip_grad_norm_([single], limit)
            optimizer.step()
            assert norms[slot] == pytest.approx(expected.item(), rel=1e-5)
            torch.testing.assert_close(value[slot], single.detach(), atol=1e-6, rtol=1e-5)
    assert torch.equal(value[2], untouched)
    assert torch.equal(grad[2], fresh[2])


def _rest(rule: Rule) -> tuple[Any, ...]:
    return rule.rate, rule.decay, rule.betas, rule.epsilon, rule.max_norm


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({1: 1.0, 2: 2.0}, 1),
        ({1: 1.0, 2: 1.2, 4: 1.4, 8: 2.7}, 4),
        ({1: 1.0, 2: 1.1, 4: None}, 2),
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0, 16: 1.0}, 16),
        ({1: 1.0, 2: 1.0, 4: 1.0, 6: 1.0}, 6),
    ],
)
def test_as_many_slots_as_pay(times, expected):
    assert floor.pays(times.__getitem__, max(times)) == expected


def test_the_number_of_slots_is_measured_where_nobody_says(material):
    folders = [material.folder(material.config(**MIXED[0])) for _ in range(3)]
    desk = job._Listed([job.Entry(folder, Free()) for folder in folders])
    job.PackedJob(desk, material.bench(), 0, limit=2).run()
    assert desk.slots in (1, 2)
    alone = material.folder(material.config(**MIXED[0]))
    train_packed([alone], slots=1, bench=material.bench())
    assert all(deviation(alone, folder) == 0.0 for folder in folders)


def test_what_may_share_a_job(material):
    base = material.config(packed=True)
    same = material.config(packed=True, lora={"r": 16}, training={"learning_rate": 1e-4, "seed": 9})
    assert share_key(base) == share_key(same) is not None
    others = [
        {"lora": {"r": 17}},
        {"lora": {"target_modules": ["q_proj"]}},
        {"training": {"per_device_train_batch_size": 4}},
        {"data": {"max_length": 32}},
        {"model": {"dtype": "bfloat16"}},
    ]
    keys = {share_key(material.config(packed=True, **sections)) for sections in others}
    assert len(keys | {share_key(base)}) == len(others) + 1
    assert share_key(material.config()) is None
    alone = [
        {"lora": {"r": 0}},
        {"lora": {"use_dora": True}},
        {"lora": {"modules_to_save": ["lm_head"]}},
        {"zero_stage": 1},
        {"training": {"gradient_checkpointing": True}},
        {"training": {"lr_scheduler_type": "reduce_lr_on_plateau"}},
    ]
    for sections in alone:
        config = material.config(packed=True, **sections)
        assert share_key(config) is None
        assert why_alone(config)
