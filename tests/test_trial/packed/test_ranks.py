"""Packed jobs over two ranks equal GaudiTrainer's runs of one, whatever fails on either rank."""

from __future__ import annotations

import json
import multiprocessing
from typing import Any

import pytest
from helpers.training.packed import FLOAT32, MIXED, deviation, read_adapter, read_last
from helpers.training.ranks import KILLED, Packed, run_packed_rank, run_rank, run_ranks
from helpers.training.train import Material

from trial.store.folders import TrialFolder
from trial.training.checkpoints import Checkpoints

LARGEST = {"per_device_train_batch_size": 8}
SHARED = {"per_device_train_batch_size": 4}
"""Of a rank, where one process of its own has `LARGEST`."""
WILD = {"training": {"learning_rate": 1e30, "max_grad_norm": 0.0}}


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("packed_ranks"))


@pytest.fixture(scope="module")
def processes() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "trial.training.attempt",
            "trial.devices.optimum_habana",
            "helpers.training.ranks",
            "deepspeed",
        ]
    )
    return context


@pytest.fixture
def pack(processes):
    """Train folders in slots over two ranks; `first` and `second` are given to one rank only."""

    def train(
        folders: list[TrialFolder],
        slots: int,
        first: dict[str, Any] | None = None,
        second: dict[str, Any] | None = None,
        **both: Any,
    ) -> list[int]:
        paths = tuple(str(folder.path) for folder in folders)
        return run_ranks(
            processes,
            run_packed_rank,
            *[(Packed(paths, slots, **both, **(own or {})),) for own in (first, second)],
        )

    return train


def of_two(material: Material, sections: dict[str, Any]) -> TrialFolder:
    """The trial for two ranks: half as many rows a batch on each."""
    training = {**sections.get("training", {}), **SHARED}
    return material.folder(material.config(**{**sections, "training": training}))


@pytest.fixture(scope="module")
def alone(material) -> list[TrialFolder]:
    """GaudiTrainer's own runs, in one process."""
    return [material.train(material.config(**sections))[0] for sections in MIXED]


@pytest.fixture(scope="module")
def calm(material, processes) -> list[TrialFolder]:
    """Two trials of two ranks in which nothing failed."""
    folders = [of_two(material, MIXED[index]) for index in (0, 2)]
    paths = tuple(str(folder.path) for folder in folders)
    assert run_ranks(processes, run_packed_rank, *[(Packed(paths, 2),)] * 2) == [0, 0]
    return folders


def agreed(folders: list[TrialFolder]) -> list[str | None]:
    """How the trials ended; both ranks must have seen the same."""
    saw = [json.loads((folders[0].path / f"saw-{rank}").read_text()) for rank in (0, 1)]
    assert saw[0] == saw[1]
    return saw[0]


def equal_to_the_bit(first: TrialFolder, second: TrialFolder) -> bool:
    ours, theirs = read_adapter(first), read_adapter(second)
    return deviation(first, second, read_last) == 0.0 and all(
        bool((ours[key] == theirs[key]).all()) for key in theirs
    )


@pytest.mark.parametrize(
    ("slots", "device"), [(2, {}), (3, {"away": True}), (2, {"fixed": True, "away": True}), (0, {})]
)
def test_mixed_trials_over_two_ranks_equal_gaudi_trainers_runs_of_one(
    material, alone, pack, slots, device
):
    folders = [of_two(material, sections) for sections in MIXED]
    assert pack(folders, slots, **device) == [0, 0]
    assert agreed(folders) == ["complete"] * 4
    for reference, folder in zip(alone, folders, strict=True):
        assert deviation(reference, folder) < FLOAT32
        expected, result = reference.read_result(), folder.read_result()
        assert result.devices == 2
        for name in ("steps", "max_steps", "best_step", "tokens", "data_hash", "model_hash"):
            assert getattr(result, name) == getattr(expected, name)
        ours, theirs = read_adapter(folder), read_adapter(reference)
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert ours[key] == pytest.approx(tensor, abs=1e-4)


def test_deepspeeds_two_ranks_give_the_same(material, alone, processes):
    """Stage 0 is data parallelism too, and DeepSpeed's own."""
    training = {**MIXED[1]["training"], **SHARED}
    config = material.config(lora=MIXED[1]["lora"], training=training, zero_stage=0)
    folder = material.folder(config)
    ranks = [(str(folder.path), ("", 0))] * 2
    assert run_ranks(processes, run_rank, *ranks) == [0, 0]
    packed = of_two(material, MIXED[1])
    given = Packed((str(packed.path),), 1)
    assert run_ranks(processes, run_packed_rank, (given,), (given,)) == [0, 0]
    assert deviation(folder, packed) < FLOAT32


def test_both_ranks_obey_rank_0s_control_and_neighbours_are_unchanged(material, calm, pack):
    """One diverges, one is pruned, one waits for a slot, and one is interrupted and goes on."""
    folders = [of_two(material, sections) for sections in (WILD, MIXED[2], MIXED[0], MIXED[0])]
    stops = {"stops": (None, ("interrupt", 10), ("prune", 5), None)}
    # The control of rank 1 does not count.
    ignored = {"stops": (("prune", 0),) * 4}
    assert pack(folders, 3, stops, ignored) == [0, 0]
    assert agreed(folders) == ["failed", None, "pruned", "complete"]
    assert folders[0].read_result().cause.kind == "diverged"
    assert folders[2].read_result().steps == 6
    assert Checkpoints(folders[1]).newest().name == "checkpoint-11"
    assert equal_to_the_bit(folders[3], calm[0])
    assert pack([folders[1]], 1) == [0, 0]
    assert equal_to_the_bit(folders[1], calm[1])


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "method_call", [("accumulate", 6), ("step", 7), ("evaluate", 3), ("load", 2)]
)
def test_too_little_memory_on_one_rank_halves_the_slots_on_both(
    material, calm, pack, rank, method_call
):
    folders = [of_two(material, MIXED[index]) for index in (0, 2)]
    given: list[Any] = [None, None]
    given[rank] = {"fault": (*method_call, "full")}
    assert pack(folders, 2, *given) == [0, 0]
    assert agreed(folders) == ["complete", "complete"]
    for folder, reference in zip(folders, calm, strict=True):
        assert equal_to_the_bit(folder, reference)
        assert folder.read_attempts()[-1].slots == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_what_fails_for_one_trial_on_one_rank_ends_it_alone_on_both(material, calm, pack, rank):
    folders = [of_two(material, MIXED[index]) for index in (2, 0)]
    given: list[Any] = [None, None]
    given[rank] = {"fault": ("evaluate", 1, "wrong")}
    assert pack(folders, 2, *given) == [0, 0]
    assert sorted(agreed(folders)) == ["complete", "failed"]
    failed = next(folder for folder in folders if folder.read_result().state == "failed")
    message = failed.read_result().cause.message
    assert "shapes do not agree" in message
    assert message.startswith("rank 1: ") == (rank == 1)
    (other,) = set(folders) - {failed}
    assert equal_to_the_bit(other, calm[folders[::-1].index(other)])


@pytest.mark.parametrize("dead", [0, 1])
def test_a_killed_rank_ends_the_job_and_the_next_goes_on(material, calm, pack, dead):
    folders = [of_two(material, MIXED[index]) for index in (0, 2)]
    given: list[Any] = [None, None]
    given[dead] = {"fault": ("accumulate", 18, "die")}
    codes = pack(folders, 2, *given)
    assert codes[dead] == KILLED
    assert codes[1 - dead] != 0
    assert not any(folder.read_result() for folder in folders)
    assert any(Checkpoints(folder).newest() for folder in folders)
    assert pack(folders, 2) == [0, 0]
    for folder, reference in zip(folders, calm, strict=True):
        assert equal_to_the_bit(folder, reference)
