"""Messages between ranks, each a thread with a store of torch.distributed in memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import HashStore

from trial.distributed.rank_group import (
    PeerLost,
    RankGroup,
    ReadOnlyTrialFolder,
    is_peer_loss,
    rank_environment,
)
from trial.store.failure_kinds import PeerFailed
from trial.store.folders import TrialFolder
from trial.store.records import Evaluation, Result

SIZE = 3


def on_every_rank(act: Callable[[RankGroup], Any], size: int = SIZE) -> list[Any]:
    """What `act` returns or raises on each rank, indexed by rank."""
    store = HashStore()
    store.set_timeout(timedelta(seconds=60))

    def attempt(rank: int) -> Any:
        try:
            return act(RankGroup(rank, size, store))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(attempt, range(size)))


def test_alone_nothing_is_sent():
    group = RankGroup()
    assert group.all_gather({"a": 1}) == [{"a": 1}]
    assert group.broadcast(2) == 2
    assert group.run_on_all(lambda: 3) == 3
    group.close()


def test_every_rank_gets_every_value_in_each_round():
    def act(group: RankGroup) -> list[Any]:
        return [group.all_gather([group.rank, round_]) for round_ in range(5)]

    expected = [[[rank, round_] for rank in range(SIZE)] for round_ in range(5)]
    assert on_every_rank(act) == [expected] * SIZE


def test_rank_0_decides():
    assert on_every_rank(lambda group: group.broadcast(10 + group.rank)) == [10] * SIZE
    assert on_every_rank(lambda group: group.broadcast("x", no_timeout=True)) == ["x"] * SIZE


def test_what_fails_on_one_rank_fails_on_all():
    def act(group: RankGroup) -> str:
        def body() -> str:
            if group.rank == 1:
                raise MemoryError("full")
            return "done"

        return group.run_on_all(body)

    first, second, third = on_every_rank(act)
    assert isinstance(second, MemoryError)
    for error in (first, third):
        assert isinstance(error, PeerFailed)
        assert (error.name, error.kind) == ("MemoryError", "out_of_memory")
        assert str(error) == "rank 1: MemoryError: full"


def test_an_error_that_all_know_is_not_sent_again():
    """A nested call that has failed everywhere: the outer one must not wait for a message."""

    def act(group: RankGroup) -> int:
        def body() -> None:
            if group.rank == 0:
                raise ValueError("bad")

        try:
            group.run_on_all(lambda: group.run_on_all(body))
        except (ValueError, PeerFailed):
            return group.all_gather(group.rank)[-1]
        return -1

    assert on_every_rank(act) == [SIZE - 1] * SIZE


def test_a_lost_peer_is_not_a_failure_of_this_rank():
    def act(group: RankGroup) -> None:
        def body() -> None:
            raise RuntimeError("[gloo/transport] Connection closed by peer")

        group.run_on_all(body)

    assert [type(error) for error in on_every_rank(act)] == [PeerLost] * SIZE


def test_rank_0_closes_last():
    closed: list[int] = []

    def act(group: RankGroup) -> None:
        if group.rank:
            closed.append(group.rank)
        group.close()
        if not group.rank:
            closed.append(0)

    on_every_rank(act)
    assert closed[-1] == 0


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("Connection closed by peer [127.0.0.1]:3"), True),
        (RuntimeError("NCCL error: remote process exited or there was a network error"), True),
        (RuntimeError("HCCL communication failed"), True),
        (BrokenPipeError(32, "Broken pipe"), True),
        (RuntimeError("shapes do not match"), False),
        (MemoryError(), False),
    ],
)
def test_which_errors_mean_a_lost_peer(error, lost):
    assert is_peer_loss(error) is lost


def test_the_environment_of_ranks_on_two_hosts():
    variables = [rank_environment(rank, ["a", "a", "b"], "10.0.0.1", 99) for rank in range(3)]
    assert [v["RANK"] for v in variables] == ["0", "1", "2"]
    assert [v["LOCAL_RANK"] for v in variables] == ["0", "1", "0"]
    assert [v["LOCAL_WORLD_SIZE"] for v in variables] == ["2", "2", "1"]
    assert {v["WORLD_SIZE"] for v in variables} == {"3"}
    assert {(v["MASTER_ADDR"], v["MASTER_PORT"]) for v in variables} == {("10.0.0.1", "99")}
    assert "GLOO_SOCKET_IFNAME" not in variables[0]


def test_ranks_of_one_host_stay_on_the_loopback_interface():
    variables = rank_environment(1, ["a", "a"], "127.0.0.1", 99)
    assert {variables[f"{name}_SOCKET_IFNAME"] for name in ("GLOO", "NCCL", "HCCL")} == {"lo"}


def test_other_ranks_write_nothing_but_their_log(tmp_path):
    folder = ReadOnlyTrialFolder(TrialFolder(tmp_path), 2)
    folder.append(Evaluation(step=1, eval_loss=1.0))
    folder.write_result(Result(state="complete"))
    assert list(tmp_path.iterdir()) == []
    assert folder.log.name == "train.rank2.log"
