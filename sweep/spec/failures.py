"""The `failures` section of a sweep file."""

from __future__ import annotations

from pydantic import Field

from trial.config.trial_config import Section


class FailuresSpec(Section):
    """Failures by kind, each with its own policy.

    A diverged trial has none: it is told as pruned at its step, so that the sampler learns, and is
    not tried again. `base.diverged_above` bounds the loss; NaN and infinity always count.
    """

    out_of_memory_retries: int = Field(default=1, ge=0)
    """Tries with half the micro-batch and twice the accumulation: the same effective batch. Then
    the trial is infeasible, and the sampler is told by a constraint."""
    lost_retries: int = Field(default=3, ge=0)
    """Losses of a trial's worker or node in a row without a new evaluation. It goes on from its
    checkpoint each time."""
    hung_minutes: float | None = Field(default=30.0, gt=0, allow_inf_nan=False)
    """Minutes without a step or an evaluated batch after which a trial is ended; null waits on."""
    hung_retries: int = Field(default=1, ge=0)
    """Tries after a trial hung, from its checkpoint."""
    device_busy_retries: int = Field(default=10, ge=0)
    """Tries after a device that another process holds."""
    device_busy_wait: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    """Seconds before each of them."""
    error_retries: int = Field(default=0, ge=0)
    """Tries after any other exception: usually the user's to mend."""
    alike: int = Field(default=3, ge=1)
    """So many trials in a row that fail in the same way end the sweep. Those that diverged or ran
    out of memory count only until a trial is complete: the sampler learns to keep away."""
