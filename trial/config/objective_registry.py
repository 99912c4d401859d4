"""Every objective and every metric of unlearning by name: what it takes, what it needs. Torch-free.

Adding an objective is a function in `trial.objectives.losses` and an entry here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trial.config import user_functions
from trial.config.errors import Problem, unknown

PLAIN = "sft"
"""The objective that the ordinary trainer computes itself."""
KEY = "objective"


@dataclass(frozen=True, slots=True)
class Entry:
    """One built-in objective."""

    source: str
    """Where it is defined."""
    sides: tuple[str, ...]
    """What its batches hold: rows to `forget`, to `retain`, and `alternative` answers."""
    arguments: Mapping[str, float] = field(default_factory=dict)
    """Keyword arguments with their defaults."""
    reference: bool = False
    """Whether it asks the model as it was: the one with the adapter disabled."""


TOFU = "Maini et al. 2024, arXiv:2401.06121"
OBJECTIVES: dict[str, Entry] = {
    PLAIN: Entry("cross-entropy per completion token", ()),
    "grad_ascent": Entry(TOFU, ("forget",)),
    "grad_diff": Entry(TOFU, ("forget", "retain"), {"retain_weight": 1.0}),
    "kl": Entry(TOFU, ("forget", "retain"), {"retain_weight": 1.0}, reference=True),
    "idk": Entry(TOFU, ("alternative", "retain"), {"retain_weight": 1.0}),
    "dpo": Entry(
        "Rafailov et al. 2023, arXiv:2305.18290",
        ("alternative", "forget", "retain"),
        {"beta": 0.1, "retain_weight": 0.0},
        reference=True,
    ),
    "npo": Entry(
        "Zhang et al. 2024, arXiv:2404.05868",
        ("forget", "retain"),
        {"beta": 0.1, "retain_weight": 1.0},
        reference=True,
    ),
    "simnpo": Entry(
        "Fan et al. 2024, arXiv:2410.07163",
        ("forget", "retain"),
        {"beta": 2.5, "gamma": 0.0, "retain_weight": 1.0},
    ),
}

_LEAST: dict[str, tuple[float, bool]] = {"beta": (0.0, False), "retain_weight": (0.0, True)}
"""The least value of an argument, and whether it may be that."""

TRADE_OFF = "trade_off"
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
"""What an evaluation with a forget set reports, and which way is better."""


def is_outside(name: str) -> bool:
    """Whether a name is the user's own `package.module:function`."""
    return ":" in name


def all_arguments() -> tuple[str, ...]:
    """Every argument that a built-in objective takes."""
    return tuple(dict.fromkeys(name for entry in OBJECTIVES.values() for name in entry.arguments))


def entry_of(name: str) -> Entry | None:
    """A built-in objective; None for the user's own."""
    return OBJECTIVES.get(name)


def with_defaults(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in full."""
    entry = entry_of(name)
    return {**(entry.arguments if entry else {}), **arguments}


def sides_of(name: str, arguments: Mapping[str, Any], *, forgets: bool) -> tuple[str, ...]:
    """What the batches of an objective hold; a retain set without weight is left out.

    The user's own gets all there is: every side when there is a forget set, else `train`.
    """
    entry = entry_of(name)
    if entry is None:
        return ("forget", "retain", "alternative") if forgets else ("train",)
    weighs = with_defaults(name, arguments).get("retain_weight", 1.0)
    return tuple(side for side in entry.sides if side != "retain" or weighs)


def problems_of(objective: Any) -> list[Problem]:
    """Every mistake in what stands under `objective`: a name, or a mapping with a `name`."""
    content = {"name": objective} if isinstance(objective, str) else objective
    if not isinstance(content, Mapping):
        return [Problem(KEY, "a name, or {name: ..., arguments}", repr(objective))]
    name = content.get("name", PLAIN)
    if not isinstance(name, str):
        return [Problem(f"{KEY}.name", "the name of an objective", repr(name))]
    arguments = {key: value for key, value in content.items() if key != "name"}
    if is_outside(name):
        return user_functions.shape_problems(f"{KEY}.name", name)
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
        elif key in _LEAST and not _is_enough(value, *_LEAST[key]):
            low, inclusive = _LEAST[key]
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
        if is_outside(name):
            problems += user_functions.shape_problems(key, name)
        elif name not in METRICS:
            found = unknown(name, tuple(METRICS), "metric of unlearning")
            problems.append(Problem(key, found.expected, found.got, found.near))
    return problems


def code_problems(objective: Any, metrics: Sequence[str]) -> list[Problem]:
    """Whether the user's own functions are where their names say, and take what they are given."""
    content = {"name": objective} if isinstance(objective, str) else dict(objective)
    name = content.pop("name", PLAIN)
    problems = (
        user_functions.code_problems(KEY, f"{KEY}.name", name, content) if is_outside(name) else []
    )
    for index, metric in enumerate(metrics):
        if is_outside(metric):
            key = f"evaluation.metrics.{index}"
            problems += user_functions.code_problems(key, key, metric, {})
    return problems
