"""Several ranks that train one trial: what the first decides, all do at the same step.

Ranks speak through the store that torch.distributed meets in, not through collectives: a word costs
a tenth of a millisecond and never waits for a device. Rank 0 alone writes the trial's folder. What
goes wrong on one rank can be told instead of a word (`together`): then it goes wrong on all.

Loads torch only when a gang of more than one rank joins.
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
"""Number of an open socket that listens at MASTER_PORT, so that nobody takes the port meanwhile."""

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others; torch.distributed's own measure."""

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
"""Text, lower case, of errors that speak of another rank's end."""

_generations = itertools.count()
"""Every gang of a process has keys of its own in the store, which outlives it."""

T = TypeVar("T")


class PeerLost(RuntimeError):  # noqa: N818 (what happened; the trial itself has not failed)
    """Another rank is gone; why, only whoever started the ranks can tell."""


class TakenOver(PeerLost):
    """Another process has taken the trial up; this one, cut off perhaps, must write no more."""


class RankGroup:
    """The ranks of one trial as one of them sees the others; alone, it costs nothing."""

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._store = store
        self._turn = 0
        self._told: BaseException | None = None

    def all_gather(self, value: Any, *, patient: bool = False) -> list[Any]:
        """Everybody's value, a JSON one, in the order of ranks. Every rank must call this.

        Waits for half an hour; without end if `patient`, as long as the first rank lives.

        Raises:
            PeerFailed: another rank had a failure to tell instead.
        """
        if self.size == 1:
            return [value]
        said = self._speak({"value": value}, patient)
        for rank, word in enumerate(said):
            if "failed" in word:
                raise failure_kinds.PeerFailed(rank, *word["failed"])
        return [word["value"] for word in said]

    def broadcast(self, value: Any, *, patient: bool = False) -> Any:
        """What rank 0 says."""
        return self.all_gather(value, patient=patient)[0]

    def run_on_all(self, act: Callable[[], T]) -> T:
        """Do something on every rank; where it fails on one, it fails on all.

        Nothing in it may fail between an exchange and a collective: the others wait there.

        Raises:
            PeerFailed: it has failed on another rank.
            PeerLost: another rank is gone.
        """
        if self.size == 1:
            return act()
        try:
            done = act()
        except Exception as error:
            self._tell(error)
            raise
        self.all_gather(None)
        return done

    def part(self) -> None:
        """Say goodbye: the first rank, whose process may hold the store, goes last."""
        if self.rank:
            self._store.set(f"bye/{self.rank}", "")
        elif self.size > 1:
            self._store.wait([f"bye/{rank}" for rank in range(1, self.size)])

    def _tell(self, error: Exception) -> None:
        """Say what went wrong here, unless all have heard of it."""
        if error is self._told or isinstance(error, failure_kinds.PeerFailed):
            return
        if is_peer_loss(error):
            raise PeerLost(failure_kinds.cause_of(error, None).message) from error
        self._told = error
        cause = failure_kinds.cause_of(error, None)
        self._speak({"failed": [type(error).__name__, cause.kind, cause.message]}, False)

    def _speak(self, word: dict[str, Any], patient: bool) -> list[dict[str, Any]]:
        self._turn += 1
        # All had spoken the last time, so all have heard what was said before that.
        self._store.delete_key(f"{self._turn - 2}/{self.rank}")
        self._store.set(f"{self._turn}/{self.rank}", json.dumps(word))
        keys = [f"{self._turn}/{rank}" for rank in range(self.size)]
        while patient and not self._there(keys):
            pass
        # Nothing after this: the first rank, and the store with it, may be gone in a moment.
        return [json.loads(text) for text in self._store.multi_get(keys)]

    def _there(self, keys: list[str]) -> bool:
        """Wait until all have spoken; False when that took too long for one wait."""
        from torch.distributed import DistStoreError

        try:
            self._store.wait(keys)
        except DistStoreError as error:
            if "timeout" not in str(error):
                raise
            return False
        return True


def join() -> RankGroup:
    """The gang that the environment tells of (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""
    size = rank_env.world_size()
    if size == 1:
        return RankGroup()
    from torch.distributed import PrefixStore, TCPStore

    rank = rank_env.rank()
    # torchrun's agent holds the store itself.
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    listener = os.environ.pop(LISTENER, None)
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        size,
        serves,
        timeout=PATIENCE,
        wait_for_workers=False,
        # torch.distributed opens the same one again in a moment.
        multi_tenant=True,
        master_listen_fd=int(listener) if listener and serves else None,
    )
    # torchrun keeps its store when it starts ranks anew.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return RankGroup(rank, size, PrefixStore(f"gaudi-sweep/{start}/{next(_generations)}", store))


def is_peer_loss(error: BaseException) -> bool:
    """Whether an exception only says that another rank has gone."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = str(error).lower()
    return "DistError" in kinds or any(sign in text for sign in PEER_SIGNS)


class ReadOnlyTrialFolder(TrialFolder):
    """A trial folder as ranks other than the first have it: to read, and with a log of its own."""

    def __init__(self, folder: TrialFolder, rank: int) -> None:
        super().__init__(folder.path)
        self.log = self.path / f"train.rank{rank}.log"

    def append(self, line: Evaluation | TrainLog) -> None:
        """Rank 0 writes."""

    def append_attempt(self, attempt: Attempt) -> None:
        """Rank 0 writes."""

    def write_result(self, result: Result) -> None:
        """Rank 0 writes."""


def folder_of_rank(folder: TrialFolder) -> TrialFolder:
    """The folder as this rank may use it."""
    rank = rank_env.rank()
    return ReadOnlyTrialFolder(folder, rank) if rank else folder


def rank_environment(rank: int, homes: Sequence[str], address: str, port: int) -> dict[str, str]:
    """What torch.distributed reads: `homes` names the machine of every rank, in their order.

    `address` and `port` are where rank 0 listens. On one machine all stays on the loopback
    interface.
    """
    here = [other for other, home in enumerate(homes) if home == homes[rank]]
    alone = len(here) == len(homes)
    variables = {
        "RANK": str(rank),
        "LOCAL_RANK": str(here.index(rank)),
        "WORLD_SIZE": str(len(homes)),
        "LOCAL_WORLD_SIZE": str(len(here)),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
    return variables | (interfaces("lo") if alone else {})


def interfaces(name: str) -> dict[str, str]:
    """Let every backend speak through one network interface."""
    return {f"{backend}_SOCKET_IFNAME": name for backend in ("GLOO", "NCCL", "HCCL")}
