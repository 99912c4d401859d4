"""A sweep file as it was understood: what to search, how, until when, on what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sweep.spec.dimension import Choices, Dimension, Range
from trial.config.sections import Section
from trial.store.metrics import MAXIMIZED

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""A study's name is its folder's: one plain name."""

Direction = Literal["minimize", "maximize"]


class ObjectiveSpec(Section):
    """One figure to make small or large."""

    metric: str = Field(default="eval_loss", min_length=1)
    """`eval_loss`, `seconds`, `seconds_per_step`, `peak_memory_bytes`, `trainable_parameters`,
    `tokens_per_second`, or another metric that trials report."""
    direction: Direction = "minimize"
    """`minimize` or `maximize`."""

    @model_validator(mode="before")
    @classmethod
    def _in_full(cls, content: Any) -> Any:
        """The long form of a metric's name; where more is better, the direction is `maximize`."""
        content = {"metric": content} if isinstance(content, str) else content
        if isinstance(content, dict):
            metric = content.get("metric")
            if isinstance(metric, str) and metric in MAXIMIZED:
                return {"direction": "maximize", **content}
        return content


class SamplerSpec(Section):
    """Who proposes trials."""

    name: str = "tpe"
    """`tpe`, `gp`, `random`, `grid`, `qmc`, `cmaes` or `nsga2`."""
    seed: int | None = Field(default=0, ge=0, lt=2**32)
    """Seed of the proposals; null draws one."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keywords of the Optuna sampler; in the file they stand beside `name`."""


class PrunerSpec(Section):
    """Who stops trials that will not win."""

    name: str = "none"
    """`none`, `median`, `percentile`, `successive_halving`, `hyperband`, `patient`, `threshold`
    or `wilcoxon`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keywords of the Optuna pruner; in the file they stand beside `name`. `patient` takes
    `wrapped: {name: ...}`."""
    evaluate: Literal["steps", "rungs"] = "steps"
    """Evaluate trials every `training.eval_steps`, or only where `successive_halving` or
    `hyperband` decides, and at the end: fewer seconds of a device, a coarser curve."""


class StopSpec(Section):
    """When the sweep is over: whichever comes first."""

    trials: int | None = Field(default=None, ge=1)
    """Trials started, duplicates left out."""
    hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Wall time."""
    device_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Devices held, times hours, over all trials."""
    no_improvement: int | None = Field(default=None, ge=1)
    """Finished trials in a row without a new best."""
    target: float | None = Field(default=None, allow_inf_nan=False)
    """A value of the objective that is good enough."""


class BudgetSpec(Section):
    """What the sweep may cost; the same as `stop.device_hours`, for people who think of money."""

    device_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Devices held, times hours: running trials are checkpointed when it is spent."""


class ResourceSpec(Section):
    """What a trial holds while it runs."""

    devices_per_trial: int = Field(default=1, ge=1)
    """Whole HPUs or GPUs, or processes on `device: cpu`."""
    cpus_per_trial: int = Field(default=1, ge=1)
    """CPU cores of each process on `device: cpu`."""
    concurrency: int | None = Field(default=None, ge=1)
    """At most so many jobs at once; null fills the devices."""
    pack: Literal["auto"] | Annotated[int, Field(ge=1)] = 1
    """So many LoRA trials train at once over one base model in each job, where they may share it
    (docs/packing.md); `auto` takes as many as pay, by timing a few batches."""
    ask_ahead: int | None = Field(default=None, ge=0)
    """Proposals drawn before a device is free; null draws one for every slot where the sampler
    would keep devices waiting, and none else: a proposal drawn late knows more."""
    price_per_device_hour: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Turns device-hours into money in plans and reports."""
    currency: str = Field(default="", max_length=20)
    """What stands behind amounts of money: `EUR`."""
    memory_per_device_gb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """GiB of one device, where this machine cannot tell; trials that surely need more are
    refused."""
    min_free_gb: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """No trial is started with less free disk space under the study than this and what the
    largest trial took; 0 does not look."""
    keep_checkpoints: int = Field(default=1, ge=0)
    """So many of the best finished trials keep their last checkpoint, to be trained for longer."""


class ConfirmSpec(Section):
    """After the search, repeat the best configurations over seeds: does the winner really win?"""

    top: int = Field(default=3, ge=1)
    """So many of the best configurations; with several objectives, spread along the front."""
    per: str | None = Field(default=None, min_length=1)
    """A searched key with few values (`lora.r`): the best `top` at each of them, not over all."""
    seeds: int = Field(default=5, ge=2)
    """Seeds of each, the search's own included; the same seeds for all."""


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


class SweepSpec(BaseModel):
    """A whole sweep, checked; see `sweep.loading.loader.load`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(pattern=f"^{NAME}$")
    """Name of the study and of its folder under `runs/`; the file's stem unless given."""
    question: str = ""
    """What the sweep is to answer, in one sentence."""
    base: dict[str, Any] = Field(default_factory=dict)
    """A trial's configuration (model, data, lora, training, ...) or the path of a YAML with one."""
    space: dict[str, Dimension] = Field(default_factory=dict)
    """What is searched, fixed or derived, by dotted path of the trial's configuration."""
    variables: dict[str, Dimension] = Field(default_factory=dict)
    """Further drawn values that expressions and conditions may use, by free name."""
    objectives: tuple[ObjectiveSpec, ...] = (ObjectiveSpec(),)
    """`objective: {metric, direction}`, or several under `objectives`."""
    sampler: SamplerSpec = SamplerSpec()
    """A name, or `{name: ..., seed: ..., any keyword of that Optuna sampler}`; left out, `tpe`, or
    `nsga2` where there are several objectives."""
    pruner: PrunerSpec = PrunerSpec()
    """A name, or `{name: ..., any keyword of that Optuna pruner}`; left out,
    `{name: successive_halving, reduction_factor: 2}`, but `none` for a grid, for several objectives
    and where the objective is known only at the end (docs/defaults.md)."""
    enqueue: tuple[dict[str, Any], ...] = ()
    """Known-good points to try first, by dotted path."""
    warm_start: tuple[str, ...] = ()
    """Names of earlier studies under the same `--runs`: samplers `tpe` and `gp` learn from their
    complete trials as far as they lie in this space. They are no trials of this study."""
    stop: StopSpec = StopSpec()
    """When the sweep is over."""
    resources: ResourceSpec = ResourceSpec()
    """What a trial holds while it runs."""

    confirm: ConfirmSpec | None = None
    """Repeat the best configurations over seeds after the search; null does not."""
    failures: FailuresSpec = FailuresSpec()
    """What to do with failed trials, by kind."""

    def content(self) -> dict[str, Any]:
        """The spec as JSON values: equal for files that mean the same."""
        return self.model_dump(mode="json")

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> SweepSpec:
        """The spec that `content()` described.

        Raises:
            ValueError: it is not one; says where and why.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(["spec", *map(str, first["loc"])])
            raise ValueError(f"study.json: {key}: {first['msg']}") from error

    def confirmed(self) -> int:
        """So many configurations are repeated over seeds, at most."""
        if self.confirm is None:
            return 0
        branches = {**self.space, **self.variables}.get(self.confirm.per or "", ())
        counts = [b.count() or 1 for b in branches if isinstance(b, Choices | Range)]
        return self.confirm.top * (sum(counts) or 1)

    def varies(self, path: str) -> bool:
        """Whether trials can differ in `path` by search (derived values left out)."""
        branches = {**self.space, **self.variables}.get(path, ())
        return any(isinstance(b, Choices | Range) and b.count() != 1 for b in branches) or (
            len(branches) > 1 or any(b.when for b in branches)
        )
