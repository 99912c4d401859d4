"""Read the sections of a sweep file by their pydantic models, except `space` and `variables`.

A wrong section or key is noted as a problem, and its default is used.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sweep.loading.keys import config_section, is_at_or_below
from sweep.loading.raw_sweep import RawSweep
from sweep.spec import optuna_options
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
)
from trial.config.dotted import flatten
from trial.config.errors import Problem, from_pydantic
from trial.store import metrics
from trial.store.metrics import EVALUATED, METRICS

M = TypeVar("M", bound=BaseModel)


def read_name(raw: RawSweep) -> str:
    """The study's name: the file's stem unless given."""
    given = raw.content.get("name")
    name = raw.source.stem if given is None else given
    if isinstance(name, str) and re.fullmatch(NAME, name):
        return name
    rule = "a study's name is letters, digits, `.`, `_` and `-`, and starts with a letter or digit"
    rule = rule if given is not None else f"is needed: {rule}"
    raw.add_problem(Problem("name", rule, repr(name)))
    return "unnamed"


def read_question(raw: RawSweep) -> str:
    """The question on one line; empty without one."""
    question = raw.content.get("question")
    if question is None:
        return ""
    if not isinstance(question, str):
        raw.add_problem(Problem("question", "is one sentence", repr(question)))
        return ""
    return " ".join(question.split())


def read_objectives(raw: RawSweep) -> tuple[ObjectiveSpec, ...]:
    """What `objective` or `objectives` names; the eval loss without either."""
    given = {key: raw.content.get(key) for key in ("objective", "objectives")}
    given = {key: value for key, value in given.items() if value is not None}
    if len(given) > 1:
        raw.add_problem(Problem("objective", "stands beside `objectives`: say one of them"))
    objectives: list[ObjectiveSpec] = []
    for key, value in given.items():
        if value == []:
            raw.add_problem(Problem(key, "names no metric", "[]"))
        elif isinstance(value, list):
            items = {f"{key}.{index}": item for index, item in enumerate(value)}
            objectives += [_read_objective(raw, at, item) for at, item in items.items() if item]
        elif value:
            objectives.append(_read_objective(raw, key, value))
        counts = Counter((goal.metric, goal.direction) for goal in objectives)
        twice = next((metric for (metric, _), count in counts.items() if count > 1), None)
        if twice and not raw.has_problem("objective", "objectives"):
            raw.add_problem(Problem(key, "each metric stands once", f"{twice} twice"))
    return tuple(objectives) or (ObjectiveSpec(),)


def _read_objective(raw: RawSweep, key: str, content: Any) -> ObjectiveSpec:
    if not isinstance(content, str | dict):
        rule = "is {metric: eval_loss, direction: minimize}"
        raw.add_problem(Problem(key, rule, repr(content)))
        return ObjectiveSpec()
    objective = _read_section(raw, key, ObjectiveSpec, content)
    known = [*METRICS, *EVALUATED]
    near = difflib.get_close_matches(objective.metric, known, n=1, cutoff=0.8)
    if objective.metric not in known and near:
        rule = f"unknown metric, and close to a known one; known: {', '.join(known)}"
        raw.add_problem(Problem(f"{key}.metric", rule, repr(objective.metric), near[0]))
    return objective


def read_sampler(raw: RawSweep, objectives: Sequence[ObjectiveSpec]) -> SamplerSpec:
    """The sampler with default keywords; unnamed it is tpe, or nsga2 for several objectives."""
    options = dict(raw.section("sampler"))
    name = options.pop("name", None)
    if name is None:
        name = "tpe" if len(objectives) == 1 else "nsga2"
    content = {"name": name}
    if "seed" in options:
        content["seed"] = options.pop("seed")
    sampler = _read_section(raw, "sampler", SamplerSpec, content)
    raw.add_problems(optuna_options.sampler_problems(sampler.name, options))
    defaults = _sampler_defaults(sampler.name, options)
    return sampler.model_copy(update={"options": {**defaults, **options}})


def _sampler_defaults(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    if name != "tpe":
        return {}
    multivariate = options.get("multivariate", True)
    # Optuna groups conditional parameters only when it models parameters together.
    return {"multivariate": multivariate, "group": bool(multivariate), "constant_liar": True}


def read_pruner(
    raw: RawSweep, objectives: Sequence[ObjectiveSpec], sampler: SamplerSpec
) -> PrunerSpec:
    """The pruner of the file, or the one that suits the objectives and the sampler."""
    content = raw.section("pruner")
    if not content:
        return _default_pruner(objectives, sampler)
    pruner = _read_pruner(raw, "pruner", content)
    raw.add_problems(optuna_options.pruner_problems(pruner.name, pruner.options))
    return pruner


def _default_pruner(objectives: Sequence[ObjectiveSpec], sampler: SamplerSpec) -> PrunerSpec:
    """`none` for a grid, several objectives or one known only at the end; else halving."""
    if len(objectives) > 1 or sampler.name == "grid" or not has_curve(objectives[0]):
        return PrunerSpec(name="none")
    return PrunerSpec(name="successive_halving", options={"reduction_factor": 2})


def has_curve(objective: ObjectiveSpec) -> bool:
    """Whether the objective's value is known at every evaluation, and not only at the end."""
    return metrics.has_curve(objective.metric)


def _read_pruner(raw: RawSweep, key: str, content: Any) -> PrunerSpec:
    """The pruner at a key: `pruner`, or `pruner.wrapped` within `patient`."""
    content = {"name": content} if isinstance(content, str) else content
    if not isinstance(content, dict):
        raw.add_problem(Problem(key, "is {name: ..., keywords}", repr(content)))
        return PrunerSpec()
    if "name" not in content:
        raw.add_problem(Problem(f"{key}.name", "which pruner?", repr(dict(content))))
        return PrunerSpec()
    fields = ("name", "evaluate") if key == "pruner" else ("name",)
    options = {name: value for name, value in content.items() if name not in fields}
    given = {name: content[name] for name in fields if name in content}
    pruner = _read_section(raw, key, PrunerSpec, given)
    if pruner.name == "patient" and options.get("wrapped") is not None:
        inner = _read_pruner(raw, f"{key}.wrapped", options["wrapped"])
        options["wrapped"] = inner.model_dump()
    return pruner.model_copy(update={"options": options})


def read_stop(raw: RawSweep) -> StopSpec:
    """When to stop; `budget.device_hours` is another way to write `stop.device_hours`."""
    stop = _read_section(raw, "stop", StopSpec, raw.section("stop"))
    budget = _read_section(raw, "budget", BudgetSpec, raw.section("budget"))
    if budget.device_hours is None:
        return stop
    if stop.device_hours is not None:
        rule = "is said once: here or as stop.device_hours"
        raw.add_problem(Problem("budget.device_hours", rule, repr(budget.device_hours)))
    return stop.model_copy(update={"device_hours": budget.device_hours})


def read_resources(raw: RawSweep) -> ResourceSpec:
    """What a trial holds while it runs."""
    return _read_section(raw, "resources", ResourceSpec, raw.section("resources"))


def read_failures(raw: RawSweep) -> FailuresSpec:
    """What to do with failed trials."""
    return _read_section(raw, "failures", FailuresSpec, raw.section("failures"))


def read_confirm(raw: RawSweep) -> ConfirmSpec | None:
    """How to repeat the best trials over seeds; None does not."""
    if raw.content.get("confirm") is None:
        return None
    return _read_section(raw, "confirm", ConfirmSpec, raw.section("confirm"))


def read_warm_start(raw: RawSweep) -> tuple[str, ...]:
    """Names of the studies to learn from."""
    given = raw.content.get("warm_start")
    names = [given] if isinstance(given, str) else given or []
    if not isinstance(names, list):
        raw.add_problem(Problem("warm_start", "is a list of studies' names", repr(given)))
        return ()
    for index, name in enumerate(names):
        if not isinstance(name, str) or not re.fullmatch(NAME, name) or name in names[:index]:
            rule = "the name of a study, each once"
            raw.add_problem(Problem(f"warm_start.{index}", rule, repr(name)))
    return tuple(name for name in names if isinstance(name, str))


def read_enqueued(raw: RawSweep) -> tuple[dict[str, Any], ...]:
    """The enqueued points by dotted path; `space_checks` notes those that are no mappings."""
    given = raw.content.get("enqueue")
    items = given if isinstance(given, list) else []
    return tuple(enqueued_point(item) for item in items if item and isinstance(item, dict))


def enqueued_point(item: Mapping[str, Any]) -> dict[str, Any]:
    """A point by dotted path: `{lora: {r: 4}}` is `{lora.r: 4}`."""
    return flatten(item, descend=config_section)


def _read_section(raw: RawSweep, key: str, model: type[M], content: Mapping[str, Any] | str) -> M:
    """A section by its model; keys with a problem have the model's defaults."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = from_pydantic(error, {"": tuple(model.model_fields)})
    for problem in problems:
        raw.add_problem(replace(problem, key=f"{key}.{problem.key}"))
    if isinstance(content, str):
        return model()
    wrong = [problem.key for problem in problems]
    sound = [name for name in content if not any(is_at_or_below(at, name) for at in wrong)]
    return model.model_validate({name: content[name] for name in sound})
