"""What only a CUDA GPU can show; `make test-cuda` runs it where there is one."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from helpers.training.models import make_model
from helpers.training.train import DEVICE, Material

from trial.model.dropout.dropout_hash import KEEP_ALL, row_key, threshold
from trial.model.dropout.lora_dropout import (
    BatchPositions,
    HashDropout,
    TensorMask,
    TritonMask,
    dropout_mask,
    feature_keys,
)
from trial.packed.job import train_packed
from trial.preload import finish_imports
from trial.training.process_cache import ProcessCache

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
        expected = train_packed(folders, slots=slots, process_cache=ProcessCache(finish_imports))
        peaks[slots] = torch.cuda.max_memory_reserved()
    limit = (peaks[1] + peaks[4]) / 2
    assert peaks[4] > 1.5 * peaks[1], peaks
    gc.collect()
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / whole)
    folders = [material.folder(material.config(**sections())) for _ in range(4)]
    results = train_packed(folders, slots=4, process_cache=ProcessCache(finish_imports))
    assert [result.state for result in results] == ["complete"] * 4
    assert {folder.read_attempts()[-1].slots for folder in folders} <= {1, 2}
    assert [r.eval_loss for r in results] == pytest.approx(
        [r.eval_loss for r in expected], abs=2e-5
    )


@pytest.mark.parametrize("packed", [False, True])
def test_memory_stays_flat_over_trials(material, packed):
    process_cache, held = ProcessCache(finish_imports), []
    for seed in range(12):
        config = material.config(**sections(seed=seed))
        if packed:
            folders = [material.folder(config) for _ in range(3)]
            results = train_packed(folders, slots=2, process_cache=process_cache)
        else:
            results = [material.train(config)[1]]
            process_cache = material.process_cache()
        assert all(result.state == "complete" for result in results)
        gc.collect()
        held.append(torch.cuda.memory_allocated())
    assert len(set(held[3:])) == 1, held
    assert process_cache.reusable


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("features", [96, 1536])
def test_the_dropout_kernel_drops_what_is_dropped_step_by_step(dtype, features):
    torch.manual_seed(0)
    places, limits = BatchPositions(), [threshold(0.1), threshold(0.5), KEEP_ALL]
    places.set([row_key(7, 1, row) for row in range(3)], 33, torch.device("cpu"))
    given = (
        places.keys,
        feature_keys(2, features),
        torch.tensor(limits, dtype=torch.int32).view(-1, 1, 1),
        1.0 / torch.tensor([0.9, 0.5, 1.0]).view(-1, 1, 1),
    )
    here, there = dropout_mask(*given), dropout_mask(*(tensor.cuda() for tensor in given))
    assert isinstance(here, TensorMask)
    assert isinstance(there, TritonMask)
    x, total = (torch.randn(3, 33, features).to(dtype) for _ in range(2))
    for kind in {dtype, torch.bfloat16}:
        assert torch.equal(there.apply(x.cuda(), kind).cpu(), here.apply(x, kind))
    sums = total.cuda()
    there.add_to(sums, x.cuda())
    here.add_to(total, x)
    torch.testing.assert_close(sums.cpu(), total)


def test_a_solo_trials_dropout_is_the_kernels_too():
    torch.manual_seed(0)
    told = []
    for device in ("cpu", "cuda"):
        places = BatchPositions()
        places.set([row_key(3, 5, row) for row in range(4)], 12, torch.device(device))
        x = torch.linspace(-1, 1, 4 * 12 * 40).view(4, 12, 40).to(device).requires_grad_()
        found = HashDropout(0.3, places, 1, 40).to(device)(x)
        (gradient,) = torch.autograd.grad((found * found.detach()).sum(), x)
        told.append((found.detach().cpu(), gradient.cpu()))
    for ours, plain in zip(*told, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-7, rtol=1e-6)
        assert torch.equal(ours == 0, plain == 0)
