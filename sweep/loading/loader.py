"""From a sweep file to a spec: `load("spaces/lora_rank.yaml", ["training.max_steps=50"])`.

Every mistake is found before anything starts, all of them at once, each with its line.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sweep.loading import space_checks
from sweep.loading.paths import absolute_places
from sweep.loading.raw_sweep import RawSweep, is_at_or_below, read
from sweep.loading.secret_scan import refuse_secrets
from sweep.spec import optuna_options
from sweep.spec.dimension import Choices, Dimension, Range
from sweep.spec.dimension_parser import parse_dimension
from sweep.spec.rungs import HALVING, evaluated_at_rungs, rungs
from sweep.spec.space import Space
from sweep.spec.spec import (
    NAME,
    BudgetSpec,
    ConfirmSpec,
    FailuresSpec,
    ObjectiveSpec,
    PrunerSpec,
    ResourceSpec,
    SamplerSpec,
    StopSpec,
    SweepSpec,
)
from trial.config.errors import ConfigError, Problem, from_pydantic, nearest
from trial.store.metrics import EVALUATED, MAXIMIZED, METRICS


def shipped(beside: Path, prefix: Path) -> Path:
    """The folder of the sweep files that come along: beside the code, or as a wheel puts them."""
    return beside if beside.is_dir() else prefix / "share" / "gaudi-sweep" / "spaces"


SPACES = shipped(Path(__file__).resolve().parents[2] / "spaces", Path(sys.prefix))
ENDINGS = (".yaml", ".yml")

LEARN_FROM_ALL = ("tpe", "gp")
"""Samplers that learn from any trial; others go by what they themselves have drawn, or by none."""

M = TypeVar("M", bound=BaseModel)


def find(name_or_path: str, folder: Path = SPACES) -> Path:
    """The sweep file of a name in `folder` (`lora_rank`, `gaudi/llama2_7b`) or of a path.

    Raises:
        ConfigError: there is no such file; lists the names and the nearest.
    """
    given = Path(name_or_path)
    inside = not given.is_absolute() and ".." not in given.parts and name_or_path.strip(". /") != ""
    named = [folder / f"{name_or_path}{ending}" for ending in ("", *ENDINGS)] if inside else []
    try:
        if given.is_file():
            return given
        found = next((path for path in named if path.is_file()), None)
    except (OSError, ValueError):
        found = None
    if found is None:
        names = space_names(folder)
        rule = f"names no sweep file; in {folder.name}/: {', '.join(names) or 'nothing'}"
        near = nearest(given.stem, names)
        raise ConfigError([Problem("SPACE", rule, repr(name_or_path), near)])
    return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found


def space_names(folder: Path = SPACES) -> list[str]:
    """The names that `find` knows."""
    files = (path for ending in ENDINGS for path in folder.rglob(f"*{ending}"))
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in files)


def load(source: Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """The checked sweep of a file, with `key=value` overrides laid over it.

    Raises:
        ConfigError: every mistake at once, each with its file and line or its override.
    """
    spec, problems = examine(source, overrides)
    if problems:
        raise ConfigError(problems)
    return spec


def examine(source: Path, overrides: Sequence[str] = ()) -> tuple[SweepSpec, list[Problem]]:
    """The sweep of a file, and what is wrong with it; what is wrong stands at its default.

    Raises:
        ConfigError: it cannot be read at all.
    """
    sheet = read(Path(source), overrides)
    refuse_secrets(sheet)
    absolute_places(sheet)
    spec = SweepSpec(
        name=_name(sheet),
        question=_question(sheet),
        base={key: value for key, value in sheet.section("base").items() if key != "origin"},
        space=_dimensions(sheet, "space"),
        variables=_dimensions(sheet, "variables"),
        objectives=_objectives(sheet),
        stop=_stop(sheet),
        resources=_section(sheet, "resources", ResourceSpec, sheet.section("resources")),
        confirm=_confirm(sheet),
        failures=_section(sheet, "failures", FailuresSpec, sheet.section("failures")),
    )
    spec = spec.model_copy(update={"sampler": _sampler(sheet, spec)})
    spec = spec.model_copy(update={"pruner": _pruner(sheet, spec)})
    _check_stop(sheet, spec)
    spec = spec.model_copy(update={"warm_start": _warm_start(sheet, spec)})
    spec = spec.model_copy(update={"enqueue": _check_space(sheet, spec)})
    if not sheet.problems:
        spec = _evaluated(sheet, spec)
    return spec, in_order(sheet.problems)


def placed(source: Path, overrides: Sequence[str], problems: Sequence[Problem]) -> list[Problem]:
    """Problems of a trial's configuration, each with the key and line its value came from."""
    locate = read(Path(source), overrides).locate
    return [_place(locate, problem) for problem in problems]


def _place(locate: Callable[[str], str], problem: Problem) -> Problem:
    """A problem with the sweep file's key: under `space`, else under `base`."""
    if problem.where or problem.key.startswith("resources."):
        return replace(problem, where=problem.where or locate(problem.key))
    searched = f"space.{problem.key}"
    key = searched if locate(searched) != locate("space") else f"base.{problem.key}"
    return replace(problem, key=key, where=locate(key))


def in_order(problems: Sequence[Problem]) -> list[Problem]:
    """Problems as they stand in the file."""
    return sorted(problems, key=_line_order)


def _line_order(problem: Problem) -> tuple[str, int]:
    place, _, line = problem.where.rpartition(":")
    return (place, int(line)) if line.isdecimal() else (problem.where, 0)


def _name(sheet: RawSweep) -> str:
    given = sheet.content.get("name")
    name = sheet.source.stem if given is None else given
    if isinstance(name, str) and re.fullmatch(NAME, name):
        return name
    rule = "a study's name is letters, digits, `.`, `_` and `-`, and starts with a letter or digit"
    sheet.refuse(Problem("name", rule if given is not None else f"is needed: {rule}", repr(name)))
    return "unnamed"


def _question(sheet: RawSweep) -> str:
    question = sheet.content.get("question")
    if question is None:
        return ""
    if not isinstance(question, str):
        sheet.refuse(Problem("question", "is one sentence", repr(question)))
        return ""
    return " ".join(question.split())


def _dimensions(sheet: RawSweep, kind: str) -> dict[str, Dimension]:
    """The dimensions that could be understood."""
    raw = sheet.section(kind)
    known = space_checks.known_names(sheet, kind, raw)
    found: dict[str, Dimension] = {}
    for name, value in ((name, raw[name]) for name in known):
        try:
            found[name] = parse_dimension(value, f"{kind}.{name}")
        except ConfigError as error:
            for problem in error.problems:
                sheet.refuse(problem)
    return found


def _section(sheet: RawSweep, key: str, model: type[M], content: Mapping[str, Any]) -> M:
    """A section by its model; keys with something wrong stand at the model's defaults."""
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        problems = from_pydantic(error, {"": tuple(model.model_fields)})
    for problem in problems:
        sheet.refuse(replace(problem, key=f"{key}.{problem.key}"))
    good = [n for n in content if not any(is_at_or_below(problem.key, n) for problem in problems)]
    return model.model_validate({name: content[name] for name in good})


def _stop(sheet: RawSweep) -> StopSpec:
    """When to stop; a `budget` is one more way to say how many device-hours."""
    stop = _section(sheet, "stop", StopSpec, sheet.section("stop"))
    budget = _section(sheet, "budget", BudgetSpec, sheet.section("budget"))
    if budget.device_hours is None:
        return stop
    if stop.device_hours is not None:
        rule = "is said once: here or as stop.device_hours"
        sheet.refuse(Problem("budget.device_hours", rule, repr(budget.device_hours)))
    return stop.model_copy(update={"device_hours": budget.device_hours})


def _confirm(sheet: RawSweep) -> ConfirmSpec | None:
    if sheet.content.get("confirm") is None:
        return None
    return _section(sheet, "confirm", ConfirmSpec, sheet.section("confirm"))


def _objectives(sheet: RawSweep) -> tuple[ObjectiveSpec, ...]:
    given = {key: sheet.content.get(key) for key in ("objective", "objectives")}
    given = {key: raw for key, raw in given.items() if raw is not None}
    if len(given) > 1:
        sheet.refuse(Problem("objective", "stands beside `objectives`: say one of them"))
    goals: list[ObjectiveSpec] = []
    for key, raw in given.items():
        items = {f"{key}.{i}": item for i, item in enumerate(raw)} if isinstance(raw, list) else {}
        if raw == []:
            sheet.refuse(Problem(key, "names no metric", "[]"))
        goals += [_objective(sheet, at, item) for at, item in (items or {key: raw}).items() if item]
        double = next((g.metric for i, g in enumerate(goals) if g in goals[:i]), None)
        if double and not sheet.problems:
            sheet.refuse(Problem(key, "each metric stands once", f"{double} twice"))
    return tuple(goals) or (ObjectiveSpec(),)


def _objective(sheet: RawSweep, key: str, raw: Any) -> ObjectiveSpec:
    content = {"metric": raw} if isinstance(raw, str) else raw
    if not isinstance(content, dict):
        sheet.refuse(Problem(key, "is {metric: eval_loss, direction: minimize}", repr(raw)))
        return ObjectiveSpec()
    metric = content.get("metric")
    if isinstance(metric, str) and metric in MAXIMIZED:
        content = {"direction": "maximize", **content}
    goal = _section(sheet, key, ObjectiveSpec, content)
    known = [*METRICS, *EVALUATED]
    near = difflib.get_close_matches(goal.metric, known, n=1, cutoff=0.8)
    if goal.metric not in known and near:
        rule = f"unknown metric, and close to a known one; known: {', '.join(known)}"
        sheet.refuse(Problem(f"{key}.metric", rule, repr(goal.metric), near[0]))
    return goal


def _sampler(sheet: RawSweep, spec: SweepSpec) -> SamplerSpec:
    """The sampler with its defaults spelled out."""
    raw = dict(sheet.section("sampler"))
    name = raw.pop("name", None)
    name = ("tpe" if len(spec.objectives) == 1 else "nsga2") if name is None else name
    named = {"name": name, **({"seed": raw.pop("seed")} if "seed" in raw else {})}
    sampler = _section(sheet, "sampler", SamplerSpec, named)
    for problem in optuna_options.sampler_problems(sampler.name, raw):
        sheet.refuse(problem)
    entry = optuna_options.SAMPLERS.get(sampler.name)
    if entry and len(spec.objectives) > 1 and not entry.several_objectives:
        rule = f"{sampler.name} takes one objective"
        sheet.refuse(Problem("sampler.name", rule, f"{len(spec.objectives)}", "nsga2"))
    if sampler.name == "cmaes" and not _has_range(spec) and not sheet.problems:
        sheet.refuse(Problem("sampler.name", "cmaes needs a range in the space", "only choices"))
    return sampler.model_copy(update={"options": {**_sampler_defaults(sampler.name, raw), **raw}})


def _sampler_defaults(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    if name != "tpe":
        return {}
    multivariate = given.get("multivariate", True)
    # Optuna groups conditional parameters only when it models parameters together.
    return {"multivariate": multivariate, "group": bool(multivariate), "constant_liar": True}


def _has_range(spec: SweepSpec) -> bool:
    dimensions = [*spec.space.values(), *spec.variables.values()]
    return any(isinstance(branch, Range) for branches in dimensions for branch in branches)


def _pruner(sheet: RawSweep, spec: SweepSpec) -> PrunerSpec:
    """The pruner that was asked for, or the one that suits the sweep."""
    raw = sheet.section("pruner")
    if not raw:
        return _default_pruner(spec)
    pruner = _pruner_spec(sheet, "pruner", raw)
    for problem in optuna_options.pruner_problems(pruner.name, pruner.options):
        sheet.refuse(problem)
    if pruner.name != "none" and len(spec.objectives) > 1:
        rule = "Optuna cannot prune with several objectives; say `pruner: none`"
        sheet.refuse(Problem("pruner", rule, pruner.name))
    elif pruner.name != "none" and not _has_curve(spec):
        rule = f"{spec.objectives[0].metric} is known only at the end; say `pruner: none`"
        sheet.refuse(Problem("pruner", rule, pruner.name))
    if pruner.evaluate == "rungs" and pruner.name not in HALVING:
        rule = f"rungs are those of {' and '.join(HALVING)}"
        sheet.refuse(Problem("pruner.evaluate", rule, pruner.name))
    return pruner


def _pruner_spec(sheet: RawSweep, key: str, raw: Any) -> PrunerSpec:
    content = {"name": raw} if isinstance(raw, str) else raw
    if not isinstance(content, dict):
        sheet.refuse(Problem(key, "is {name: ..., keywords}", repr(raw)))
        return PrunerSpec()
    own = ("name", "evaluate") if key == "pruner" else ("name",)
    options = {name: value for name, value in content.items() if name not in own}
    if "name" not in content:
        sheet.refuse(Problem(f"{key}.name", "which pruner?", repr(dict(content))))
        return PrunerSpec()
    given = {name: content[name] for name in own if name in content}
    pruner = _section(sheet, key, PrunerSpec, given)
    if pruner.name == "patient" and options.get("wrapped") is not None:
        inner = _pruner_spec(sheet, f"{key}.wrapped", options["wrapped"])
        options["wrapped"] = inner.model_dump()
    return pruner.model_copy(update={"options": options})


def _evaluated(sheet: RawSweep, spec: SweepSpec) -> SweepSpec:
    """The sweep with its evaluations where the pruner wants them; nothing else is wrong with it."""
    key, given = "pruner.evaluate", spec.pruner.evaluate
    if given == "steps":
        return spec
    if "evaluation.steps" in spec.space or (spec.base.get("evaluation") or {}).get("steps"):
        sheet.refuse(Problem(key, "evaluation.steps says already when to evaluate", given))
    elif not rungs(spec):
        rule = "no rung is known before the last step: say base.training.max_steps, as a number"
        sheet.refuse(Problem(key, f"{rule}, and a min_resource below it", given))
    return evaluated_at_rungs(spec)


def _has_curve(spec: SweepSpec) -> bool:
    """Whether the objective is known while a trial runs."""
    metric = spec.objectives[0].metric
    return metric == "eval_loss" or metric not in METRICS


def _default_pruner(spec: SweepSpec) -> PrunerSpec:
    """None where every cell is wanted or nothing can be compared."""
    if len(spec.objectives) > 1 or spec.sampler.name == "grid" or not _has_curve(spec):
        return PrunerSpec(name="none")
    return PrunerSpec(name="successive_halving", options={"reduction_factor": 2})


def _warm_start(sheet: RawSweep, spec: SweepSpec) -> tuple[str, ...]:
    """Names of studies, for a sampler that learns from all that it sees."""
    raw = sheet.content.get("warm_start")
    names = [raw] if isinstance(raw, str) else raw or []
    if not isinstance(names, list):
        sheet.refuse(Problem("warm_start", "is a list of studies' names", repr(raw)))
        return ()
    for index, name in enumerate(names):
        if not isinstance(name, str) or not re.fullmatch(NAME, name) or name in names[:index]:
            rule = "the name of a study, each once"
            sheet.refuse(Problem(f"warm_start.{index}", rule, repr(name)))
    if names and spec.sampler.name not in LEARN_FROM_ALL:
        rule = f"is for a sampler that learns from every trial: {', '.join(LEARN_FROM_ALL)}"
        sheet.refuse(Problem("warm_start", rule, spec.sampler.name))
    return tuple(name for name in names if isinstance(name, str))


def _check_stop(sheet: RawSweep, spec: SweepSpec) -> None:
    bounds = ("trials", "hours", "device_hours", "no_improvement")
    said = {**sheet.section("budget"), **sheet.section("stop")}
    bounded = any(said.get(name) is not None for name in bounds)
    wrong = any(problem.key.split(".")[0] in ("stop", "sampler") for problem in sheet.problems)
    if not bounded and not wrong and spec.sampler.name != "grid":
        rule = f"the sweep has no end: say one of {', '.join(bounds)}, or `sampler: grid`"
        got = "only a target, which may never be reached" if spec.stop.target is not None else ""
        sheet.refuse(Problem("stop", rule, got))
    if len(spec.objectives) > 1:
        for name in ("no_improvement", "target"):
            if getattr(spec.stop, name) is not None:
                sheet.refuse(Problem(f"stop.{name}", "needs one objective", "several"))


def _check_space(sheet: RawSweep, spec: SweepSpec) -> tuple[dict[str, Any], ...]:
    """Everything about the space that needs the other parts; the enqueued points."""
    wrong = any(problem.key in ("space", "variables") for problem in sheet.problems)
    understood = not wrong and all(sheet.section(kind).keys() == getattr(spec, kind).keys()
                     for kind in ("space", "variables"))  # fmt: skip
    searched = {**spec.space, **spec.variables}.values()
    if understood and not any(isinstance(b, Choices | Range) for d in searched for b in d):
        sheet.refuse(Problem("space", "names nothing to search", near="lora.r: [4, 8, 16]"))
    if understood:
        space_checks.check_confirm(sheet, spec)
    space_checks.check_base(sheet, spec)
    space_checks.check_values(sheet, spec)
    space_checks.check_metrics(sheet, spec)
    resolvable = space_checks.check_references(sheet, spec)
    if not understood or not resolvable:
        return space_checks.enqueued(sheet, None)
    sound = not sheet.problems
    space = Space.of(spec)
    points = space_checks.enqueued(sheet, space)
    if spec.sampler.name == "grid":
        space_checks.check_grid(sheet, space)
    if sound:
        space_checks.check_points(sheet, spec, space)
    return points
