"""What only a CUDA GPU can show; `make test-cuda` runs it where there is one."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from helpers_models import make_model
from helpers_train import DEVICE, Material

from trial.packed.job import train_packed
from trial.workbench import Workbench

pytestmark = pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU: make test-cuda")


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    made = Material(tmp_path_factory.mktemp("cuda"))
    made.model = make_model(made.root / "wide", hidden=512)
    return made


@pytest.fixture
def room() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def sections(**training: object) -> dict[str, dict[str, object]]:
    small = {"max_steps": 6, "eval_steps": 3, "per_device_train_batch_size": 64}
    return {"lora": {"r": 4}, "training": {**small, **training}}


def test_a_gpu_without_room_for_all_trains_fewer_at_once(material, room):
    """A real shortage: the allocator may not take more than two trials need."""
    peaks = {}
    for slots in (1, 4):
        folders = [material.folder(material.config(**sections())) for _ in range(slots)]
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        expected = train_packed(folders, slots=slots, bench=Workbench())
        peaks[slots] = torch.cuda.max_memory_reserved()
    limit = (peaks[1] + peaks[4]) / 2
    assert peaks[4] > 1.5 * peaks[1], peaks
    gc.collect()
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / whole)
    folders = [material.folder(material.config(**sections())) for _ in range(4)]
    results = train_packed(folders, slots=4, bench=Workbench())
    assert [result.state for result in results] == ["complete"] * 4
    assert {folder.read_attempts()[-1].slots for folder in folders} <= {1, 2}
    assert [r.value for r in results] == pytest.approx([r.value for r in expected], abs=2e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_memory_stays_flat_over_trials(material, packed):
    bench, held = Workbench(), []
    for seed in range(12):
        config = material.config(**sections(seed=seed))
        if packed:
            folders = [material.folder(config) for _ in range(3)]
            results = train_packed(folders, slots=2, bench=bench)
        else:
            results = [material.train(config)[1]]
            bench = material.bench()
        assert all(result.state == "complete" for result in results)
        gc.collect()
        held.append(torch.cuda.memory_allocated())
    assert len(set(held[3:])) == 1, held
    assert bench.reusable
