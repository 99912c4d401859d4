"""Every objective and every unlearning metric by name, with its arguments. Torch-free.

Adding an objective is a function in `trial.objectives.losses` and an entry here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trial.config import user_functions
from trial.config.errors import Problem, unknown

PLAIN = "sft"
"""Supervised fine-tuning, whose loss the ordinary trainer computes itself."""
KEY = "objective"


@dataclass(frozen=True, slots=True)
class BuiltinObjective:
    """One built-in objective."""

    source: str
    """The publication that defines it, or the formula."""
    parts: tuple[str, ...]
    """Parts of its batches: rows to `forget`, rows to `retain`, `alternative` answers."""
    arguments: Mapping[str, float] = field(default_factory=dict)
    """Keyword arguments with their defaults."""
    reference: bool = False
    """Whether it needs the reference model: the base model, with the adapter disabled."""


TOFU = "Maini et al. 2024, arXiv:2401.06121"
OBJECTIVES: dict[str, BuiltinObjective] = {
    PLAIN: BuiltinObjective("cross-entropy per completion token", ()),
    "grad_ascent": BuiltinObjective(TOFU, ("forget",)),
    "grad_diff": BuiltinObjective(TOFU, ("forget", "retain"), {"retain_weight": 1.0}),
    "kl": BuiltinObjective(TOFU, ("forget", "retain"), {"retain_weight": 1.0}, reference=True),
    "idk": BuiltinObjective(TOFU, ("alternative", "retain"), {"retain_weight": 1.0}),
    "dpo": BuiltinObjective(
        "Rafailov et al. 2023, arXiv:2305.18290",
        ("alternative", "forget", "retain"),
        {"beta": 0.1, "retain_weight": 0.0},
        reference=True,
    ),
    "npo": BuiltinObjective(
        "Zhang et al. 2024, arXiv:2404.05868",
        ("forget", "retain"),
        {"beta": 0.1, "retain_weight": 1.0},
        reference=True,
    ),
    "simnpo": BuiltinObjective(
        "Fan et al. 2024, arXiv:2410.07163",
        ("forget", "retain"),
        {"beta": 2.5, "gamma": 0.0, "retain_weight": 1.0},
    ),
}

_MINIMUM: dict[str, tuple[float, bool]] = {"beta": (0.0, False), "retain_weight": (0.0, True)}
"""The least value of an argument, and whether that value itself is allowed."""

TRADE_OFF = "trade_off"
"""The metric that `keep: best` maximises for objectives other than `sft`."""
METRICS: dict[str, str] = {
    "forget_loss": "maximize",
    "forget_probability": "minimize",
    "forget_rouge_l": "minimize",
    "forget_truth_ratio": "maximize",
    "forget_quality": "maximize",
    "retain_loss": "minimize",
    "retain_probability": "maximize",
    "retain_rouge_l": "maximize",
    "retain_truth_ratio": "maximize",
    "model_utility": "maximize",
    TRADE_OFF: "maximize",
}
"""Metrics of an evaluation with a forget set, and their directions of optimisation."""


def is_user_function(name: str) -> bool:
    """Whether a name is the user's own `package.module:function`."""
    return ":" in name


def all_arguments() -> tuple[str, ...]:
    """Every argument that a built-in objective takes."""
    return tuple(dict.fromkeys(name for entry in OBJECTIVES.values() for name in entry.arguments))


def find_objective(name: str) -> BuiltinObjective | None:
    """A built-in objective; None for the user's own."""
    return OBJECTIVES.get(name)


def with_defaults(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an objective, with defaults for those that are not given."""
    entry = find_objective(name)
    return {**(entry.arguments if entry else {}), **arguments}


def batch_parts(name: str, arguments: Mapping[str, Any], *, forgets: bool) -> tuple[str, ...]:
    """Names of the parts of an objective's batches; `retain` is left out when its weight is 0.

    The user's own function gets every part when there is a forget set (`forgets`), else `train`.
    """
    entry = find_objective(name)
    if entry is None:
        return ("forget", "retain", "alternative") if forgets else ("train",)
    weight = with_defaults(name, arguments).get("retain_weight", 1.0)
    return tuple(part for part in entry.parts if part != "retain" or weight)


def problems_of(objective: Any) -> list[Problem]:
    """Every mistake in the value of `objective`: a name, or a mapping with a `name`."""
    content = {"name": objective} if isinstance(objective, str) else objective
    if not isinstance(content, Mapping):
        return [Problem(KEY, "a name, or {name: ..., arguments}", repr(objective))]
    name = content.get("name", PLAIN)
    if not isinstance(name, str):
        return [Problem(f"{KEY}.name", "the name of an objective", repr(name))]
    arguments = {key: value for key, value in content.items() if key != "name"}
    if is_user_function(name):
        return user_functions.name_problems(f"{KEY}.name", name)
    if name not in OBJECTIVES:
        found = unknown(name, tuple(OBJECTIVES), "objective")
        rule = f"{found.expected}, or your own package.module:function"
        return [Problem(f"{KEY}.name", rule, found.got, found.near)]
    return _argument_problems(name, arguments)


def _argument_problems(name: str, arguments: Mapping[str, Any]) -> list[Problem]:
    known = OBJECTIVES[name].arguments
    problems = []
    for key, value in arguments.items():
        place = f"{KEY}.{key}"
        if key not in known:
            problems.append(unknown(place, tuple(known) or ("none",), f"argument of {name}"))
        elif isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            problems.append(Problem(place, "a number", repr(value)))
        elif key in _MINIMUM and not _is_enough(value, *_MINIMUM[key]):
            low, inclusive = _MINIMUM[key]
            rule = f"must be {'at least' if inclusive else 'greater than'} {low:g}"
            problems.append(Problem(place, rule, repr(value)))
    return problems


def _is_enough(value: float, low: float, inclusive: bool) -> bool:
    return value >= low if inclusive else value > low


def metric_problems(metrics: Sequence[str]) -> list[Problem]:
    """Every mistake in `evaluation.metrics`."""
    problems: list[Problem] = []
    for index, name in enumerate(metrics):
        key = f"evaluation.metrics.{index}"
        if is_user_function(name):
            problems += user_functions.name_problems(key, name)
        elif name not in METRICS:
            found = unknown(name, tuple(METRICS), "metric of unlearning")
            problems.append(Problem(key, found.expected, found.got, found.near))
    return problems


def code_problems(objective: Any, metrics: Sequence[str]) -> list[Problem]:
    """Functions of the user that are not found, or do not take their arguments."""
    content = {"name": objective} if isinstance(objective, str) else dict(objective)
    name = content.pop("name", PLAIN)
    problems = (
        user_functions.code_problems(KEY, f"{KEY}.name", name, content)
        if is_user_function(name)
        else []
    )
    for index, metric in enumerate(metrics):
        if is_user_function(metric):
            key = f"evaluation.metrics.{index}"
            problems += user_functions.code_problems(key, key, metric, {})
    return problems
