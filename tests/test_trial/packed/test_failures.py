"""What fails in a packed job: too little memory, one trial, a whole pass."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from helpers.training.models import make_mixtral
from helpers.training.packed import (
    MIXED,
    SHARED_JOB_TOLERANCE,
    crowded_engine,
    deviation,
    failing_engine,
    opener,
    out_of_memory,
    pack,
    read_last,
)
from helpers.training.train import Material

from trial.multi_lora.engine import Engine
from trial.multi_lora.packable import NotPackableError
from trial.packed.job import train_packed


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("packed"))


@pytest.mark.parametrize(
    ("method", "call"),
    [("accumulate", 6), ("accumulate", 7), ("step", 7), ("evaluate", 3), ("load", 4)],
)
def test_running_out_of_memory_halves_the_slots_and_loses_nothing(material, method, call):
    """In the middle of accumulation, of an optimizer step, of an evaluation, of a start."""
    configs = [material.config(**MIXED[index]) for index in (2, 3, 2, 3)]
    apart, _ = pack(material, *configs[:2], slots=1)
    crowded = crowded_engine(method, call)
    folders, results = pack(material, *configs, slots=4, opener=opener(crowded))
    assert crowded.calls > call
    assert [result.state for result in results] == ["complete"] * 4
    for index, folder in enumerate(folders):
        assert deviation(apart[index % 2], folder, read_last) <= SHARED_JOB_TOLERANCE
        assert folder.read_attempts()[-1].slots == 2


def test_memory_that_runs_out_while_checkpoints_are_written_does_not_end_the_job(material):
    """The trial whose checkpoint fails goes on from its last one."""
    config = material.config(**MIXED[0])
    apart, _ = pack(material, config, slots=1)
    crowded, saves = crowded_engine("accumulate", 8), 0

    class CrowdedTwice(crowded):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            read = self.bank.read

            def failing(*args: Any) -> Any:
                nonlocal saves
                saves += self.bank.slots > 2
                if self.bank.slots > 2 and crowded.calls >= 8 and saves % 2:
                    raise out_of_memory()
                return read(*args)

            self.bank.read = failing

    folders, results = pack(material, *[config] * 4, slots=4, opener=opener(CrowdedTwice))
    assert saves
    assert [result.state for result in results] == ["complete"] * 4
    for folder in folders:
        assert deviation(apart[0], folder, read_last) <= SHARED_JOB_TOLERANCE


def test_a_job_opens_with_as_many_slots_as_there_is_memory_for(material):
    def small(*args: Any, slots: int, **named: Any) -> Engine:
        if slots > 2:
            raise out_of_memory()
        return Engine(*args, slots=slots, **named)

    folders, results = pack(
        material, *[material.config(**MIXED[0])] * 2, slots=8, opener=opener(small)
    )
    assert [result.state for result in results] == ["complete"] * 2
    assert {folder.read_attempts()[0].slots for folder in folders} == {2}


def test_what_does_not_fit_in_one_slot_fails(material):
    crowded = crowded_engine("accumulate", 1, fits=0)
    _, results = pack(material, *[material.config()] * 2, slots=2, opener=opener(crowded))
    assert {result.cause.kind for result in results} == {"out_of_memory"}


def test_a_failed_pass_lets_each_trial_train_alone(material):
    def wrong() -> Exception:
        return RuntimeError("shapes do not agree")

    broken = failing_engine("accumulate", wrong, lambda engine, call: True)
    folders = [material.folder(material.config()) for _ in range(2)]
    with pytest.raises(RuntimeError, match="do not agree"):
        train_packed(
            folders, slots=2, process_cache=material.process_cache(), opener=opener(broken)
        )
    assert broken.calls == 1
    assert not any(folder.read_result() for folder in folders)


def test_a_model_with_dropout_of_its_own_is_not_packed(material, tmp_path):
    shutil.copytree(material.model, tmp_path / "model")
    about = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**about, "attention_dropout": 0.1}))
    config = material.config(model={"name_or_path": str(tmp_path / "model")}, packed=True)
    with pytest.raises(NotPackableError):
        pack(material, config, slots=2)
    _, result = material.train(config)
    assert result.state == "complete"


def test_experts_are_not_packed(material, tmp_path):
    model = {"name_or_path": str(make_mixtral(tmp_path, material.model))}
    for targets, packs in ((["w1"], False), (["q_proj"], True)):
        lora = {"r": 4, "target_modules": targets, "lora_dropout": 0.1}
        config = material.config(model=model, lora=lora)
        if packs:
            _, results = pack(material, config, config, slots=2)
        else:
            for slots in (0, 2):
                with pytest.raises(NotPackableError):
                    pack(material, config, config, slots=slots)
            results = [material.train(config)[1]]
        assert {result.state for result in results} == {"complete"}


def test_a_configuration_that_cannot_be_read_fails_its_trial_alone(material):
    folders = [material.folder(material.config(**MIXED[index])) for index in (0, 1)]
    folders[0].config.write_text('{"version": 1, "trai')
    failed, complete = train_packed(folders, slots=2, process_cache=material.process_cache())
    assert (failed.state, complete.state) == ("failed", "complete")
    assert "config.json" in failed.cause.message
    assert folders[0].read_result() == failed
