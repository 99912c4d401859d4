"""Packed trials equal solo ones: GaudiTrainer's own runs, and a plain PEFT and AdamW loop."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
import time
from typing import Any

import pytest
import torch
from helpers.models import make_mixtral, make_model
from helpers.train import DEVICE, Material
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from trial.config.packing_rules import packing_key, unpackable_reason
from trial.data.tokens import IGNORE_INDEX
from trial.devices import device as devices
from trial.model.lora_dropout import TensorMask
from trial.multi_lora import adamw, engine, linear_cross_entropy
from trial.multi_lora.adamw import Rule, SlotAdamW
from trial.multi_lora.adapter_bank import AdapterBank, SlotLinear
from trial.multi_lora.adapter_init import AdapterInitializer, NotPackableError
from trial.multi_lora.fused_lora import GradBuffers, adapted
from trial.multi_lora.linear_cross_entropy import LinearCrossEntropy, taken
from trial.packed import setup, slot_count
from trial.packed.job import PackedJob, train_packed
from trial.packed.slot import STATE
from trial.packed.trial_source import ListTrialSource, PackedTrial
from trial.store.control import NullControl
from trial.store.folders import TrialFolder
from trial.training.checkpoints import Checkpoints
from trial.training.loss import target_cross_entropy

FLOAT32 = 2e-5
"""Packed and solo losses part by at most this in float32, over twenty steps at usual rates."""
BFLOAT16 = 2e-3
"""The same in bfloat16, whose numbers are 8e-3 apart."""
COMPANY = 0.0 if DEVICE == "cpu" else FLOAT32
"""A packed trial parts from itself in other company by this: a GPU's libraries choose their kernels
by a batch's size, and round otherwise."""

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


def once(folder: TrialFolder) -> list[dict[str, Any]]:
    """What a folder has logged; of a step that was done again the last word."""
    return list({(line["kind"], line["step"]): line for line in lines(folder)}.values())


def deviation(first: TrialFolder, second: TrialFolder, read: Any = lines) -> float:
    """Largest difference of any number that both logged; they must have logged alike."""
    worst = 0.0
    for one, two in zip(read(first), read(second), strict=True):
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
    results = train_packed(folders, slots=slots, process_cache=material.process_cache())
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


def test_a_device_is_asked_for_losses_only_where_they_are_written(material, solo, monkeypatch):
    away = dataclasses.replace(devices.DEVICES[DEVICE], free_reads=False)
    monkeypatch.setitem(devices.DEVICES, DEVICE, away)
    waits: list[int] = []
    read = PackedJob._read_losses

    def counted(job: PackedJob) -> None:
        waits.append(len(job._unread))
        read(job)

    monkeypatch.setattr(PackedJob, "_read_losses", counted)
    folders = [material.folder(material.config(**sections)) for sections in MIXED]
    train_packed(folders, slots=3, process_cache=material.process_cache())
    for (alone, _), folder in zip(solo, folders, strict=True):
        assert deviation(alone, folder) < FLOAT32
    assert max(waits) > 1


class Again:
    """A recording's stand-in, where nothing can be recorded: it does the same anew."""

    made = 0
    played = 0

    def __init__(self, body: Any, earlier: Any) -> None:
        self.body = body
        Again.made += 1

    def replay(self) -> None:
        Again.played += 1
        self.found = self.body()

    def clone(self) -> torch.Tensor:
        return self.found


def let_record(monkeypatch: Any, record: Any) -> None:
    device = devices.DEVICES[DEVICE]
    monkeypatch.setitem(
        devices.DEVICES, DEVICE, dataclasses.replace(device, free_reads=False, record=record)
    )


@pytest.fixture
def record(monkeypatch):
    """The device's own way to record, or its stand-in."""
    monkeypatch.setattr(Again, "made", 0)
    monkeypatch.setattr(Again, "played", 0)
    own = devices.DEVICES[DEVICE].record

    def counted(body: Any, earlier: Any) -> tuple[Any, Any]:
        again = Again(body, earlier)
        return (again, again) if own is None else own(body, earlier)

    return counted


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bf16"])
def test_passes_that_are_played_back_are_the_passes(material, record, monkeypatch, low):
    """Slots that come and go, dropout here and there, evaluations of batches of several widths."""
    configs = [
        material.config(**{**sections, "training": {**sections.get("training", {}), "bf16": low}})
        for sections in (*MIXED, *MIXED[::-1])
    ]
    folders: list[list[TrialFolder]] = []
    for way in (None, record):
        let_record(monkeypatch, way)
        folders.append([material.folder(config) for config in configs])
        train_packed(folders[-1], slots=3, process_cache=material.process_cache())
    assert Again.made > 3
    assert DEVICE != "cpu" or Again.played > 10 * Again.made
    for plain, recorded in zip(*folders, strict=True):
        assert deviation(plain, recorded) <= COMPANY
    base = material.process_cache()._base
    assert base.config._attn_implementation == "sdpa"


def test_what_a_device_still_works_on_is_training(material, monkeypatch):
    """A device that is 50 ms behind its host whenever it is waited for."""
    own = devices.DEVICES[DEVICE]

    def late() -> None:
        own.synchronise()
        time.sleep(0.05)

    behind = dataclasses.replace(own, free_reads=False, synchronise=late)
    monkeypatch.setitem(devices.DEVICES, DEVICE, behind)
    training = {"logging_steps": 20, "eval_steps": 4, "max_steps": 20}
    (result,) = train_packed(
        [material.folder(material.config(training=training))],
        slots=1,
        process_cache=material.process_cache(),
    )
    assert result.seconds.train > 5 * 0.05


def test_where_recording_fails_passes_are_launched_as_ever(material, monkeypatch, caplog):
    def broken(body: Any, earlier: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    apart, together = (material.folder(material.config(**MIXED[0])) for _ in range(2))
    let_record(monkeypatch, None)
    train_packed([apart], slots=1, process_cache=material.process_cache())
    let_record(monkeypatch, broken)
    train_packed([together], slots=1, process_cache=material.process_cache())
    assert deviation(apart, together) <= COMPANY
    (said,) = [line for line in caplog.messages if "kernel by kernel" in line]
    assert "not permitted" in said


def test_recordings_go_before_slots_do_when_memory_runs_out(material, record, monkeypatch):
    let_record(monkeypatch, record)
    whole = setup.Engine.accumulate
    turns = []

    def crowded(engine: Any, shares: Any) -> Any:
        turns.append(engine.bank.slots)
        if len(turns) == 9:
            raise torch.OutOfMemoryError("CUDA out of memory (a test)")
        return whole(engine, shares)

    configs = [material.config(**MIXED[0]) for _ in range(2)]
    apart = material.folder(configs[0])
    train_packed([apart], slots=1, process_cache=material.process_cache())
    monkeypatch.setattr(setup.Engine, "accumulate", crowded)
    folders = list(map(material.folder, configs))
    results = train_packed(folders, slots=2, process_cache=material.process_cache())
    assert [result.state for result in results] == ["complete"] * 2
    assert set(turns) == {2}
    for folder in folders:
        assert deviation(apart, folder, once) <= COMPANY


@pytest.mark.parametrize(
    ("family", "change", "expected"),
    [
        ("llama", {}, True),
        ("gpt2", {}, True),
        ("qwen2", {"sliding_window": 8, "layer_types": ["sliding_attention"] * 2}, False),
        ("llama", {"_attn_implementation": "eager"}, False),
    ],
)
def test_attention_without_a_mask_where_that_is_the_same(tmp_path, family, change, expected):
    from trial.multi_lora.causal_attention import causal_only

    base = AutoModelForCausalLM.from_pretrained(make_model(tmp_path, family))
    for name, value in change.items():
        setattr(base.config, name, value)
    ids = torch.randint(3, 60, (2, 16), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        whole = base(**inputs).logits
        with causal_only(base) as same:
            assert same is expected
            assert torch.equal(base(**inputs).logits, whole)
        assert torch.equal(base(**inputs).logits, whole)


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
                        "lr_scheduler_type": st.sampled_from(
                            ["linear", "cosine", "constant", "polynomial"]
                        ),
                        "max_grad_norm": st.sampled_from([0.0, 0.05, 1.0]),
                        "adam_epsilon": st.sampled_from([1e-6, 1e-4]),
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
    train_packed(folders, slots=2, process_cache=material.process_cache())
    for config, folder in zip(configs, folders, strict=True):
        alone, _ = material.train(config)
        assert deviation(alone, folder) < FLOAT32


@pytest.mark.parametrize(
    ("schedule", "more"),
    [
        ("polynomial", {"lr_end": 1e-3}),
        ("cosine_with_min_lr", {"min_lr": 1e-3}),
        ("warmup_stable_decay", {"num_decay_steps": 5}),
        ("cosine_with_restarts", {"num_cycles": 2}),
    ],
)
def test_a_schedule_is_the_trainers_own(material, schedule, more):
    """Some end at a rate that is given as such, not as a share of the first."""
    training = {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": more, "warmup_steps": 3}
    config = material.config(training={**training, "logging_steps": 1})
    alone, _ = material.train(config)
    folder = material.folder(config)
    train_packed([folder], slots=1, process_cache=material.process_cache())
    assert deviation(alone, folder) < FLOAT32


def test_evaluations_at_chosen_steps_alone_packed_or_not(material):
    """An epoch ends within the trial, and at its end."""
    config = material.config(
        evaluation={"steps": [3, 7, 11, 90]},
        training={"num_train_epochs": 2, "max_steps": -1, "eval_steps": 2},
    )
    alone, result = material.train(config)
    folder = material.folder(config)
    train_packed([folder], slots=1, process_cache=material.process_cache())
    last = result.steps
    assert 11 < last < 90
    for one in (alone, folder):
        assert [shown.step for shown in one.read_evaluations()] == [3, 7, 11, last]
    assert deviation(alone, folder) < FLOAT32


@pytest.mark.parametrize(
    ("family", "sections", "bound"),
    [
        ("gpt2", {}, FLOAT32),
        ("qwen2", {}, FLOAT32),
        ("llama", {"model": {"dtype": "bfloat16"}}, BFLOAT16),
        ("llama", {"training": {"bf16": True}}, BFLOAT16),
        ("qwen2", {"model": {"dtype": "bfloat16"}, "training": {"bf16": True}}, BFLOAT16),
        ("llama", {"lora": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 9}}}, 1e-5),
        ("llama", {"lora": {"target_modules": ".*layers.1.*_proj"}, "keep": "last"}, FLOAT32),
        ("llama", {"training": {"data_seed": 5, "eval_delay": 8, "save_steps": 0.3}}, FLOAT32),
    ],
)  # fmt: skip
def test_families_and_types_end_as_their_solo_runs(material, family, sections, bound):
    """Beside a trial of another rank, rate and dropout; the adapter is one that PEFT reads."""
    from peft import PeftModel

    path = material.root / family
    if not path.exists():
        make_model(path, family)
    model = {"name_or_path": str(path), **sections.get("model", {})}
    named = {name: part for name, part in sections.items() if name != "model"}
    config = material.config(model=model, packed=True, **named)
    lora = {**sections.get("lora", {}), "r": 9, "lora_dropout": 0.2}
    training = {**sections.get("training", {}), "learning_rate": 1e-2, "seed": 7}
    other = material.config(model=model, packed=True, lora=lora, training=training)
    assert packing_key(config) == packing_key(other) is not None
    alone, expected = material.train(config.model_copy(update={"packed": False}))
    folder = material.folder(config)
    result = train_packed(
        [material.folder(other), folder], slots=2, process_cache=material.process_cache()
    )[1]
    assert deviation(alone, folder) < bound
    assert result.value == pytest.approx(expected.value, abs=bound)
    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), folder.adapter)
    ours = adapter(folder)
    read = {k: v for k, v in read.state_dict().items() if "lora_" in k}
    assert len(read) == len(ours) > 0
    assert all(
        torch.equal(read[key.replace(".weight", ".default.weight")], ours[key]) for key in ours
    )


def test_a_packed_trial_equals_a_plain_peft_and_adamw_loop(material):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup, set_seed

    steps, rate = 12, 3e-3
    training = {"max_steps": steps, "learning_rate": rate, "logging_steps": 1, "warmup_ratio": 0.25}
    sections = {"lora": {"r": 4, "lora_dropout": 0.0}, "training": training}
    other = {"lora": {"r": 9, "lora_dropout": 0.2}, "training": {"learning_rate": 1e-2}}
    config = material.config(**sections)
    folder = material.folder(config)
    process_cache = material.process_cache()
    train_packed(
        [material.folder(material.config(**other)), folder], slots=2, process_cache=process_cache
    )

    base = AutoModelForCausalLM.from_pretrained(material.model)
    set_seed(config.training["seed"])
    lora = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, eps=1e-6, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(0.25 * steps), steps)
    data = process_cache.prepared(config, "").train
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


class Stops(NullControl):
    """Asks a trial to stop after an evaluation at some step."""

    def __init__(self, reason: Any, step: int) -> None:
        self.reason, self.step, self.heard = reason, step, 0

    def evaluated(self, folder: TrialFolder, evaluation: Any) -> None:
        self.heard = evaluation.step

    def stop_reason(self, folder: TrialFolder) -> Any:
        return self.reason if self.heard >= self.step else None


def test_neighbours_are_equal_to_the_bit_whatever_becomes_of_a_trial(material):
    """A trial that diverges, one that is pruned, and the trials that take their slots.

    On batches so large that a product is summed in several parts.
    """
    large = {"per_device_train_batch_size": 24}
    steady, later = (
        material.config(lora=mixed["lora"], training={**mixed["training"], **large})
        for mixed in (MIXED[0], MIXED[3])
    )
    wild = material.config(training={"learning_rate": 1e30, "max_grad_norm": 0.0, **large})
    quiet = [material.folder(steady), material.folder(later)]
    train_packed(quiet, slots=1, process_cache=material.process_cache())
    folders = [material.folder(config) for config in (wild, steady, steady, later)]
    controls = [NullControl(), NullControl(), Stops("prune", 5), NullControl()]
    results = train_packed(
        folders, slots=3, process_cache=material.process_cache(), controls=controls
    )
    assert [result.state for result in results] == ["failed", "complete", "pruned", "complete"]
    assert results[0].cause.kind == "diverged"
    assert results[2].steps == 6
    assert not folders[2].checkpoints.exists()
    for apart, together in ((quiet[0], folders[1]), (quiet[1], folders[3])):
        assert deviation(apart, together) <= COMPANY
        for key, tensor in adapter(apart).items():
            torch.testing.assert_close(adapter(together)[key], tensor, atol=COMPANY, rtol=COMPANY)


def test_no_number_of_one_slot_reaches_another(material):
    """To the bit on every device: in equal company, whatever the others' numbers are."""
    found = []
    for rate in (1e-3, 1e30):
        config = material.config(**MIXED[0])
        stand = setup.open_setup(material.process_cache(), config, material.folder(config), 3, 3)
        engine, drawn = stand.engine, stand.initializer.draw(config)
        for slot in range(3):
            engine.load(slot, drawn, 0.1)
        rows = [stand.data.train[index] for index in range(2)]
        told = []
        for step in range(1, 6):
            losses = engine.accumulate([(slot, rows, [step, -step], 40) for slot in range(3)])
            rules = [
                Rule(step, chosen, 0.0, (0.9, 0.999), 1e-6, 0.0) for chosen in (rate, 1e-3, rate)
            ]
            told += [losses[1], engine.step(rules)[1]]
        wild = engine.bank.read(0, drawn)
        assert any(not a.isfinite().all() for a, _ in wild) == (rate > 1)
        found.append([torch.stack(told).cpu(), *itertools.chain(*engine.bank.read(1, drawn))])
        stand.close()
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(DEVICE != "cpu", reason="elsewhere all slots go through the model at once")
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"], ids=str)
@pytest.mark.parametrize("slots", [[0, 1, 2, 3, 4], [1, 2, 3], [0, 2, 4]], ids=str)
@pytest.mark.parametrize("low", [False, True], ids=["float32", "bf16"])
def test_slots_go_through_the_model_in_parts_and_no_bit_tells(
    material, monkeypatch, slots, targets, low
):
    lora = {"lora_dropout": 0.1, "target_modules": targets}
    config = material.config(lora=lora, training={"bf16": low})
    found = []
    for enough in (1 << 20, 1, 100):
        monkeypatch.setattr(engine, "ENOUGH", enough)
        stand = setup.open_setup(material.process_cache(), config, material.folder(config), 5, 5)
        for slot in range(5):
            drawn = stand.initializer.draw(material.config(lora=lora, training={"seed": slot}))
            stand.engine.load(slot, drawn, 0.1 * (slot % 2))
            torch.manual_seed(slot)
            trained = [(one.a, 0.1 * torch.randn(one.b.shape)) for one in drawn.layers]
            stand.engine.bank.write(slot, trained)
        rows = [stand.data.train[index] for index in range(2)]
        shares = [(slot, rows, [slot, -slot], 40 + slot) for slot in slots]
        losses = [stand.engine.accumulate(shares) for _ in range(2)]
        found.append([*losses, *(grad.clone() for _, grad in stand.engine.bank.blocks)])
        stand.close()
    whole, *others = found
    assert whole[0].shape == (len(slots),)
    assert sorted(set(whole[-1].flatten(1).any(dim=1).nonzero().flatten().tolist())) == slots
    for other in others:
        assert all(torch.equal(one, two) for one, two in zip(whole, other, strict=True))


@pytest.mark.parametrize("slots", [1, 2])
def test_an_interrupted_trial_goes_on_in_any_slot_as_if_nothing_had_happened(material, slots):
    configs = [material.config(**MIXED[index]) for index in (2, 0)]
    straight = [material.folder(config) for config in configs]
    train_packed(straight, slots=2, process_cache=material.process_cache())
    folders = [material.folder(config) for config in configs]
    controls = [Stops("interrupt", 5), Stops("interrupt", 10)]
    stopped = train_packed(
        folders, slots=2, process_cache=material.process_cache(), controls=controls
    )
    assert stopped == [None, None]
    assert all((Checkpoints(folder).newest() / STATE).is_file() for folder in folders)
    train_packed(folders[::-1], slots=slots, process_cache=material.process_cache())
    for apart, resumed in zip(straight, folders, strict=True):
        assert deviation(apart, resumed) <= COMPANY
        pair = (next(iter(adapter(f).values())) for f in (apart, resumed))
        torch.testing.assert_close(*pair, atol=COMPANY, rtol=COMPANY)


class Crowded:
    """Lets a method of the engine run out of memory once, where many slots are there."""

    def __init__(self, monkeypatch: Any, name: str, turn: int, fits: int = 2) -> None:
        self.turns, self.turn, self.fits = 0, turn, fits
        whole = getattr(setup.Engine, name)

        def crowded(engine: Any, *given: Any) -> Any:
            self.turns += 1
            if self.turns >= self.turn and engine.bank.slots > self.fits:
                if name == "step":
                    # Half of it is done.
                    whole(engine, given[0])
                raise torch.OutOfMemoryError("CUDA out of memory (a test)")
            return whole(engine, *given)

        monkeypatch.setattr(setup.Engine, name, crowded)


@pytest.mark.parametrize(
    ("name", "turn"),
    [("accumulate", 6), ("accumulate", 7), ("step", 7), ("evaluate", 3), ("load", 4)],
)
def test_running_out_of_memory_halves_the_slots_and_loses_nothing(
    material, monkeypatch, name, turn
):
    """In the middle of an optimizer step's batches, of its moving, of an evaluation, of a start."""
    configs = [material.config(**MIXED[index]) for index in (2, 3, 2, 3)]
    apart = [material.folder(config) for config in configs[:2]]
    train_packed(apart, slots=1, process_cache=material.process_cache())
    crowded = Crowded(monkeypatch, name, turn)
    folders = [material.folder(config) for config in configs]
    results = train_packed(folders, slots=4, process_cache=material.process_cache())
    assert crowded.turns > turn
    assert [result.state for result in results] == ["complete"] * 4
    for index, folder in enumerate(folders):
        assert deviation(apart[index % 2], folder, once) <= COMPANY
        assert folder.read_attempts()[-1].slots == 2


def test_a_job_opens_with_as_many_slots_as_there_is_memory_for(material, monkeypatch):
    made = setup.Engine.__init__

    def crowded(engine: Any, *given: Any, slots: int, **named: Any) -> None:
        if slots > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (a test)")
        made(engine, *given, slots=slots, **named)

    monkeypatch.setattr(setup.Engine, "__init__", crowded)
    folders = [material.folder(material.config(**MIXED[0])) for _ in range(2)]
    results = train_packed(folders, slots=8, process_cache=material.process_cache())
    assert [result.state for result in results] == ["complete"] * 2
    assert {folder.read_attempts()[0].slots for folder in folders} == {2}


def test_what_does_not_fit_in_one_slot_fails(material, monkeypatch):
    Crowded(monkeypatch, "accumulate", 1, fits=0)
    folders = [material.folder(material.config()) for _ in range(2)]
    results = train_packed(folders, slots=2, process_cache=material.process_cache())
    assert {result.cause.kind for result in results} == {"out_of_memory"}


def test_a_fault_of_the_whole_lets_each_trial_train_alone(material, monkeypatch):
    def broken(engine: Any, shares: Any) -> Any:
        raise RuntimeError("shapes do not agree")

    monkeypatch.setattr(setup.Engine, "accumulate", broken)
    folders = [material.folder(material.config()) for _ in range(2)]
    with pytest.raises(RuntimeError, match="do not agree"):
        train_packed(folders, slots=2, process_cache=material.process_cache())
    assert not any(folder.read_result() for folder in folders)


def test_a_model_with_dropout_of_its_own_is_not_packed(material, tmp_path):
    shutil.copytree(material.model, tmp_path / "model")
    about = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**about, "attention_dropout": 0.1}))
    config = material.config(model={"name_or_path": str(tmp_path / "model")}, packed=True)
    with pytest.raises(NotPackableError):
        train_packed([material.folder(config)], slots=2, process_cache=material.process_cache())
    _, result = material.train(config)
    assert result.state == "complete"


def test_a_tokens_loss_and_its_gradient_are_torchs_own():
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(40, 300, generator=generator) * 20).requires_grad_()
    targets = torch.randint(0, 300, (40,), generator=generator)
    targets[::3] = IGNORE_INDEX
    weights = torch.rand(40, generator=generator)
    told = []
    for nats in (
        target_cross_entropy(logits, targets),
        cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none"),
    ):
        (slope,) = torch.autograd.grad((nats * weights).sum(), logits)
        told.append((nats.detach(), slope))
    (ours, our_slope), (theirs, their_slope) = told
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(our_slope, their_slope, atol=1e-7, rtol=1e-5)
    assert not ours[::3].any()
    assert not our_slope[::3].any()


def head_of(
    out: int, inside: int, cast: Any = None, *, bias: bool = False, counted: bool = True
) -> LinearCrossEntropy:
    layer = torch.nn.Linear(inside, out, bias=bias).requires_grad_(False)
    return LinearCrossEntropy(layer, cast, counted=counted)


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize(
    ("bias", "cast", "bound"),
    [(False, None, 1e-5), (True, None, 1e-5), (True, torch.bfloat16, 2e-2)],
)
def test_output_layer_and_loss_in_pieces_are_those_of_the_whole(
    monkeypatch, bias, cast, bound, counted
):
    monkeypatch.setattr(linear_cross_entropy, "PIECE", 7)
    monkeypatch.setattr(linear_cross_entropy, "EVEN", 4)
    monkeypatch.setattr(linear_cross_entropy, "LOGITS", 50 * 33)
    torch.manual_seed(0)
    ours = head_of(50, 12, cast, bias=bias, counted=counted)
    hidden = torch.randn(3, 40, 12, requires_grad=True)
    targets = torch.randint(0, 50, (3, 40))
    targets[0, ::3] = IGNORE_INDEX
    targets[2] = IGNORE_INDEX
    weights = torch.tensor([0.3, 2.0, 1.0])
    told = []
    for nats in (
        ours.nats(hidden, targets, weights),
        torch.stack([
            weight
            * cross_entropy(ours.layer(rows), aims, ignore_index=IGNORE_INDEX, reduction="sum")
            for rows, aims, weight in zip(hidden, targets, weights, strict=True)
        ]),
    ):  # fmt: skip
        (slope,) = torch.autograd.grad((nats * weights).sum(), hidden)
        told.append((nats.detach(), slope))
    (found, slope), (expected, expected_slope) = told
    torch.testing.assert_close(found, expected, atol=bound, rtol=bound)
    torch.testing.assert_close(slope, expected_slope, atol=bound, rtol=bound)
    assert found[2] == 0.0
    assert not slope[2].any()
    assert not slope[0, ::3].any()
    with torch.no_grad():
        assert torch.equal(ours.nats(hidden, targets, weights), found)


@pytest.mark.parametrize("counted", [True, False])
def test_a_bfloat16_output_layers_gradient_is_rounded_where_a_trainers_is(counted):
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 300, bias=False).bfloat16().requires_grad_(False)
    hidden = torch.randn(1, 200, 64).bfloat16().requires_grad_()
    targets, shares = torch.randint(0, 300, (1, 200)), torch.tensor([1 / 200])
    ours = LinearCrossEntropy(layer, None, counted=counted).nats(hidden, targets, shares).sum()
    logits = layer(hidden[0]).float()
    theirs = cross_entropy(logits, targets[0], reduction="sum") / 200
    slopes = [torch.autograd.grad(one, hidden)[0] for one in (ours, theirs)]
    # A last bit in float32 now and then falls on the other side.
    assert float((slopes[0] == slopes[1]).double().mean()) > 0.98


@pytest.mark.parametrize("counted", [True, False])
def test_neighbours_labels_change_no_bit_of_a_slots_loss(counted):
    torch.manual_seed(0)
    ours = head_of(300, 32, counted=counted)
    hidden = torch.randn(2, 500, 32, requires_grad=True)
    targets = torch.randint(0, 300, (2, 500))
    told = []
    for labelled in (500, 3):
        targets[1, labelled:] = IGNORE_INDEX
        nats = ours.nats(hidden, targets, torch.ones(2))
        (slope,) = torch.autograd.grad(nats.sum(), hidden)
        told.append((nats.detach(), slope))
    (many, slope), (few, other_slope) = told
    assert many[1] != few[1]
    assert torch.equal(many[0], few[0])
    assert torch.equal(slope[0], other_slope[0])


@pytest.mark.parametrize(
    ("family", "targets", "expected"),
    [("llama", ["q_proj"], True), ("gpt2", ["c_attn"], True), ("qwen2", ["q_proj"], True),
     ("llama", ["q_proj", "lm_head"], False)],
)  # fmt: skip
def test_the_output_layer_is_taken_where_no_adapter_sits_on_it(
    material, tmp_path, family, targets, expected
):
    base = AutoModelForCausalLM.from_pretrained(make_model(tmp_path, family))
    drawn = AdapterInitializer(base).draw(material.config(lora={"r": 2, "target_modules": targets}))
    assert_taken(base, drawn, expected)


def test_the_output_layer_stays_where_its_logits_are_bent(material):
    from transformers import Gemma2Config

    bent = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=16,
        num_attention_heads=2, num_key_value_heads=1, final_logit_softcapping=3.0,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_config(bent)
    drawn = AdapterInitializer(base).draw(material.config(lora={"r": 2}))
    assert_taken(base, drawn, False)


def assert_taken(base: Any, drawn: Any, expected: bool) -> None:
    layer = base.get_output_embeddings()
    ids = torch.randint(3, 60, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = base(input_ids=ids).logits
        with taken(base, drawn, None, {}, counted=True) as found:
            assert (found is not None) is expected
            made = base(input_ids=ids).logits
            assert torch.equal(found.layer(made) if found else made, whole)
        assert base.get_output_embeddings() is layer
        assert torch.equal(base(input_ids=ids).logits, whole)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("drops", [False, True])
def test_a_layer_and_its_adapters_have_the_slopes_of_the_plain_expression(bias, drops):
    torch.manual_seed(0)
    x, weight, a, b, scale = (
        torch.randn(shape, dtype=torch.double)
        for shape in ((2, 5, 4), (3, 4), (2, 2, 4), (2, 3, 2), (2, 1, 1))
    )
    constant = torch.randn(3, dtype=torch.double) if bias else None
    keep = torch.randint(0, 2, x.shape) * 1.25 if drops else None
    for leaf in (x, a, b):
        leaf.requires_grad_()
    inner = (x if keep is None else x * keep) @ a.transpose(1, 2) * scale
    expected = torch.nn.functional.linear(x, weight, constant) + inner @ b.transpose(1, 2)
    by = None if keep is None else TensorMask(keep)
    torch.testing.assert_close(adapted(x, weight, constant, a, b, scale, by), expected)
    assert torch.autograd.gradcheck(
        lambda x, a, b: adapted(x, weight, constant, a, b, scale, by), (x, a, b)
    )


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("drops", [False, True])
def test_a_layer_and_its_adapters_are_computed_as_autocast_would(drops, apart):
    """Two passes add up; `apart`: the adapters' gradients do so in tensors of their own."""
    torch.manual_seed(0)
    x, a, b = torch.randn(2, 5, 64).bfloat16(), torch.randn(2, 4, 64), torch.randn(2, 32, 4)
    weight, scale = torch.randn(32, 64).bfloat16(), torch.rand(2, 1, 1)
    keep = torch.randint(0, 2, x.shape) * 1.25 if drops else None
    leaves, outward = [leaf.requires_grad_() for leaf in (x, a, b)], torch.randn(2, 5, 32)

    def plain() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inner = x if keep is None else x.float() * keep
            inner = torch.bmm(inner, a.transpose(1, 2)) * scale
            return torch.nn.functional.linear(x, weight) + inner.bfloat16() @ b.mT

    low = [leaf.detach().bfloat16() for leaf in (a, b)]
    slopes = GradBuffers(
        *(torch.zeros_like(part) for part in low), torch.zeros((), requires_grad=True)
    )

    def ours() -> torch.Tensor:
        by = None if keep is None else TensorMask(keep)
        given = (
            (*low, scale, by, torch.bfloat16, slopes)
            if apart
            else (a, b, scale, by, torch.bfloat16)
        )
        return adapted(x, weight, None, *given)

    told = []
    for act in (ours, plain):
        for leaf in leaves:
            leaf.grad = None
        for _ in range(2):
            found = act()
            assert found.dtype == torch.bfloat16
            (found * outward).sum().backward()
        grads = [leaf.grad for leaf in leaves]
        if apart and act is ours:
            assert grads[1:] == [None, None]
            grads[1:] = [slopes.a.float(), slopes.b.float()]
        told.append((found.float(), *grads))
    for mine, expected in zip(*told, strict=True):
        assert mine.dtype == expected.dtype
        off = (mine.float() - expected.float()).norm() / expected.float().norm()
        assert off < 0.01


@pytest.mark.parametrize("drops", [False, True])
def test_a_small_adapters_share_of_a_float32_input_is_not_lost_in_rounding(drops):
    torch.manual_seed(0)
    leaf, a = torch.randn(2, 50, 64, requires_grad=True), torch.randn(2, 4, 64)
    b, weight, scale = 1e-3 * torch.randn(2, 32, 4), torch.randn(32, 64), torch.ones(2, 1, 1)
    by = TensorMask(torch.full(leaf.shape, 1.25)) if drops else None
    outward = torch.randn(2, 50, 32)

    def slope(b: torch.Tensor) -> torch.Tensor:
        found = adapted(leaf * 1.0, weight, None, a, b, scale, by, torch.bfloat16)
        return torch.autograd.grad((found * outward).sum(), leaf)[0]

    share = slope(b) - slope(torch.zeros_like(b))
    expected = outward @ b @ a * (1.25 if drops else 1.0)
    assert (share - expected).norm() / expected.norm() < 0.02


def test_a_layer_that_gets_part_of_a_batch_is_refused(material):
    base = AutoModelForCausalLM.from_pretrained(material.model)
    drawn = AdapterInitializer(base).draw(material.config(lora={"r": 2}))
    bank = AdapterBank(drawn, 2, 16, torch.device("cpu"))
    bank.take({"input_ids": torch.zeros(2, 8, dtype=torch.long)}, 8)
    layer = bank.layers[0]
    part = SlotLinear(torch.nn.Linear(layer.a.shape[2], layer.b.shape[1]), layer, bank)
    assert part(torch.zeros(2, 8, layer.a.shape[2])).shape == (2, 8, layer.b.shape[1])
    with pytest.raises(NotPackableError, match="part of the batch"):
        part(torch.zeros(6, layer.a.shape[2]))


def test_a_layer_that_takes_no_part_in_autocast_has_its_adapters_whole(material):
    base = AutoModelForCausalLM.from_pretrained(material.model)
    drawn = AdapterInitializer(base).draw(material.config(lora={"r": 2}))
    bank = AdapterBank(drawn, 1, 16, torch.device("cpu"), cast=torch.bfloat16)
    bank.load(0, drawn, 0.0)
    trained = [(one.a, torch.randn(one.b.shape)) for one in drawn.layers]
    bank.write(0, trained)
    bank.take({"input_ids": torch.zeros(1, 8, dtype=torch.long)}, 8)
    layer, (a, b) = bank.layers[0], trained[0]
    own = torch.nn.Linear(a.shape[1], len(b), bias=False).requires_grad_(False)
    x, scale = torch.randn(1, 8, a.shape[1]), float(bank.scales[0, 0])
    part = SlotLinear(own, layer, bank)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        found = part(x)
    torch.testing.assert_close(found, own(x) + x @ a.T @ b.T * scale)


def test_experts_are_not_packed(material, tmp_path):
    model = {"name_or_path": str(make_mixtral(tmp_path, material.model))}
    for targets, packs in ((["w1"], False), (["q_proj"], True)):
        lora = {"r": 4, "target_modules": targets, "lora_dropout": 0.1}
        config = material.config(model=model, lora=lora)
        folders = [material.folder(config) for _ in range(2)]
        if packs:
            results = train_packed(folders, slots=2, process_cache=material.process_cache())
        else:
            for slots in (0, 2):
                with pytest.raises(NotPackableError):
                    train_packed(folders, slots=slots, process_cache=material.process_cache())
            results = [material.train(config)[1]]
        assert {result.state for result in results} == {"complete"}


@pytest.mark.parametrize("how", [{}, {"masked": True}, {"fused": True}], ids=str)
def test_slots_step_as_torchs_own_adamw(how):
    torch.manual_seed(0)
    rules = [
        Rule(1, 1e-2, 0.1, (0.9, 0.999), 1e-8, 1.0),
        Rule(1, 1e-3, 0.0, (0.8, 0.95), 1e-6, 0.0),
        None,
    ]
    value, grad = torch.randn(3, 40), torch.zeros(3, 40)
    ours = SlotAdamW([(value, grad)], **how)
    singles = [torch.nn.Parameter(value[slot].clone()) for slot in range(2)]
    theirs = [
        torch.optim.AdamW([p], lr=rule.rate, betas=rule.betas, eps=rule.epsilon,
                          weight_decay=rule.decay)
        for p, rule in zip(singles, rules[:2], strict=True)
    ]  # fmt: skip
    untouched = value[2].clone()
    for step in range(1, 6):
        fresh = torch.randn(3, 40) * 3
        fresh[2, step] = math.inf
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
        ({1: 1.0, 2: 2.0, 4: 2.2, 8: 6.0}, 4),  # something ran beside two slots
        ({1: 1.0, 2: 2.0, 4: 4.0, 8: 1.0}, 1),
    ],
)
def test_as_many_slots_as_pay(times, expected):
    assert slot_count.pays(times.__getitem__, max(times)) == expected


def test_the_number_of_slots_is_measured_where_nobody_says(material):
    folders = [material.folder(material.config(**MIXED[0])) for _ in range(3)]
    source = ListTrialSource([PackedTrial(folder, NullControl()) for folder in folders])
    PackedJob(source, material.process_cache(), 0, limit=2).run()
    assert source.slots in (1, 2)
    alone = material.folder(material.config(**MIXED[0]))
    train_packed([alone], slots=1, process_cache=material.process_cache())
    assert all(deviation(alone, folder) <= COMPANY for folder in folders)


ALONE: list[dict[str, Any]] = [
    {"lora": {"r": 0}},
    {"lora": {"use_dora": True}},
    {"lora": {"bias": "lora_only"}},
    {"lora": {"init_lora_weights": "pissa"}},
    {"lora": {"modules_to_save": ["lm_head"]}},
    {"zero_stage": 0},
    {"zero_stage": 1},
    {"objective": {"name": "grad_ascent"}, "data": {"forget_path": "rows.jsonl"}},
    {"data": {"forget_path": "rows.jsonl"}},
    {"evaluation": {"metrics": ["json:dumps"]}},
    {"training": {"gradient_checkpointing": True}},
    {"training": {"label_smoothing_factor": 0.1}},
    {"training": {"torch_compile": True}},
    {"training": {"optim": "adafactor"}},
    {"training": {"group_by_length": True}},
    {"training": {"lr_scheduler_type": "reduce_lr_on_plateau"}},
]
OTHER_JOB: list[dict[str, Any]] = [
    {"lora": {"r": 17}},
    {"lora": {"rank_pattern": {"v_proj": 17}}},
    {"lora": {"target_modules": ["q_proj"]}},
    {"training": {"per_device_train_batch_size": 4}},
    {"training": {"per_device_eval_batch_size": 8}},
    {"training": {"bf16": True}},
    {"data": {"max_length": 32}},
    {"data": {"split_seed": 1}},
    {"model": {"dtype": "bfloat16"}},
    {"device": "auto"},
]
SAME_JOB: list[dict[str, Any]] = [
    {"lora": {"r": 16, "lora_alpha": 3.0, "lora_dropout": 0.5, "use_rslora": True}},
    {"lora": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 2}}},
    {"training": {"learning_rate": 1e-4, "seed": 9, "data_seed": 3, "weight_decay": 0.1}},
    {"training": {"lr_scheduler_type": "polynomial", "warmup_steps": 3, "max_grad_norm": 0.0}},
    {"training": {"max_steps": 7, "gradient_accumulation_steps": 3, "eval_steps": 2}},
    {"training": {"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-8}},
    {"keep": "last", "diverged_above": 9.0, "keep_checkpoint": True},
]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        *((row, "alone") for row in ALONE),
        *((row, "another job") for row in OTHER_JOB),
        *((row, "the same job") for row in SAME_JOB),
        ({"packed": False}, "not packed"),
    ],
)
def test_what_may_share_a_job(material, sections, expected):
    base = packing_key(material.config(packed=True))
    config = material.config(**{"packed": True, **sections})
    key, why = packing_key(config), unpackable_reason(config)
    found = "alone" if why else "the same job" if key == base else "another job"
    assert base is not None
    assert ("not packed" if not why and key is None else found) == expected
    assert (key is None) == (expected in ("alone", "not packed"))


def test_a_pattern_that_matches_nothing_leaves_room_for_ranks_that_may_come(material):
    """What shares a job fits into its slots, whoever came first."""
    patterned = {"lora": {"r": 4, "rank_pattern": {"no_such_module": 64}}}
    configs = [material.config(packed=True, **part) for part in (patterned, {"lora": {"r": 60}})]
    assert packing_key(configs[0]) == packing_key(configs[1])
    results = train_packed(
        list(map(material.folder, configs)), slots=2, process_cache=material.process_cache()
    )
    assert [result.state for result in results] == ["complete"] * 2


class Compiled(setup.Engine):
    """Compiles the base model with its slots; from the fifth trial on nothing may be compiled."""

    loaded = 0

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.base.forward = torch.compile(self.base.forward, backend="aot_eager", dynamic=False)

    def load(self, *given: Any) -> None:
        Compiled.loaded += 1
        torch._dynamo.config.error_on_recompile = Compiled.loaded > 4
        super().load(*given)

    def close(self) -> Any:
        del self.base.forward
        return super().close()


def test_twenty_refills_compile_nothing(material, monkeypatch):
    """Ranks, scales, dropouts, rates, seeds, lengths, accumulation differ; slots stay empty."""
    from torch._dynamo.utils import counters

    fixed = dataclasses.replace(devices.DEVICES[DEVICE], fixed_shapes=True)
    monkeypatch.setitem(devices.DEVICES, DEVICE, fixed)
    monkeypatch.setattr(
        adamw, "_move", torch.compile(adamw._move, backend="aot_eager", dynamic=False)
    )
    monkeypatch.setattr(setup, "Engine", Compiled)
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", False)
    monkeypatch.setattr(Compiled, "loaded", 0)
    torch._dynamo.reset()
    counters.clear()
    configs = [
        material.config(
            lora={"r": 1 + number % 9, "lora_alpha": 1 + number, "lora_dropout": drop},
            training={
                "seed": number, "learning_rate": 1e-3 * (1 + number), "eval_steps": 2,
                "max_steps": 2 + number % 3, "gradient_accumulation_steps": 1 + number % 2,
                "max_grad_norm": number % 4, "per_device_train_batch_size": 2,
            },
        )
        for number, drop in zip(range(22), itertools.cycle([0.0, 0.0, 0.0, 0.1, 0.3]))
    ]  # fmt: skip
    folders = list(map(material.folder, configs))
    results = train_packed(folders, slots=2, process_cache=material.process_cache())
    assert Compiled.loaded == 22
    assert [result.state for result in results] == ["complete"] * 22
    # The model in training and in evaluation, and the step of an A and a B of every shape.
    assert counters["stats"]["unique_graphs"] < 12
    monkeypatch.undo()
    torch._dynamo.reset()
    alone, _ = material.train(configs[-1])
    assert deviation(alone, folders[-1]) < FLOAT32
