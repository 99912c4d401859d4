"""How many slots a packed job gets where nobody says."""

from __future__ import annotations

import pytest
from helpers.training.packed import MIXED, SHARED_JOB_TOLERANCE, deviation, pack
from helpers.training.train import Material

from trial.packed.job import PackedJob
from trial.packed.slot_count import best_slot_count
from trial.packed.trial_source import ListTrialSource, PackedTrial
from trial.store.control import NullControl


@pytest.mark.parametrize(
    ("seconds", "expected"),
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
def test_as_many_slots_as_gain_throughput(seconds, expected):
    assert best_slot_count(seconds.__getitem__, max(seconds)) == expected


def test_the_number_of_slots_is_measured_where_nobody_says(tmp_path):
    material = Material(tmp_path)
    config = material.config(**MIXED[0])
    folders = [material.folder(config) for _ in range(3)]
    source = ListTrialSource([PackedTrial(folder, NullControl()) for folder in folders])
    PackedJob(source, material.process_cache(), 0, limit=2).run()
    assert source.slots in (1, 2)
    (alone,), _ = pack(material, config, slots=1)
    assert all(deviation(alone, folder) <= SHARED_JOB_TOLERANCE for folder in folders)
