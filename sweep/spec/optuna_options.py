"""Optuna's samplers and pruners by the names of a sweep file, and the keywords each takes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from trial.config import library_arguments
from trial.config.errors import Problem, unknown


@dataclass(frozen=True, slots=True)
class OptunaClass:
    """A sampler or pruner class of Optuna.

    Attributes:
        module: `samplers` or `pruners`.
        cls: Name of the class.
        several_objectives: Whether a sampler takes more than one objective.
    """

    module: str
    cls: str
    several_objectives: bool = False

    @property
    def type(self) -> type:
        """The class itself; imports Optuna."""
        import optuna

        return getattr(getattr(optuna, self.module), self.cls)

    @property
    def keywords(self) -> tuple[str, ...]:
        """The constructor's keywords that can be written in YAML: no functions, no objects."""
        return tuple(_keywords(self.module, self.cls))


def _sampler(cls: str, several_objectives: bool = True) -> OptunaClass:
    return OptunaClass("samplers", cls, several_objectives)


SAMPLERS: dict[str, OptunaClass] = {
    "tpe": _sampler("TPESampler"),
    "gp": _sampler("GPSampler"),
    "random": _sampler("RandomSampler"),
    "grid": _sampler("GridSampler"),
    "qmc": _sampler("QMCSampler"),
    "cmaes": _sampler("CmaEsSampler", several_objectives=False),
    "nsga2": _sampler("NSGAIISampler"),
}

PRUNERS: dict[str, OptunaClass] = {
    "none": OptunaClass("pruners", "NopPruner"),
    "median": OptunaClass("pruners", "MedianPruner"),
    "percentile": OptunaClass("pruners", "PercentilePruner"),
    "successive_halving": OptunaClass("pruners", "SuccessiveHalvingPruner"),
    "hyperband": OptunaClass("pruners", "HyperbandPruner"),
    "patient": OptunaClass("pruners", "PatientPruner"),
    "threshold": OptunaClass("pruners", "ThresholdPruner"),
    "wilcoxon": OptunaClass("pruners", "WilcoxonPruner"),
}

_SET_BY_HARNESS = {"seed", "search_space", "wrapped_pruner"}
"""Keywords that a sweep file gives in another form."""

_REQUIRED = {"percentile": ("percentile",), "patient": ("patience",)}
"""Keywords without a default, by pruner."""

_NOT_WRITABLE = ("Callable", "Base", "FrozenTrial")
"""Parts of annotations whose values cannot be written in YAML."""

_TYPES: dict[str, Any] = {
    "int": int, "float": float, "bool": bool, "str": str, "dict": dict, "Any": Any, "None": None,
}  # fmt: skip

_AT_LEAST = {
    "interval_steps": 1, "max_resource": 1, "min_resource": 1, "n_ei_candidates": 1,
    "n_min_trials": 1, "n_startup_steps": 0, "n_startup_trials": 0, "n_warmup_steps": 0,
    "patience": 0, "reduction_factor": 2, "bootstrap_count": 0, "min_early_stopping_rate": 0,
}  # fmt: skip
"""Least values of keywords."""


@cache
def _keywords(module: str, cls: str) -> dict[str, Any]:
    """The keywords that can be written in YAML, with the type of each."""
    signature = inspect.signature(OptunaClass(module, cls).type)
    found: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        text = inspect.formatannotation(parameter.annotation).strip("'")
        if name not in _SET_BY_HARNESS and not any(word in text for word in _NOT_WRITABLE):
            found[name] = eval(text, {"__builtins__": {}}, _TYPES)
    return {**found, "wrapped": None} if cls == "PatientPruner" else found


def sampler_problems(name: str, options: Mapping[str, Any], key: str = "sampler") -> list[Problem]:
    """What is wrong with a sampler's name and keywords."""
    problems = _name_problems(name, options, key, SAMPLERS, "sampler")
    if problems or name in ("grid", "gp"):  # the first needs the space, the second loads torch
        return problems
    return _refusal(SAMPLERS[name], options, key)


def pruner_problems(name: str, options: Mapping[str, Any], key: str = "pruner") -> list[Problem]:
    """What is wrong with a pruner's name and keywords; `wrapped` holds `name` and `options`."""
    problems = _name_problems(name, options, key, PRUNERS, "pruner")
    given = dict(options)
    if name == "patient" and "wrapped" in given:
        wrapped = given.pop("wrapped")
        problems += pruner_problems(wrapped["name"], wrapped["options"], f"{key}.wrapped")
    if problems:
        return problems
    first = {"wrapped_pruner": None} if name == "patient" else {}
    return _refusal(PRUNERS[name], {**first, **given}, key)


def _name_problems(
    name: str, options: Mapping[str, Any], key: str, table: Mapping[str, OptunaClass], what: str
) -> list[Problem]:
    if name not in table:
        problem = unknown(name, tuple(table), what)
        return [Problem(f"{key}.name", problem.expected, problem.got, problem.near)]
    keywords = table[name].keywords
    problems = [
        Problem(f"{key}.{required}", f"{table[name].cls} needs it")
        for required in _REQUIRED.get(name, ())
        if required not in options
    ]
    for option, value in options.items():
        option_key = f"{key}.{option}"
        if option not in keywords:
            problems.append(_unknown_keyword(option_key, table[name].cls, keywords))
        elif refusal := _value_refusal(table[name], option, value):
            problems.append(Problem(option_key, refusal, repr(value)))
    return problems


def _unknown_keyword(key: str, cls: str, keywords: tuple[str, ...]) -> Problem:
    if keywords:
        return unknown(key, keywords, f"keyword of {cls}")
    return Problem(key, f"{cls} takes no keywords", repr(key.rpartition(".")[2]))


def _value_refusal(entry: OptunaClass, option: str, value: Any) -> str:
    """Why a keyword cannot have this value; empty when it can. Optuna checks only when it runs."""
    accepts = _keywords(entry.module, entry.cls).get(option)
    argument = library_arguments.Argument(
        option, str(accepts).removeprefix("<class '").rstrip("'>"), accepts
    )
    if accepts is not None and (refusal := argument.refusal(value)):
        return f"expected {refusal}"
    low = _AT_LEAST.get(option)
    if low is not None and isinstance(value, int | float) and value < low:
        return f"must be at least {low}"
    return ""


def _refusal(entry: OptunaClass, options: Mapping[str, Any], key: str) -> list[Problem]:
    """What Optuna's constructor refuses: an object is built for this check alone."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            entry.type(**options)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        return [Problem(key, f"{entry.cls} refuses: {error}", repr(dict(options)))]
    return []
