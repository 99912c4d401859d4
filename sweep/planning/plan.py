"""The trials a sweep would run and their cost, printed before anything runs."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from sweep.planning import cost, memory_check
from sweep.planning.cost import Estimate, Profile
from sweep.spec.spec import SweepSpec
from sweep.spec.text import params_text, value_text
from trial.config.sections import TRAINING_DEFAULTS
from trial.config.trial_config import TrialConfig


def plan_table(spec: SweepSpec, count: int, console: Console) -> None:
    """Print the configurations of a grid, or the first proposals of an adaptive sampler."""
    configs = proposals(spec, None if spec.sampler.name == "grid" else count)
    table = Table(title=spec.question or spec.name, box=None, header_style="bold")
    for name in ("trial", "drawn", "effective scale", "optimizer steps"):
        table.add_column(name, justify="left" if name == "drawn" else "right")
    for config in configs:
        table.add_row(*_row(config))
    console.print(table)
    for line in [*_notes(spec, len(configs)), *memory_check.lines(spec)]:
        console.print(line, markup=False, soft_wrap=True)


def proposals(spec: SweepSpec, count: int | None) -> list[TrialConfig]:
    """The first `count` configurations a fresh study would train; all of a grid when None.

    Every later proposal of an adaptive sampler depends on results, so these are its start-up.
    """
    from sweep.storage.open import in_memory
    from sweep.study.decider import OptunaDecider

    limit = count if count is not None else spec.stop.trials
    decider = OptunaDecider(spec, spec.name, in_memory())
    return decider.preview(min(x for x in (limit, spec.stop.trials, 10_000) if x is not None))


def _row(config: TrialConfig) -> tuple[str, ...]:
    params: dict[str, Any] = config.origin.params if config.origin else {}
    number = str(config.origin.number) if config.origin else "-"
    steps = config.training["max_steps"]
    length = f"{steps}" if steps > 0 else f"{config.training['num_train_epochs']:g} epochs"
    return number, params_text(params), value_text(config.lora.scale), length


def _notes(spec: SweepSpec, shown: int) -> list[str]:
    training = {**TRAINING_DEFAULTS, **spec.base.get("training", {})}
    stop = {name: value for name, value in spec.stop.model_dump().items() if value is not None}
    bounds = ", ".join(f"{name} {value:g}" for name, value in stop.items())
    each = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
    batch = each * spec.resources.devices_per_trial
    notes = [
        f"stops at: {bounds or 'the end of the grid'}",
        f"sampler {spec.sampler.name}, pruner {spec.pruner.name}, effective batch {batch}",
    ]
    if spec.sampler.name != "grid" and shown:
        notes.append(f"later proposals of {spec.sampler.name} depend on the results of these")
    return notes


def cost_lines(spec: SweepSpec, profile: Profile, workers: int, price: float | None) -> list[str]:
    """The cost estimate in lines: trials, device-hours, hours, money, what the budget buys."""
    steps = cost.steps_of(spec)
    found = cost.estimate(spec, profile, steps, workers)
    whole = profile.trial_seconds(steps, cost.evaluations_of(spec, steps))
    devices = spec.resources.devices_per_trial
    lines = [
        f"cost, from {profile.source}: {whole:.3g} s a whole trial of {steps} steps "
        f"({profile.step:.3g} s a step, {profile.evaluation:.3g} s an evaluation)"
    ]
    if found is None:
        each = whole * devices / 3600
        lines.append(
            f"  neither trials nor time are bounded: {each:.3g} device-hours a whole trial; say"
            " stop.trials, stop.hours or stop.device_hours"
        )
        return lines
    low, high = found.device_hours
    on = f"on {found.workers} workers of {devices} device(s)"
    lines.append(
        f"  {_trials_text(found)} {on}: {_span(low, high)} device-hours, {_hours_text(found)}"
    )
    if price is not None:
        money = _span(low * price, high * price, ".2f") + f" {spec.resources.currency}".rstrip()
        lines.append(f"  {money} at {price:g} per device-hour")
    stop = spec.stop
    if stop.device_hours is not None:
        bought = int(stop.device_hours / (whole * devices / 3600))
        lines.append(
            f"  the budget of {stop.device_hours:g} device-hours buys about {bought} whole trials"
        )
    if stop.hours is not None and stop.hours < found.hours[1]:
        done = cost.trials_within(stop.hours, whole, profile, found.workers)
        lines.append(f"  stop.hours {stop.hours:g} ends it after about {done} whole trials")
    return lines


def _trials_text(found: Estimate) -> str:
    fewest, most = found.trials
    if not found.by_time:
        return f"{most} trials"
    return f"as many trials as fit into the time, about {_span(fewest, most, 'd')},"


def _hours_text(found: Estimate) -> str:
    low, high = map(_hours, found.hours)
    return low if low == high else f"{low} to {high}"


def _span(low: float, high: float, form: str = ".3g") -> str:
    """`1 to 2`; one number where both ends are equal."""
    return f"{low:{form}}" if low == high else f"{low:{form}} to {high:{form}}"


def _hours(hours: float) -> str:
    return f"{hours:.3g} h" if hours >= 1 else f"{hours * 60:.3g} min"
