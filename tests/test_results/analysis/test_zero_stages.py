"""ZeRO stages: measured, and compared where all else is equal."""

from __future__ import annotations

import pytest
from helpers.results import add_trial, make_config, make_study, zero_study

from results.analysis import zero_stages
from results.analysis.study_analysis import analyse
from results.data.folders import read_study


def test_stages_are_measured_and_audited(tmp_path):
    found = analyse(read_study(zero_study(tmp_path / "s", drift=0.05)))
    stages = zero_stages.stages(found.table).set_index("stage")
    assert list(stages.index) == ["ZeRO-0", "ZeRO-1", "ZeRO-2", "ZeRO-3"]
    assert stages.loc["ZeRO-3", "peak_memory_bytes"] == 300_000_000
    assert [(pair.reference, pair.other, pair.agrees) for pair in found.parity] == [
        (0, 1, True), (0, 2, True), (0, 3, False),
    ]  # fmt: skip
    worst = zero_stages.disagreements(found.parity)[0]
    assert worst.worst == pytest.approx(0.05 / 2.5)
    assert worst.at_step == 100


def test_stages_are_compared_only_where_all_else_is_equal(tmp_path):
    study = make_study(tmp_path / "s")
    add_trial(study, make_config(0, zero_stage=0, lora__r=4), 2.0)
    add_trial(study, make_config(1, zero_stage=1, lora__r=8), 3.0)
    add_trial(study, make_config(2, zero_stage=1, lora__r=4, training__seed=1), 3.0)
    assert zero_stages.audit(read_study(study)) == []


def test_no_deepspeed_is_the_first_stage(tmp_path):
    study = make_study(tmp_path / "s")
    for number, stage in enumerate((2, None)):
        add_trial(study, make_config(number, zero_stage=stage), 2.0)
    found = analyse(read_study(study))
    assert list(zero_stages.stages(found.table)["stage"]) == ["no DeepSpeed", "ZeRO-2"]
    assert [(pair.reference, pair.other) for pair in found.parity] == [(1, 0)]
