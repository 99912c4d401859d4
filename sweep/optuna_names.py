"""Optuna's samplers and pruners by the names of a sweep file, with the keywords each takes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from trial.problems import Problem, unknown


@dataclass(frozen=True, slots=True)
class OptunaClass:
    """One class of Optuna, and what a file may say to it."""

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
        """The keywords that can be written in a file: no functions, no objects."""
        return _keywords(self.module, self.cls)


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

_ELSEWHERE = {"seed", "search_space", "wrapped_pruner"}
"""Keywords that a sweep file says another way."""

_NOT_WRITABLE = ("Callable", "Base", "FrozenTrial")


@cache
def _keywords(module: str, cls: str) -> tuple[str, ...]:
    signature = inspect.signature(OptunaClass(module, cls).type)
    own = tuple(
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in _ELSEWHERE
        and not any(word in str(parameter.annotation) for word in _NOT_WRITABLE)
    )
    return (*own, "wrapped") if cls == "PatientPruner" else own


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
    return [
        unknown(f"{key}.{option}", keywords, f"keyword of {table[name].cls}")
        for option in options
        if option not in keywords
    ]


def _refusal(entry: OptunaClass, options: Mapping[str, Any], key: str) -> list[Problem]:
    """Optuna's own word about the keywords' values: the object is built and thrown away."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            entry.type(**options)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        return [Problem(key, f"{entry.cls} refuses: {error}", repr(dict(options)))]
    return []
