"""Messages between the ranks that train one trial, and what a rank may write.

Ranks exchange JSON through a `TCPStore` of torch.distributed, not through collectives: a message
takes a tenth of a millisecond and never waits for a device. Rank 0 alone writes the trial's folder.
A failure on one rank can be sent in place of a value (`run_on_all`); then every rank fails.

Torch is loaded only when a group of more than one rank is formed.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from trial.distributed import rank_env
from trial.store import failure_kinds
from trial.store.folders import TrialFolder
from trial.store.records import Attempt, Evaluation, Result, TrainLog

LISTENER = "GAUDI_SWEEP_LISTENER"
"""Variable with the descriptor of a socket that listens at MASTER_PORT, which reserves the port."""

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others: the default of torch.distributed."""

PEER_SIGNS = (
    "closed by peer",
    "reset by peer",
    "gloo/transport",
    "broken pipe",
    "failed to recv",
    "nccl error",
    "nccl watchdog",
    "remote process exited",
    "hccl",
    "timed out after",
)
"""Text, lower case, of errors by which a backend reports that another rank has ended."""

_groups = itertools.count()
"""Number of the next group of this process, part of its keys in the store."""

T = TypeVar("T")


class PeerLost(RuntimeError):  # noqa: N818 (what happened; the trial itself has not failed)
    """Another rank has ended; only the process that started the ranks can tell why."""


class TrialTakenOver(PeerLost):
    """Another process has started the trial anew; this one must not write to its folder."""


class RankGroup:
    """The ranks that train one trial, as one of them sees the others.

    With a single rank every method returns at once.

    Args:
        rank: Number of this rank.
        size: Number of ranks.
        store: A `torch.distributed.Store` that all ranks share; None with one rank.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._store = store
        self._round = 0
        self._sent_error: BaseException | None = None

    def all_gather(self, value: Any, *, no_timeout: bool = False) -> list[Any]:
        """All-gather: every rank's JSON value, indexed by rank. Every rank must call this.

        Args:
            value: This rank's value, of types that JSON knows.
            no_timeout: Wait as long as rank 0 lives, not for `TIMEOUT` only.

        Raises:
            PeerFailed: another rank has sent a failure in place of its value.
            torch.distributed.DistError: the store is gone, or a rank did not send in time
                (`is_peer_loss`).
        """
        if self.size == 1:
            return [value]
        messages = self._exchange({"value": value}, no_timeout)
        for rank, message in enumerate(messages):
            if "failed" in message:
                raise failure_kinds.PeerFailed(rank, *message["failed"])
        return [message["value"] for message in messages]

    def broadcast(self, value: Any, *, no_timeout: bool = False) -> Any:
        """Rank 0's JSON value, on every rank; arguments and errors as in `all_gather`."""
        return self.all_gather(value, no_timeout=no_timeout)[0]

    def run_on_all(self, act: Callable[[], T]) -> T:
        """Call a function on every rank; if it raises on one rank, every rank raises.

        The function must not raise between a message and a collective: the other ranks would wait
        in the collective.

        Raises:
            PeerFailed: the function has raised on another rank.
            PeerLost: another rank has ended.
        """
        if self.size == 1:
            return act()
        try:
            returned = act()
        except Exception as error:
            self._send_error(error)
            raise
        self.all_gather(None)
        return returned

    def close(self) -> None:
        """End the group. Rank 0, whose process may hold the store, returns last."""
        if self.rank:
            self._store.set(f"bye/{self.rank}", "")
        elif self.size > 1:
            self._store.wait([f"bye/{rank}" for rank in range(1, self.size)])

    def _send_error(self, error: Exception) -> None:
        """Send an exception to the other ranks, unless they know it already."""
        if error is self._sent_error or isinstance(error, failure_kinds.PeerFailed):
            return
        if is_peer_loss(error):
            raise PeerLost(failure_kinds.cause_of(error, None).message) from error
        self._sent_error = error
        cause = failure_kinds.cause_of(error, None)
        self._exchange({"failed": [type(error).__name__, cause.kind, cause.message]}, False)

    def _exchange(self, message: dict[str, Any], no_timeout: bool) -> list[dict[str, Any]]:
        """Send a message and return every rank's message of this round."""
        self._round += 1
        # All ranks have sent in the last round, so all have read the messages of the one before.
        self._store.delete_key(f"{self._round - 2}/{self.rank}")
        self._store.set(f"{self._round}/{self.rank}", json.dumps(message))
        keys = [f"{self._round}/{rank}" for rank in range(self.size)]
        while no_timeout and not self._wait_for(keys):
            pass
        # Nothing after this: rank 0, and the store with it, may end at any moment.
        return [json.loads(text) for text in self._store.multi_get(keys)]

    def _wait_for(self, keys: list[str]) -> bool:
        """Wait until all keys are set; False when the store's timeout has passed."""
        from torch.distributed import DistStoreError

        try:
            self._store.wait(keys)
        except DistStoreError as error:
            if "timeout" not in str(error):
                raise
            return False
        return True


def connect() -> RankGroup:
    """The group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT of the environment describe."""
    size = rank_env.world_size()
    if size == 1:
        return RankGroup()
    from torch.distributed import PrefixStore, TCPStore

    rank = rank_env.rank()
    # torchrun's agent holds the store itself.
    is_master = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    listener = os.environ.pop(LISTENER, None)
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        size,
        is_master,
        timeout=TIMEOUT,
        wait_for_workers=False,
        # torch.distributed opens the same store again for its process group.
        multi_tenant=True,
        master_listen_fd=int(listener) if listener and is_master else None,
    )
    # torchrun keeps its store when it restarts the ranks.
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return RankGroup(rank, size, PrefixStore(f"gaudi-sweep/{restart}/{next(_groups)}", store))


def is_peer_loss(error: BaseException) -> bool:
    """Whether an exception only reports that another rank has ended."""
    classes = {cls.__name__ for cls in type(error).__mro__}
    text = str(error).lower()
    return "DistError" in classes or any(sign in text for sign in PEER_SIGNS)


class ReadOnlyTrialFolder(TrialFolder):
    """The trial folder of a rank other than 0: it can be read, and has a log of its own."""

    def __init__(self, folder: TrialFolder, rank: int) -> None:
        super().__init__(folder.path)
        self.log = self.path / f"train.rank{rank}.log"

    def append(self, line: Evaluation | TrainLog) -> None:
        """Does nothing: rank 0 writes."""

    def append_attempt(self, attempt: Attempt) -> None:
        """Does nothing: rank 0 writes."""

    def write_result(self, result: Result) -> None:
        """Does nothing: rank 0 writes."""


def folder_of_rank(folder: TrialFolder) -> TrialFolder:
    """The folder as this process may use it: for reading only unless its rank is 0."""
    rank = rank_env.rank()
    return ReadOnlyTrialFolder(folder, rank) if rank else folder


def rank_environment(rank: int, hosts: Sequence[str], address: str, port: int) -> dict[str, str]:
    """The variables that torch.distributed reads in one rank's process.

    Args:
        rank: Number of the rank.
        hosts: The host of every rank, indexed by rank. On a single host all communication goes
            through the loopback interface.
        address: Where rank 0 listens.
        port: Where rank 0 listens.
    """
    local = [other for other, host in enumerate(hosts) if host == hosts[rank]]
    variables = {
        "RANK": str(rank),
        "LOCAL_RANK": str(local.index(rank)),
        "WORLD_SIZE": str(len(hosts)),
        "LOCAL_WORLD_SIZE": str(len(local)),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
    return variables | (socket_interface("lo") if len(local) == len(hosts) else {})


def socket_interface(name: str) -> dict[str, str]:
    """Variables that make every backend communicate through one network interface."""
    return {f"{backend}_SOCKET_IFNAME": name for backend in ("GLOO", "NCCL", "HCCL")}
