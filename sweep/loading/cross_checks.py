"""The rules of a sweep file that hold between its sections, as one list.

A rule gets the file as it was read, and yields the problems that it finds. They run in the order of
the list, each after the problems of those before it were noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from sweep.loading import space_checks
from sweep.loading.raw_sweep import RawSweep
from sweep.loading.sections import has_curve
from sweep.loading.space_checks import ParsedSweep
from sweep.spec.dimension import Choices, Range
from sweep.spec.optuna_options import SAMPLERS
from sweep.spec.rungs import HALVING, rungs
from sweep.spec.spec import SweepSpec
from trial.config.errors import Problem, nearest

Rule = Callable[[ParsedSweep], Iterable[Problem]]

BOUNDS = ("trials", "hours", "device_hours", "no_improvement")
"""Keys of `stop` that surely end a sweep; a target may never be reached."""

LEARN_FROM_ALL = ("tpe", "gp")
"""Samplers that learn from any trial; others go by what they themselves have drawn, or by none."""


def cross_check(raw: RawSweep, spec: SweepSpec) -> None:
    """Note the problems of all rules."""
    sweep = ParsedSweep(raw, spec)
    for rule in RULES:
        raw.add_problems(rule(sweep))


def sampler_takes_the_objectives(sweep: ParsedSweep) -> Iterator[Problem]:
    """Some samplers take one objective."""
    sampler, count = sweep.spec.sampler.name, len(sweep.spec.objectives)
    entry = SAMPLERS.get(sampler)
    if entry and count > 1 and not entry.several_objectives:
        yield Problem("sampler.name", f"{sampler} takes one objective", f"{count}", "nsga2")


def pruner_sees_a_curve(sweep: ParsedSweep) -> Iterator[Problem]:
    """A pruner needs one objective with a value at every evaluation."""
    pruner, objectives = sweep.spec.pruner.name, sweep.spec.objectives
    if pruner == "none":
        return
    if len(objectives) > 1:
        rule = "Optuna cannot prune with several objectives; say `pruner: none`"
        yield Problem("pruner", rule, pruner)
    elif not has_curve(objectives[0]):
        rule = f"{objectives[0].metric} is known only at the end; say `pruner: none`"
        yield Problem("pruner", rule, pruner)


def pruner_has_rungs(sweep: ParsedSweep) -> Iterator[Problem]:
    """Only halving pruners have rungs to evaluate at."""
    pruner = sweep.spec.pruner
    if pruner.evaluate == "rungs" and pruner.name not in HALVING:
        rule = f"rungs are those of {' and '.join(HALVING)}"
        yield Problem("pruner.evaluate", rule, pruner.name)


def sweep_has_an_end(sweep: ParsedSweep) -> Iterator[Problem]:
    """A sweep needs a bound that it surely reaches, or the grid sampler."""
    given = {**sweep.raw.section("budget"), **sweep.raw.section("stop")}
    bounded = any(given.get(name) is not None for name in BOUNDS)
    unclear = sweep.raw.has_problem("stop", "sampler")
    if not bounded and not unclear and sweep.spec.sampler.name != "grid":
        rule = f"the sweep has no end: say one of {', '.join(BOUNDS)}, or `sampler: grid`"
        only = "only a target, which may never be reached"
        yield Problem("stop", rule, "" if sweep.spec.stop.target is None else only)


def stop_has_one_objective(sweep: ParsedSweep) -> Iterator[Problem]:
    """Bounds on the best value need one objective."""
    if len(sweep.spec.objectives) > 1:
        for name in ("no_improvement", "target"):
            if getattr(sweep.spec.stop, name) is not None:
                yield Problem(f"stop.{name}", "needs one objective", "several")


def cmaes_has_a_range(sweep: ParsedSweep) -> Iterator[Problem]:
    """CMA-ES models numbers alone; not checked for a sampler with other problems."""
    if sweep.spec.sampler.name != "cmaes" or sweep.raw.has_problem("sampler"):
        return
    if sweep.has_all_dimensions and not any(isinstance(branch, Range) for branch in sweep.branches):
        yield Problem("sampler.name", "cmaes needs a range in the space", "only choices")


def warm_start_suits_the_sampler(sweep: ParsedSweep) -> Iterator[Problem]:
    """Earlier studies are for samplers that learn from trials they did not draw."""
    given, sampler = sweep.raw.content.get("warm_start"), sweep.spec.sampler.name
    if isinstance(given, str | list) and given and sampler not in LEARN_FROM_ALL:
        rule = f"is for a sampler that learns from every trial: {', '.join(LEARN_FROM_ALL)}"
        yield Problem("warm_start", rule, sampler)


def something_is_searched(sweep: ParsedSweep) -> Iterator[Problem]:
    """A space without a choice or a range is one trial."""
    searched = any(isinstance(branch, Choices | Range) for branch in sweep.branches)
    if sweep.has_all_dimensions and not searched:
        yield Problem("space", "names nothing to search", near="lora.r: [4, 8, 16]")


def confirm_has_few_values(sweep: ParsedSweep) -> Iterator[Problem]:
    """The best at each value can be taken only of what is drawn from few values."""
    spec = sweep.spec
    if not sweep.has_all_dimensions or spec.confirm is None or spec.confirm.per is None:
        return
    drawn = {
        name: [branch for branch in dimension if isinstance(branch, Choices | Range)]
        for name, dimension in {**spec.space, **spec.variables}.items()
    }
    few = [name for name, found in drawn.items() if found and all(b.count() for b in found)]
    if spec.confirm.per not in few:
        rule = f"a searched key with a list of values: {', '.join(few) or 'this sweep has none'}"
        near = nearest(spec.confirm.per, few)
        yield Problem("confirm.per", rule, repr(spec.confirm.per), near)


def evaluations_are_said_once(sweep: ParsedSweep) -> Iterator[Problem]:
    """`evaluate: rungs` needs known rungs and no `evaluation.steps`.

    Checked only for a file without other problems.
    """
    spec, key = sweep.spec, "pruner.evaluate"
    if sweep.raw.problems or spec.pruner.evaluate == "steps":
        return
    if "evaluation.steps" in spec.space or (spec.base.get("evaluation") or {}).get("steps"):
        rule = "evaluation.steps says already when to evaluate"
        yield Problem(key, rule, spec.pruner.evaluate)
    elif not rungs(spec):
        rule = "no rung is known before the last step: say base.training.max_steps, as a number"
        yield Problem(key, f"{rule}, and a min_resource below it", spec.pruner.evaluate)


RULES: tuple[Rule, ...] = (
    sampler_takes_the_objectives,
    pruner_sees_a_curve,
    pruner_has_rungs,
    sweep_has_an_end,
    stop_has_one_objective,
    cmaes_has_a_range,
    warm_start_suits_the_sampler,
    something_is_searched,
    confirm_has_few_values,
    space_checks.base_is_valid,
    space_checks.each_value_is_valid,
    space_checks.metrics_are_reported,
    space_checks.references_resolve,
    space_checks.points_are_valid,
    space_checks.enqueued_points_fit,
    space_checks.grid_has_an_end,
    evaluations_are_said_once,
)
