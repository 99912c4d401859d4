"""Locks on HPU modules: exclusive between processes, shared by ranks, gone with their holder."""

import multiprocessing
import os
import signal

import pytest
from helpers.ray.hpu_holder import EIGHT, hold

from sweep.ray_backend.device_locks import DeviceLocks, machine_modules, parse_modules
from sweep.ray_backend.rank_placement import (
    HeldResources,
    NoFreeHpusError,
    PlacementRequest,
    RankPlacement,
    reserve,
    set_rank_environment,
)


@pytest.fixture
def holder(tmp_path):
    context = multiprocessing.get_context("spawn")
    started = []

    def start(count):
        mine, theirs = context.Pipe()
        process = context.Process(target=hold, args=(tmp_path, count, theirs))
        process.start()
        theirs.close()
        started.append((process, mine))
        return process, mine.recv()

    yield start
    for process, _ in started:
        process.kill()
        process.join()


def test_groups_of_several_processes_never_overlap_and_a_kill_frees_them(holder, tmp_path):
    pair, first = holder(2)
    _, second = holder(4)
    assert first == ("0", "1")
    assert second == ("4", "5", "6", "7")
    mine = DeviceLocks(tmp_path)
    assert mine.acquire(EIGHT, 4) == ()
    assert mine.acquire(EIGHT, 2) == ("2", "3")
    assert mine.acquire(EIGHT, 1) == ()
    os.kill(pair.pid, signal.SIGKILL)
    pair.join()
    assert mine.acquire(EIGHT, 1) == ("0",)
    mine.release()
    assert DeviceLocks(tmp_path).acquire(EIGHT, 4) == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("count", "groups"),
    [
        (1, ["0", "1", "2", "3", "4", "5", "6", "7"]),
        (2, ["0,1", "2,3", "4,5", "6,7"]),
        (4, ["0,1,2,3", "4,5,6,7"]),
        (8, ["0,1,2,3,4,5,6,7"]),
    ],
)
def test_what_trials_of_each_size_are_shown_until_one_is_killed(
    holder, tmp_path, monkeypatch, count, groups
):
    """The variable that Gaudi's software reads is set on every rank; no module is in two trials."""
    request = PlacementRequest(hpus=count)
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", ",".join(EIGHT))
    killed, first = holder(count)
    assert ",".join(first) == groups[0]
    shown, held = [], []
    for _ in groups[1:]:
        placement, resources = reserve(request, "node", "127.0.0.1", 8, tmp_path)
        placements = [placement, *[RankPlacement("node")] * (count - 1)]
        held += [resources, *(HeldResources(DeviceLocks(tmp_path)) for _ in range(count - 1))]
        for rank in range(count):
            environment: dict[str, str] = {}
            set_rank_environment(rank, placements, held[rank - count], environment)
            assert environment["HABANA_VISIBLE_MODULES"] == ",".join(placement.modules)
            assert environment.get("LOCAL_RANK", "0") == str(rank)
        shown.append(",".join(placement.modules))
    assert sorted(shown) == groups[1:]
    with pytest.raises(NoFreeHpusError, match=f"group of {count} of the 8 HPUs"):
        reserve(request, "node", "127.0.0.1", 8, tmp_path, wait_seconds=0.0)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    again, resources = reserve(request, "node", "127.0.0.1", 8, tmp_path)
    assert again.modules == first
    for one in (*held, resources):
        one.locks.release()


def test_a_group_stays_taken_until_its_last_rank_has_gone(holder, tmp_path):
    first, group = holder(2)
    beside, other = DeviceLocks(tmp_path), DeviceLocks(tmp_path)
    beside.share(group)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert other.acquire(EIGHT[:2], 2) == ()
    beside.release()
    assert other.acquire(EIGHT[:2], 2) == group


def test_modules_of_any_number_are_aligned_by_their_order(tmp_path):
    modules = ["6", "2", "5", "1"]
    first, second, third = DeviceLocks(tmp_path), DeviceLocks(tmp_path), DeviceLocks(tmp_path)
    assert first.acquire(modules, 2) == ("6", "2")
    assert second.acquire(modules, 2) == ("5", "1")
    assert third.acquire(modules, 1) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0, 6\n1, 2\n2, 5\n", ["6", "2", "5"]),
        ("1, 2\n0, 6\n", ["6", "2"]),
        ("index, module_id\n0, 3\n", ["3"]),
        ("", []),
    ],
)
def test_what_hl_smi_says(text, expected):
    assert parse_modules(text) == expected


def test_the_modules_of_the_machine(monkeypatch):
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "7,5")
    assert machine_modules(2, lambda: ["3", "1", "2"]) == ["7", "5"]
    monkeypatch.delenv("HABANA_VISIBLE_MODULES")
    assert machine_modules(2, lambda: ["3", "1", "2"]) == ["3", "1"]
    assert machine_modules(3, list) == ["0", "1", "2"]


def test_a_link_in_the_place_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "locks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="locks"):
        DeviceLocks(tmp_path / "locks").acquire(EIGHT, 1)
    assert list((tmp_path / "elsewhere").iterdir()) == []
