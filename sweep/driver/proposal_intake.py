"""Proposals on their way from the decider to the driver, drawn early where devices would wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from sweep.driver.interfaces import Decider, Proposal
from sweep.driver.prefetch import Prefetcher, prefetch_count
from sweep.driver.progress import SweepProgress


class ProposalIntake:
    """Draws proposals from a decider and keeps those that can be trained, in their order."""

    def __init__(
        self,
        decider: Decider,
        record_untrainable: Callable[[Proposal], object],
        ask_ahead: int | None = None,
    ) -> None:
        """Begin without a proposal.

        Args:
            decider: Its `ask` is called in a thread of its own.
            record_untrainable: Called with every duplicate and every invalid draw.
            ask_ahead: Proposals to have ready; None: as many as keep the devices busy.
        """
        self.exhausted = False
        """Whether the decider has nothing more to propose."""
        self._decider = decider
        self._record_untrainable = record_untrainable
        self._ask_ahead = ask_ahead
        self._prefetcher: Prefetcher[Proposal | None] = Prefetcher(decider.ask)
        self._ready: deque[Proposal] = deque()

    @property
    def drawing(self) -> bool:
        """Whether a proposal was requested and has not been received."""
        return self._prefetcher.requested > 0

    def pop(self) -> Proposal | None:
        """The oldest proposal that can be trained; None while there is none."""
        return self._ready.popleft() if self._ready else None

    def prefetch(self, progress: SweepProgress) -> None:
        """Request proposals that will be needed soon; never more than trials are planned."""
        if not self.exhausted:
            self._prefetcher.request(self._wanted(progress) - len(self._ready))

    def draw(self, timeout: float | None) -> bool:
        """Request one proposal; True if any arrived within `timeout` seconds (None: no limit)."""
        self._prefetcher.request(1)
        return self.receive(timeout)

    def receive(self, timeout: float | None) -> bool:
        """Take in what was drawn since; True if there was anything."""
        arrived = self._prefetcher.take(timeout)
        for proposal in arrived:
            if proposal is None:
                self.exhausted = True
            elif proposal.trainable:
                self._ready.append(proposal)
            else:
                self._record_untrainable(proposal)
        return bool(arrived)

    def requeue_unstarted(self) -> None:
        """Return the proposals that were drawn and never started to the decider."""
        left = [*self._ready, *(proposal for proposal in self._prefetcher.close() if proposal)]
        self._ready.clear()
        for proposal in left:
            self._decider.requeue(proposal.number)

    def cancel(self) -> None:
        """Draw no further proposal; waits for nothing."""
        self._prefetcher.cancel()

    def _wanted(self, progress: SweepProgress) -> int:
        count = self._ask_ahead
        if count is None:
            ask_seconds = max(self._prefetcher.ask_seconds, self._decider.ask_seconds)
            count = prefetch_count(ask_seconds, progress.mean_seconds, progress.capacity)
        if progress.planned is None:
            return count
        return min(count, progress.planned - progress.begun)
