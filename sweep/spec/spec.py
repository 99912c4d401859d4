"""The specification of a sweep: what to search, how, until when, on what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sweep.spec.dimension import Choices, Dimension, Range
from trial.config.sections import Section
from trial.store.metrics import MAXIMIZED

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""Pattern of a study's name, which is also the name of its folder."""

Direction = Literal["minimize", "maximize"]


class ObjectiveSpec(Section):
    """A metric to minimise or maximise."""

    metric: str = Field(default="eval_loss", min_length=1)
    """`eval_loss`, `eval_loss_per_byte`, `seconds`, `seconds_per_step`, `peak_memory_bytes`,
    `trainable_parameters`, `tokens_per_second`, or another metric that trials report."""
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
    """The Optuna sampler, which proposes the parameters of trials."""

    name: str = "tpe"
    """`tpe`, `gp`, `random`, `grid`, `qmc`, `cmaes` or `nsga2`."""
    seed: int | None = Field(default=0, ge=0, lt=2**32)
    """Seed of the sampler; null draws one."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keywords of the Optuna sampler; in the file they are written beside `name`."""


class PrunerSpec(Section):
    """The Optuna pruner, which stops trials that fall behind others."""

    name: str = "none"
    """`none`, `median`, `percentile`, `successive_halving`, `hyperband`, `patient`, `threshold`
    or `wilcoxon`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keywords of the Optuna pruner; in the file they are written beside `name`. `patient` takes
    `wrapped: {name: ...}`."""
    evaluate: Literal["steps", "rungs"] = "steps"
    """`steps` evaluates trials every `training.eval_steps`; `rungs` only where `successive_halving`
    or `hyperband` decides, and at the end: it takes fewer device-seconds and gives a coarser
    curve."""


class StopSpec(Section):
    """When the sweep ends: at the first of these bounds."""

    trials: int | None = Field(default=None, ge=1)
    """Number of trials started, duplicates not counted."""
    hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Hours of wall time."""
    device_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Number of devices held times hours, summed over all trials."""
    no_improvement: int | None = Field(default=None, ge=1)
    """Finished trials in a row without a new best; where trials were measured on unlike evaluation
    sets, without one better than an earlier one of its group (docs/data.md)."""
    target: float | None = Field(default=None, allow_inf_nan=False)
    """The sweep ends once the objective is at least as good as this; where trials were measured on
    unlike evaluation sets, in the largest group."""


class BudgetSpec(Section):
    """What the sweep may cost: another way to write `stop.device_hours`."""

    device_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Number of devices held times hours; at this many, running trials are checkpointed."""


class ResourceSpec(Section):
    """The resources of a trial, and how many trials run at once."""

    devices_per_trial: int = Field(default=1, ge=1)
    """Whole HPUs or GPUs, or processes on `device: cpu`."""
    cpus_per_trial: int = Field(default=1, ge=1)
    """CPU cores of each process on `device: cpu`."""
    concurrency: int | None = Field(default=None, ge=1)
    """Number of jobs at once, at most; null uses all devices."""
    pack: Literal["auto"] | Annotated[int, Field(ge=1)] = 1
    """Number of LoRA trials that one job trains at once over a shared base model, where they may
    share it (docs/packing.md); `auto` times a few batches and takes as many as add speed."""
    ask_ahead: int | None = Field(default=None, ge=0)
    """Number of proposals drawn before a device is free. Null draws one per concurrent trial if the
    sampler is so slow that devices would wait for it, else none: a proposal drawn late knows more
    results."""
    price_per_device_hour: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Price of a device-hour, for the amounts of money in plans and reports."""
    currency: str = Field(default="", max_length=20)
    """Currency shown with amounts of money, such as `EUR`."""
    memory_per_device_gb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Memory of one device in GiB (2^30 bytes, as device tools count, not GB as the key's name may
    suggest), where this machine cannot tell; trials that certainly need more are refused."""
    min_free_gb: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Free disk space in GB (10^9 bytes) that the study's disk must have, beyond what the largest
    trial took, for a trial to start; 0 does not check."""
    keep_checkpoints: int = Field(default=1, ge=0)
    """Number of the best finished trials that keep their last checkpoint, to be trained longer; of
    each group (the largest eight) where trials were measured on unlike evaluation sets."""


class ConfirmSpec(Section):
    """Repeat the best configurations with other seeds after the search, to confirm the ranking."""

    top: int = Field(default=3, ge=1)
    """Number of the best configurations; with several objectives, spread along the Pareto front."""
    per: str | None = Field(default=None, min_length=1)
    """A searched key with a list of values (`lora.r`): take the best `top` at each value, not over
    all."""
    seeds: int = Field(default=5, ge=2)
    """Number of seeds of each, that of the search included; all have the same seeds."""


class FailuresSpec(Section):
    """How often failed trials are tried again, by kind of failure.

    A diverged trial is not tried again: it is reported to Optuna as pruned at its step, so that the
    sampler learns. `base.diverged_above` bounds the loss; NaN and infinity always count.
    """

    out_of_memory_retries: int = Field(default=1, ge=0)
    """Number of tries with half the micro-batch and twice the accumulation, which keeps the
    effective batch. After them the trial is infeasible, which the sampler learns by a
    constraint."""
    lost_retries: int = Field(default=3, ge=0)
    """Number of times in a row, without a new evaluation between them, that a trial goes on from
    its checkpoint after its worker or node was lost."""
    hung_minutes: float | None = Field(default=30.0, gt=0, allow_inf_nan=False)
    """Minutes without a step or an evaluated batch that end a trial; null never does."""
    hung_retries: int = Field(default=1, ge=0)
    """Number of tries, from its checkpoint, after a trial hung."""
    device_busy_retries: int = Field(default=10, ge=0)
    """Number of tries after another process held the device."""
    device_busy_wait: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    """Seconds before each of these tries."""
    error_retries: int = Field(default=0, ge=0)
    """Number of tries after any other exception, which usually only the user can mend."""
    alike: int = Field(default=3, ge=1)
    """Number of trials in a row that fail in the same way after which the sweep ends. Where the
    base model is searched, they must be of as many different base models (or of all, where there
    are fewer): one bad base model ends no sweep. Those that diverged or ran out of memory count
    only until a trial is complete: the sampler learns to avoid them."""


class SweepSpec(BaseModel):
    """A whole sweep, as `sweep.loading.loader.load` has checked it."""

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
    """Further searched values, by names of your own, that expressions and conditions may use."""
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
    """Points to try first, by dotted path."""
    warm_start: tuple[str, ...] = ()
    """Names of earlier studies under the same `--runs`: samplers `tpe` and `gp` learn from their
    complete trials that lie in this space. These do not become trials of this study."""
    stop: StopSpec = StopSpec()
    """When the sweep ends."""
    resources: ResourceSpec = ResourceSpec()
    """The resources of a trial, and how many trials run at once."""
    confirm: ConfirmSpec | None = None
    """Repeat the best configurations with other seeds after the search; null does not."""
    failures: FailuresSpec = FailuresSpec()
    """How often failed trials are tried again, by kind of failure."""

    def content(self) -> dict[str, Any]:
        """The spec as JSON values, equal for files that mean the same; kept in `study.json`."""
        return self.model_dump(mode="json")

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> SweepSpec:
        """The spec whose `content` this is.

        Raises:
            ValueError: It is no spec; says where and why.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(["spec", *map(str, first["loc"])])
            raise ValueError(f"study.json: {key}: {first['msg']}") from error

    def confirmed_count(self) -> int:
        """The number of configurations that are repeated with other seeds, at most."""
        if self.confirm is None:
            return 0
        branches = {**self.space, **self.variables}.get(self.confirm.per or "", ())
        counts = [b.count() or 1 for b in branches if isinstance(b, Choices | Range)]
        return self.confirm.top * (sum(counts) or 1)

    def varies(self, path: str) -> bool:
        """Whether trials can differ in a path by search; derived values do not count."""
        branches = {**self.space, **self.variables}.get(path, ())
        return any(isinstance(b, Choices | Range) and b.count() != 1 for b in branches) or (
            len(branches) > 1 or any(b.when for b in branches)
        )
